"""Look inside of an animation: where it looks in the reference, how frames attend one another, what the motion adds.

    python -m mafx.inspect --reference person.png --motion densepose.mp4 --frame 8 --place 12,16 --out inside

This animates, and writes pictures, a picture of all of them (index.png) and their figures (inside.json) into a folder.

With --split, measure on held-out clips of the model's data how much of the attention of a body part goes to the same
part in the reference:

    python -m mafx.inspect --split test --clips 32 --out inside
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from mafx.commands import (
    Parser,
    add_cache_flag,
    add_input_flags,
    add_source_flags,
    claim_card,
    expand_home,
    parse_count,
    run_command,
)
from mafx.errors import InputError
from mafx.limits import add_limit_flags, set_limits

NAME = "python -m mafx.inspect"
FIGURES, INDEX = "inside.json", "index.png"
SHARES, MATRIX = "parts.json", "parts.png"
SHOWN = 5  # steps
CLIPS = 32
SPECIAL_DEFAULTS = {"guidance_scale": "; the run's own with --workdir"}
log = logging.getLogger("mafx")


def make_parser() -> Parser:
    from mafx.settings import add_setting_flags  # noqa: PLC0415 (slow; at the top, Ctrl-C would end in a traceback)

    parser = Parser(NAME, __doc__)
    add = parser.add_argument_group("what goes in and out").add_argument
    add_input_flags(add)
    add("--out", type=expand_home, required=True, help="Folder to write into.")
    add("--overwrite", action="store_true", help="Replace what is there.")
    add = parser.add_argument_group("where to look").add_argument
    add("--frame", type=int, help="Number of a frame, from 0 (default: the middle one).")
    add(
        "--place", type=parse_place, metavar="Y,X", help="Row and column in pixels (default: the middle of the person)."
    )
    add("--shown", type=parse_count, default=SHOWN, help=f"Show so many steps, evenly spaced (default {SHOWN}).")
    add = parser.add_argument_group("measuring").add_argument
    add("--split", choices=("train", "test"), help="Measure these clips of the model's data.")
    add("--clips", type=parse_count, default=CLIPS, help=f"Take at most so many clips (default {CLIPS}).")
    add = parser.add_argument_group("the model").add_argument
    add_source_flags(add)
    add("--dtype", help="What the networks compute in (default by card; float32 on a CPU).")
    add_setting_flags(parser, SPECIAL_DEFAULTS)
    add_cache_flag(parser)
    add_limit_flags(parser)
    return parser


def parse_place(text: str) -> tuple[int, int]:
    words = text.split(",")
    if len(words) != 2 or not all(word.strip().isdigit() for word in words):
        raise argparse.ArgumentTypeError(f"expected a row and a column, for example 12,16, found {text!r}")
    return int(words[0]), int(words[1])


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    set_limits(args)
    claim_card()
    from mafx.compiling import keep_programs  # noqa: PLC0415 (slow, and --help does without)
    from mafx.model import network_dtype  # noqa: PLC0415
    from mafx.settings import Settings, setting_flags  # noqa: PLC0415
    from mafx.sources import default_dtype, find_source  # noqa: PLC0415

    prepare_folder(args.out, SHARES if args.split else FIGURES, args.overwrite)
    keep_programs(args.cache)
    source = find_source(args.pretrained, args.workdir, args.checkpoint, args.lora)
    chosen = source.settings | setting_flags(args)
    if "steps" not in args:
        chosen.pop("steps", None)  # a model that needs one step still shows more in several
    dtype = network_dtype(args.dtype or default_dtype()).name
    settings = Settings(**chosen)
    if args.split:
        measure(args, source, settings, dtype)
    else:
        show(args, source, settings, dtype)


def prepare_folder(out: Path, record: str, overwrite: bool) -> None:
    """Make the folder. Raises InputError where it holds the file `record` already, or cannot be made."""
    if (out / record).exists() and not overwrite:
        raise InputError(f"{out / record} exists; choose another --out or give --overwrite")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error


def show(args: argparse.Namespace, source, settings, dtype: str) -> None:
    """Animate, and write what is seen inside."""
    from mafx import media  # noqa: PLC0415
    from mafx.inputs import FileRequest, read_inputs  # noqa: PLC0415
    from mafx.inspect.pictures import stack  # noqa: PLC0415
    from mafx.inspect.recording import point_at, record  # noqa: PLC0415
    from mafx.inspect.views import chosen_steps, look_inside, middle_of_person  # noqa: PLC0415
    from mafx.program import plan  # noqa: PLC0415
    from mafx.stamps import write_whole  # noqa: PLC0415

    size = args.size or source.size
    names = ("reference", "motion", "size", "frames", "stride")
    request = FileRequest(outs=[args.out / INDEX], **{name: getattr(args, name) for name in names})
    reference, motion, _ = read_inputs(request, size, settings.seed)
    frame = len(motion) // 2 if args.frame is None else args.frame
    if not 0 <= frame < len(motion):
        raise InputError(f"expected a frame from 0 to {len(motion) - 1}, found {frame}")
    place = middle_of_person(motion[frame]) if args.place is None else args.place
    point_at(place, size)  # a wrong one is refused before minutes of work
    recording = record(plan(source.load(dtype), settings, size, len(motion)), reference, motion)
    inside = look_inside(recording, frame, place, chosen_steps(settings.steps, args.shown))
    sheets = inside.sheets()
    for name, sheet in (sheets | {Path(INDEX).stem: stack(list(sheets.values()))}).items():
        media.write_video(args.out / f"{name}.png", [sheet], media.DEFAULT_FPS)
    write_whole(args.out / FIGURES, json.dumps({"model": source.name} | inside.figures(), indent=1) + "\n")
    log.info("Wrote %s: %s, all of them in %s, figures in %s.", args.out, ", ".join(sheets), INDEX, FIGURES)


def measure(args: argparse.Namespace, source, settings, dtype: str) -> None:
    """Measure which parts look at which, and write and log the shares."""
    from mafx import media  # noqa: PLC0415
    from mafx.data.datasets import find_clips  # noqa: PLC0415
    from mafx.inputs import DEFAULT_FRAMES  # noqa: PLC0415
    from mafx.inspect.parts import matrix_sheet, measure_clips, report, summarise  # noqa: PLC0415
    from mafx.inspect.views import chosen_steps  # noqa: PLC0415
    from mafx.program import plan  # noqa: PLC0415
    from mafx.stamps import write_whole  # noqa: PLC0415

    if source.data is None:
        raise InputError(f"expected a model whose data is known, found {source.name}")
    clips = find_clips(source.data, args.split)[: args.clips]
    program = plan(source.load(dtype), settings, args.size or source.size, args.frames or DEFAULT_FRAMES)
    steps = chosen_steps(settings.steps, args.shown)
    found = measure_clips(program, clips, steps, args.stride)
    mean = summarise(found)
    by_step = {str(step): summarise([[clip[i]] for clip in found]) for i, step in enumerate(steps)}
    facts = {"model": source.name, "clips": len(clips), "of_steps": settings.steps, "mean": mean, "steps": by_step}
    write_whole(args.out / SHARES, json.dumps(facts, indent=1) + "\n")
    media.write_video(args.out / MATRIX, [matrix_sheet(found)], media.DEFAULT_FPS)
    title = "%d clips, means over %d steps: mean and 95 %% interval over clips\n\n%s"
    log.info(title, len(clips), len(steps), report(mean))


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
