"""Replace the bundled model by a trained one.

The last run must be evaluated. Then mafx/bundled gets its parameters, its config and its scores, and the training logs
of all runs:

    python sample.py --workdir RUNS/temporal --split test --clips 64 --frames 16 --steps 1
    python -m mafx.bundled.release --workdirs RUNS/appearance RUNS/temporal
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mafx.bundled import FOLDER, save_bundled
from mafx.commands import Parser, run_command
from mafx.files import Measured, read_json_lines

NAME = "python -m mafx.bundled.release"
DIGITS = 4  # of the numbers in the training log


def main(args: argparse.Namespace) -> None:
    # The training code is slow to import, and --help does not need it.
    from mafx.evaluation.protocol import read_metrics  # noqa: PLC0415
    from mafx.training.runs import load_run, read_config  # noqa: PLC0415

    last = args.workdirs[-1]
    config = read_config(last)
    config.init_from = Path(config.init_from).name  # the folder's place on this machine is nobody's business
    evaluation = read_metrics(last)
    save_bundled(load_run(last), config)
    (FOLDER / "training.jsonl").write_text(joined_logs(args.workdirs))
    settings = evaluation["settings"] | {"split": f"the first {len(evaluation['clips'])} clips of the test split"}
    scores = {"settings": settings, "mean": evaluation["mean"]}
    (FOLDER / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(f"{FOLDER / 'puppets.npz'}: {(FOLDER / 'puppets.npz').stat().st_size / 1e6:.2f} MB")


def joined_logs(workdirs: Sequence[Path]) -> str:
    """The training logs of several runs, one after another, with numbers of `DIGITS` digits."""
    kind = dict[str, int | Measured]
    lines = [line for workdir in workdirs for line in read_json_lines(workdir / "metrics.jsonl", kind)]
    return "".join(f"{json.dumps(_rounded(line))}\n" for line in lines)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x for name, x in values.items()}


if __name__ == "__main__":
    parser = Parser(NAME, __doc__)
    parser.add_argument(
        "--workdirs",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="Work folders of all stages, in order. The last one holds the model.",
    )
    sys.exit(run_command(NAME, main, parser.parse_args()))
