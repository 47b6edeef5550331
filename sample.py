"""Animate a reference picture by a DensePose motion video, or by a video of somebody.

    python sample.py --pretrained WEIGHTS --reference person.png --motion densepose.mp4 --out person.mp4
    python sample.py --pretrained WEIGHTS --reference person.png --video dance.mp4 --out person.mp4

Without --reference or --motion, a drawn puppet stands in. Without weights, the small model that comes with mafx
animates it:

    python sample.py

With --split, animate the held-out clips of a training run, and measure them against the truth:

    python sample.py --workdir RUN --split test [--against OTHER_RUN]
"""

import argparse
import math
import sys
from pathlib import Path

from mafx.commands import (
    Parser,
    add_cache_flag,
    add_input_flags,
    add_process_flags,
    add_source_flags,
    claim_card,
    expand_home,
    join_processes,
    parse_count,
    run_command,
)
from mafx.errors import InputError, memory_advice
from mafx.limits import add_limit_flags, set_limits

NAME = "sample.py"
DEFAULT_OUT = "animation.mp4,animation.gif"
DEFAULT_RECORD = "animation.json"  # written beside them: earlier outputs are sample.py's own
ADVICE = "take --dtype bfloat16, a smaller --size, or fewer --windows_at_once"
SPECIAL_DEFAULTS = {"steps": "; fewer for the bundled model", "guidance_scale": "; the run's own with --workdir"}


def make_parser() -> Parser:
    from mafx.media import FITS  # noqa: PLC0415 (slow; at the top, Ctrl-C would end in a traceback)
    from mafx.model import DTYPES  # noqa: PLC0415
    from mafx.settings import add_setting_flags  # noqa: PLC0415

    parser = Parser(NAME, __doc__)
    add = parser.add_argument_group("what goes in and out").add_argument
    add_input_flags(add)
    add(
        "--out",
        help="What to write, separated by commas: .mp4, .gif or .webp files, or folders of PNGs (no extension). "
        f"Default: {DEFAULT_OUT}, which later runs replace; with --split, the folder RUN/evaluation.",
    )
    add("--overwrite", action="store_true", help="Replace what is at --out.")
    add("--fit", default="crop", choices=FITS, help="How pictures of other proportions are fitted (default crop).")
    add("--grid", action="store_true", help="Write reference, motion and result side by side.")
    add("--zoom", type=parse_count, help="Enlarge what is written so many times (default: only small videos).")
    add(
        "--motion_check",
        default="warn",
        choices=("warn", "error", "off"),
        help="What to do when the motion's colours are not DensePose's (default warn).",
    )
    add_video_flags(parser)

    add = parser.add_argument_group("the model").add_argument
    add_source_flags(add)
    add("--dtype", choices=DTYPES, help="What the networks compute in (default by card; float32 on a CPU).")
    add(
        "--memory",
        type=parse_memory,
        metavar="GIB",
        help="Memory of the card. Where the networks do not fit in together, they take turns on it, for the same video "
        "(default: three quarters of the card, as JAX says).",
    )
    add_setting_flags(parser, SPECIAL_DEFAULTS)
    add_measuring_flags(parser)

    add = parser.add_argument_group("compiling").add_argument
    add("--compile_only", action="store_true", help="Compile what the other flags ask for, for the next start.")
    add_cache_flag(parser)
    add_process_flags(parser)
    add_limit_flags(parser)
    return parser


def add_video_flags(parser: Parser) -> None:
    add = parser.add_argument_group("from a video of a person").add_argument
    add("--video", help="Video of a person, instead of --motion: it is drawn as DensePose first.")
    add(
        "--densepose",
        metavar="FILE",
        help="What finds people: DensePose weights (.pkl, .pth), or landmark networks (.task, or a folder of .tflite). "
        "Default: landmark networks that are fetched once; approximate.",
    )
    add("--person", default="largest", help="Of several: largest, central, all, or a number counted from the left.")
    add(
        "--align",
        choices=("none", "place", "body"),
        help="Bring the driver's body to the place of the reference's, or to its place and size, and crop both alike "
        "(default: body with --video, where the reference shows a person; else none).",
    )


def add_measuring_flags(parser: Parser) -> None:
    add = parser.add_argument_group("measuring a run").add_argument
    add("--split", choices=("train", "test"), help="Animate and measure these clips of --workdir's data.")
    add("--clips", type=parse_count, help="Take only the first so many clips (default: all).")
    add("--metric_networks", metavar="FOLDER", type=expand_home, help="Networks of LPIPS, FID, FID-VID and FVD.")
    add("--against", metavar="FOLDER", type=expand_home, help="Another evaluation of the same clips, to compare with.")


def parse_memory(text: str) -> float:
    try:
        memory = float(text)
    except ValueError:
        memory = 0.0
    if not 0 < memory < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of GiB, found {text!r}")
    return memory


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    set_limits(args)
    from mafx import jobs  # noqa: PLC0415 (slow, and --help does without)
    from mafx.compiling import keep_programs  # noqa: PLC0415
    from mafx.model import network_dtype  # noqa: PLC0415
    from mafx.settings import Settings, setting_flags  # noqa: PLC0415
    from mafx.sources import default_dtype, find_source  # noqa: PLC0415

    if args.memory is not None:
        claim_card()
    join_processes(args)
    keep_programs(args.cache)
    source = find_source(args.pretrained, args.workdir, args.checkpoint, args.lora)
    settings = Settings(**source.settings | setting_flags(args))
    dtype = network_dtype(args.dtype or default_dtype()).name
    with memory_advice(ADVICE):
        if args.compile_only:
            jobs.compile_only(source, settings, dtype, args.size, args.frames, args.memory)
        elif args.split:
            evaluate(args, source, settings, dtype)
        else:
            from mafx.densepose.finders import FinderOptions  # noqa: PLC0415
            from mafx.inputs import FileRequest  # noqa: PLC0415

            names = ("reference", "motion", "video", "person", "size", "fit", "frames", "stride", "grid", "zoom")
            outs = [expand_home(name) for name in (DEFAULT_OUT if args.out is None else args.out).split(",")]
            is_second_run = args.out is None and Path(DEFAULT_RECORD).exists()
            overwrite = args.overwrite or is_second_run
            request = FileRequest(
                outs=outs,
                overwrite=overwrite,
                motion_check=args.motion_check,
                align=args.align,
                finder=FinderOptions(weights=args.densepose, dtype=dtype, cache=args.cache),
                **{name: getattr(args, name) for name in names},
            )
            jobs.animate_files(request, source, settings, dtype, args.memory)


def evaluate(args: argparse.Namespace, source, settings, dtype: str) -> None:
    from mafx import jobs  # noqa: PLC0415
    from mafx.data.examples import ExampleOptions  # noqa: PLC0415

    if not args.workdir:
        raise InputError("--split measures a training run: give its --workdir")
    workdir = expand_home(args.workdir)
    jobs.evaluate_run(
        source,
        settings,
        dtype,
        workdir=workdir,
        checkpoint=args.checkpoint,
        split=args.split,
        out=workdir / "evaluation" if args.out is None else expand_home(args.out),
        options=ExampleOptions(size=args.size or source.size, stride=args.stride),
        clips=args.clips,
        frames=args.frames,
        metric_networks=args.metric_networks,
        against=args.against,
        memory=args.memory,
        overwrite=args.overwrite,
    )


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
