"""Write a trained model in the layout of the published weights, which the published PyTorch tools read too.

python -m mafx.pretrained.export RUNS/temporal OUT --checkpoint best
python -m mafx.pretrained.export bundled OUT
python -m mafx.pretrained.export RUNS/personal person.safetensors --low_rank    # for sample.py --lora
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from mafx.commands import Parser, expand_home, run_command
from mafx.errors import InputError

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
    parser.add_argument(
        "--low_rank", action="store_true", help="Write the low-rank update of the run alone, as a file, in float32."
    )
    args = parser.parse_args(arguments)
    if args.low_rank and args.dtype != "float32":
        parser.error(f"--low_rank writes float32, found --dtype {args.dtype}")
    return args


def export(args: argparse.Namespace) -> None:
    """Load what the flags name, write it, and log where it is and how large."""
    # Slow to import, and --help does not need them.
    from mafx.bundled import load_bundled  # noqa: PLC0415
    from mafx.pretrained.layout import save_pretrained  # noqa: PLC0415

    out = expand_home(args.out)
    if args.low_rank:
        export_update(args.run, args.checkpoint, out)
        return
    if args.run == BUNDLED:
        model = load_bundled(args.dtype)
    else:
        from mafx.training.runs import load_run  # noqa: PLC0415

        model = load_run(expand_home(args.run), args.dtype, args.checkpoint)
    save_pretrained(model, out)
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    log.info("Wrote %s in %s: %.1f MB, %s.", model.source, out, megabytes, args.dtype)


def export_update(run: str, checkpoint: str, out: Path) -> None:
    """Write the low-rank update that a run has trained."""
    from mafx.low_rank import write_update  # noqa: PLC0415
    from mafx.training.runs import load_update  # noqa: PLC0415

    if out.exists() or out.suffix != ".safetensors":
        raise InputError(f"expected the name of a new .safetensors file, found {out}")
    update = load_update(expand_home(run), checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_update(out, update)
    log.info("Wrote %s: %d kernels, %.1f MB.", out, len(update.pairs), out.stat().st_size / 1e6)


if __name__ == "__main__":
    sys.exit(run_command(NAME, export, parse(sys.argv[1:])))
