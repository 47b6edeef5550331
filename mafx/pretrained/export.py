"""Write a trained model in the layout of the published weights, which the published PyTorch tools read too.

python -m mafx.pretrained.export RUNS/temporal OUT --checkpoint best
python -m mafx.pretrained.export bundled OUT
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from mafx.commands import Parser, expand_home, run_command

NAME = "python -m mafx.pretrained.export"
BUNDLED = "bundled"  # names the bundled model instead of a work folder
DTYPES = ("float32", "float16", "bfloat16")

log = logging.getLogger("mafx")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command's flags."""
    parser = Parser(NAME, __doc__)
    parser.usage = f"{NAME} RUN OUT [FLAGS]"
    parser.add_argument("run", metavar="RUN", help=f"Work folder of a training, or {BUNDLED!r} for the bundled model.")
    parser.add_argument("out", metavar="OUT", help="New or empty folder for the weights.")
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="STEP",
        help='Which checkpoint of the work folder: "latest", "best" or a step (default: latest).',
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="Of the tensors (default: float32).")
    return parser.parse_args(arguments)


def export(args: argparse.Namespace) -> None:
    """Load what the flags name, write it, and log where it is and how large."""
    # Slow to import, and --help does not need them.
    from mafx.bundled import load_bundled  # noqa: PLC0415
    from mafx.pretrained.layout import save_pretrained  # noqa: PLC0415

    out = expand_home(args.out)
    if args.run == BUNDLED:
        model = load_bundled(args.dtype)
    else:
        from mafx.training.runs import load_run  # noqa: PLC0415

        model = load_run(expand_home(args.run), args.dtype, args.checkpoint)
    save_pretrained(model, out)
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    log.info("Wrote %s in %s: %.1f MB, %s.", model.source, out, megabytes, args.dtype)


if __name__ == "__main__":
    sys.exit(run_command(NAME, export, parse(sys.argv[1:])))
