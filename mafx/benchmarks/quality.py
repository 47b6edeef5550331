"""What saving time costs in quality: fewer steps, guidance in an interval of times, reuse between steps.

    pip install matplotlib
    python -m mafx.benchmarks.quality --out docs/speed_quality

This writes a picture (.png), a table (.md) and the figures (.json). The bundled model animates held-out puppets, always
from the same noise. Each way is compared with 25 DDIM steps that are guided throughout, and with the truth.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

import mafx
from mafx import media
from mafx.commands import Parser, run_command
from mafx.data.clips import puppet_clips
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.errors import InputError
from mafx.metrics import psnr
from mafx.tables import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "python -m mafx.benchmarks.quality"
Example = dict[str, np.ndarray]
Row = dict[str, Any]  # "line", settings, "seconds", and SCORES

FRAMES = 16
FULL = {"sampler": "ddim", "steps": 25}  # nothing is saved
WAYS: dict[str, list[dict]] = {  # by the line of the picture: settings that differ from FULL
    "DDIM": [{"steps": n} for n in (25, 15, 10, 8, 4, 2)],
    "DPM-Solver++ 2M": [{"sampler": "dpmpp_2m", "steps": n} for n in (15, 10, 8, 4)],
    "Euler": [{"sampler": "euler", "steps": n} for n in (15, 10, 8, 4)],
    "guided below time": [{"guidance_interval": (0, high)} for high in (800, 600, 400)],
    "guided from time": [{"guidance_interval": (low, 1000)} for low in (200, 400, 600)],
    "reuse": [{"reuse": n} for n in (2, 3, 5)],
    "reuse, DPM-Solver++ 2M": [{"sampler": "dpmpp_2m", "steps": 15, "reuse": n} for n in (2, 3)],
}
TO_FULL, TO_TRUTH, TO_PERSON = SCORES = ("to 25 steps", "to the truth", "to the truth, person")
EQUAL_DB = 100  # where videos are equal, PSNR says as much as this: it is not shown


def measure(model: mafx.Model, examples: Sequence[Example], guidance: float) -> list[Row]:
    """Animate the examples in all ways, and score them. The first row is FULL."""
    ways = [(line, FULL | changes) for line, all_changes in WAYS.items() for changes in all_changes]
    full: list[np.ndarray] = []
    rows = []
    for line, settings in tqdm(ways, unit="way"):
        videos, seconds = [], []
        for example in examples:
            began = time.perf_counter()
            animation = mafx.animate(
                model,
                example["reference"],
                example["motion"],
                progress=False,
                guidance_scale=guidance,
                **settings,
            )
            videos.append(media.to_uint8(animation.video))
            seconds.append(time.perf_counter() - began)
        full = full or videos
        scores = np.mean([score(*x) for x in zip(videos, full, examples, strict=True)], axis=0).tolist()
        median = statistics.median(seconds[1:])  # the first one compiles
        row = {"line": line, **settings, "seconds": median}
        rows.append(row | dict(zip(SCORES, scores, strict=True)))
    return rows


def score(video: np.ndarray, full: np.ndarray, example: Example) -> tuple[float, float, float]:
    """SCORES of one video, means over its frames in dB."""
    person = read_labels(example["motion"])[0] > 0
    return mean_psnr(video, full), mean_psnr(video, example["video"]), mean_psnr(video, example["video"], person)


def mean_psnr(video: np.ndarray, truth: np.ndarray, masks: np.ndarray | None = None) -> float:
    frame_masks = [None] * len(video) if masks is None else masks
    return float(np.mean([psnr(*x) for x in zip(video, truth, frame_masks, strict=True)]))


def table(rows: Sequence[Row]) -> str:
    """A Markdown table. Speed is relative to the first row."""
    header = ("", "sampler", "steps", "guided times", "reuse", "faster")
    lines = []
    for row in rows:
        low, high = row.get("guidance_interval", (0, 1000))
        faster = f"{rows[0]['seconds'] / row['seconds']:.2f} x"
        scores = [f"{row[name]:.2f}" if row[name] < EQUAL_DB else "" for name in SCORES]
        how = (row["line"], row["sampler"], row["steps"], f"{low} to {high}", row.get("reuse", 1))
        lines.append((*how, faster, *scores))
    return markdown_table((*header, f"PSNR {TO_FULL}", TO_TRUTH, "person"), lines, words=2)


def draw(rows: Sequence[Row]) -> "Figure":
    """Draw quality over speed, a line for each kind of saving."""
    import matplotlib as mpl  # noqa: PLC0415 (optional)

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, name in zip(axes, (TO_FULL, TO_PERSON), strict=True):
        for line in WAYS:
            points = [row for row in rows if row["line"] == line and row[name] < EQUAL_DB]
            faster = [rows[0]["seconds"] / row["seconds"] for row in points]
            axis.plot(faster, [row[name] for row in points], "o-", label=line, markersize=4)
        axis.axvline(1, color="grey", linewidth=0.5)
        axis.set(xscale="log", xlabel="times faster than 25 DDIM steps", ylabel=f"PSNR {name}, dB")
        axis.grid(alpha=0.3, which="both")
    axes[1].axhline(rows[0][TO_PERSON], color="grey", linewidth=0.5)
    axes[0].legend(fontsize=8)
    return figure


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="Name of the three files, without an ending.")
    add("--workdir", type=Path, help="Run of another model of puppets (default: the bundled model).")
    add("--clips", type=int, default=16, help="Number of held-out puppets, at least 2 (default 16).")
    add("--guidance", type=float, default=2.0, help="Guidance scale (default 2).")
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Raise InputError for what would fail after an hour."""
    if args.clips < 2:
        raise InputError(f"--clips: expected at least 2, of which the first compiles, found {args.clips}")
    check_report(args.out)


def check_report(out: Path) -> None:
    """Raise InputError where `write_report` would fail."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("expected the package matplotlib, found none; pip install matplotlib")
    check_folder(out)


def check_folder(out: Path) -> None:
    """Raise InputError where `write_figures` would fail."""
    if not out.parent.is_dir():
        raise InputError(f"--out: expected a name in a folder that exists, found {out}")


def read_examples(count: int, size: media.Size, frames: int = FRAMES) -> list[Example]:
    """The first frames of so many held-out puppets, after the one that is the reference."""
    options, target = ExampleOptions(size=size), 1 + np.arange(frames)
    return [read_example(clip, 0, target, options) for clip in puppet_clips("test", count, size)]


def write_report(out: Path, rows: Sequence[Row], lines: str, figure: "Figure") -> None:
    """Write rows, their table and their picture beside one another, and show the table."""
    figure.savefig(out.with_suffix(".png"), dpi=110)
    write_figures(out, rows, lines)


def write_figures(out: Path, figures: object, lines: str) -> None:
    """Write figures as JSON, and their tables in Markdown, beside one another, and show the tables."""
    out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    out.with_suffix(".md").write_text(lines)
    print(lines)


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    check_flags(args)
    model = mafx.load_run(args.workdir) if args.workdir else mafx.load_bundled()
    rows = measure(model, read_examples(args.clips, model.size), args.guidance)
    write_report(args.out, rows, table(rows), draw(rows))


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
