"""The rows of many runs of `python -m mafx.ahead` in two tables: what animates where, and what trains where.

    python -m mafx.ahead --target h100 --json h100.json
    python -m mafx.ahead --target t4 --size 256 256 --json t4.json
    python -m mafx.ahead.summary h100.json t4.json
    python -m mafx.ahead.summary                  # what the model assumes of each card

Memory is in GiB, as the compiler says. Times are modelled; no card was measured to check them.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mafx.ahead.programs import SAMPLING
from mafx.ahead.rows import ANIMATION, verdict
from mafx.ahead.targets import TARGETS
from mafx.budget import GIB
from mafx.commands import Parser, run_command
from mafx.errors import refusals
from mafx.files import read_json
from mafx.tables import markdown_table
from mafx.training.config import STAGES

NAME = "python -m mafx.ahead.summary"
Record = dict[str, Any]  # see rows.row_record
SAMPLING_HEADER = (
    *("card", "GiB", "size", "frames", "dtype", "all of it", "takes"),
    *("a step, ms", "decoding a frame, ms", "an animation, s"),
)
TRAINING_HEADER = ("card", "GiB", "stage", "remat", "size", "dtype", "step", "takes", "TFLOP", "a step, ms")


ASSUMED_HEADER = (
    *("card", "GiB", "TFLOP/s at its peak", "products", "convolutions", "attention", "float32"),
    *("GB/s at its peak", "assumed", "launch, us"),
)


def assumed_rows() -> list[tuple]:
    """What vendors state of each card, and what the model takes to be reached; see targets.py."""
    rows = []
    for card in TARGETS.values():
        rates = card.rates
        reached = (card.peak, rates.product, rates.convolution, rates.attention, rates.float32)
        moved = (card.peak_bandwidth, rates.bandwidth)
        figures = (*(f"{x / 1e12:.0f}" for x in reached), *(f"{x / 1e9:.0f}" for x in moved))
        rows.append((card.title, f"{card.memory / GIB:.1f}", *figures, f"{1e6 * rates.launch:.0f}"))
    return rows


def read_records(paths: Iterable[Path]) -> list[Record]:
    """All rows of the files, in their order.

    Raises:
      InputError: Where a file is none that the command wrote.
    """
    records = []
    for path in paths:
        with refusals(f"expected rows that python -m mafx.ahead --json wrote, found {path}"):
            rows = read_json(path, list[dict[str, Any]])
            records += [row for row in rows if row["program"] in (*SAMPLING, *STAGES, ANIMATION)]
    return records


def sampling_rows(records: Iterable[Record]) -> list[tuple]:
    """One row for all parts of an animation that were compiled for a card at one size."""
    together: dict[tuple, dict[str, Record]] = {}
    for record in records:
        if record["program"] in SAMPLING:
            key = (*(record[name] for name in ("target", "model", "frames", "dtype")), *record["size"])
            together.setdefault(key, {})[record["program"]] = record
    return [_sampling_row(parts) for parts in together.values()]


def _sampling_row(parts: dict[str, Record]) -> tuple:
    first = next(iter(parts.values()))
    card = TARGETS[first["target"]]
    compiled = [record for record in parts.values() if record["failure"] is None]
    failures = [f"{name} fails" for name, record in parts.items() if record["failure"] is not None]
    missing = [] if len(parts) == len(SAMPLING) else [f"{len(parts)} of {len(SAMPLING)} parts"]
    fits = verdict(all(record["fits"] for record in compiled))
    needed = max((record["needed"] for record in compiled), default=None)
    whole = sum(record["runs"] * record["kernels"]["seconds"] for record in compiled)

    def milliseconds(name: str) -> str | None:
        record = parts.get(name)
        return f"{1e3 * record['kernels']['seconds']:.1f}" if record and record["failure"] is None else None

    return (
        *(card.title, f"{card.memory / GIB:.1f}", _size(first), first["frames"], first["dtype"]),
        ", ".join(failures or [fits, *missing]),
        None if needed is None else f"{needed / GIB:.2f}",
        *(milliseconds("steps"), milliseconds("decoding")),
        None if failures or missing else f"{whole:.2f}",
    )


def training_rows(records: Iterable[Record]) -> list[tuple]:
    """One row for every training step on one device."""
    return [_training_row(x) for x in records if x["program"] in STAGES and x["topology"] is None]


def _training_row(record: Record) -> tuple:
    card = TARGETS[record["target"]]
    words = (card.title, f"{card.memory / GIB:.1f}", record["program"], record["remat"], _size(record), record["dtype"])
    if record["failure"] is not None:
        return *words, f"fails: {record['failure']}", None, None, None
    milliseconds = f"{1e3 * record['kernels']['seconds']:.0f}"
    figures = (f"{record['needed'] / GIB:.2f}", f"{record['flops'] / 1e12:.1f}", milliseconds)
    return *words, verdict(record["fits"]), *figures


def _size(record: Record) -> str:
    return "x".join(map(str, record["size"]))


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="What --json wrote.")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Print the tables that have rows; those of the assumptions where there are no files."""
    files = make_parser().parse_args(arguments).files
    records = read_records(files)
    tables = [(SAMPLING_HEADER, sampling_rows(records), 6), (TRAINING_HEADER, training_rows(records), 7)]
    if not files:
        tables = [(ASSUMED_HEADER, assumed_rows(), 1)]
    print("\n".join(markdown_table(header, rows, words) for header, rows, words in tables if rows), end="")


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
