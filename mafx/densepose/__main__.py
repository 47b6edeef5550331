"""Make a motion: a video of DensePose renders, from a video, a picture or a folder of pictures of people.

    python -m mafx.densepose dance.mp4 --out motion.mp4
    python -m mafx.densepose dance.mp4 --weights model_final_162be9.pkl --out motion.mp4

Without weights, two small networks find the landmarks of bodies, and body parts are drawn from them: approximate, fast,
and nothing to download but 36 MB, once. With the published weights of detectron2's DensePose, the labels are its own.

What is labels already is converted: videos and pictures in another colour map, IUV images, and dumps of detectron2's
apply_net.py.

    python -m mafx.densepose parula.mp4 --out motion.mp4
    python -m mafx.densepose dump.pkl --size 720x1280 --out motion.mp4

An interrupted search of a long video goes on where it was when the same command is given again.
"""

import functools
import logging
import sys
from pathlib import Path

from mafx.commands import Parser, add_cache_flag, claim_card, expand_home, parse_count, parse_size, run_command
from mafx.errors import InputError
from mafx.limits import add_limit_flags, set_limits

NAME = "python -m mafx.densepose"
OPTIONS = "kind", "raw", "size", "frames", "stride"  # flags that are fields of MotionOptions
log = logging.getLogger("mafx")


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    parser.usage = f"{NAME} INPUT --out OUT [FLAGS]"
    add = parser.add_argument
    add("input", metavar="INPUT", help="Video, picture, folder of pictures, or dump.")
    formats = ".mp4, .mkv (without loss), .gif, .webp, a folder of PNGs (no extension), or .png for a picture"
    add("--out", required=True, type=expand_home, help=f"What to write: {formats}.")
    add("--overwrite", action="store_true", help="Replace what is at --out.")
    add(
        "--kind",
        default="auto",
        help="What INPUT is: auto, people, renders, iuv or dump (default auto; people with --weights).",
    )
    files = "DensePose weights (.pkl, .pth), or landmark networks (.task, or a folder of .tflite files)"
    add("--weights", metavar="FILE", help=f"Published {files}.")
    add("--person", default="largest", help="Who is drawn: largest, central, all, or a number counted from the left.")
    add("--min_size", type=parse_count, help="Shorter side of the frames that DensePose sees (default 800 pixels),")
    add("--max_size", type=parse_count, help="unless the longer side became longer than this (default 1333).")
    add(
        "--raw", action="store_true", help="Draw everybody in each frame as detectron2 does, without following anybody."
    )
    add("--dtype", help="What DensePose computes in (default by card; float32 on a CPU).")
    add("--size", type=parse_size, help="HxW of the pictures of a dump, where they are not beside it.")
    add("--frames", type=parse_count, help="Take at most so many frames.")
    add("--stride", type=parse_count, default=1, help="Take every so many-th frame (default 1).")
    add_cache_flag(parser)
    add_limit_flags(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    set_limits(args)
    from mafx import media  # noqa: PLC0415 (slow, and --help does without)
    from mafx.compiling import keep_programs  # noqa: PLC0415
    from mafx.densepose.finders import FinderOptions, make_finder  # noqa: PLC0415
    from mafx.densepose.motions import MotionOptions, draw_motion  # noqa: PLC0415
    from mafx.densepose.tracks import parse_choice  # noqa: PLC0415
    from mafx.model import network_dtype  # noqa: PLC0415
    from mafx.sources import default_dtype  # noqa: PLC0415

    out: Path = args.out
    media.check_writable(out)
    if out.exists() and not args.overwrite:
        raise InputError(f"{out} exists; choose another --out or give --overwrite")
    if args.weights and args.kind == "auto":
        args.kind = "people"
    options = MotionOptions(person=parse_choice(args.person), **{name: getattr(args, name) for name in OPTIONS})
    claim_card()
    keep_programs(args.cache)
    dtype = network_dtype(args.dtype or default_dtype()).name
    finder = FinderOptions(
        weights=args.weights, dtype=dtype, min_size=args.min_size, max_size=args.max_size, cache=args.cache
    )
    report = draw_motion(args.input, out, options, functools.partial(make_finder, finder))
    log.info("Wrote %s: %s.", out, report)


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
