"""Quality over the number of steps, before and after consistency tuning (configs/few_steps.py), on held-out puppets.

    python -m mafx.experiments.few_steps --after RUNS/few_steps --out docs/few_steps

This writes a picture (.png), a table (.md) and the figures (.json). All results begin with the same noise. Sharpness is
relative to the truth's: 1 is right, and less is blur. The Fréchet distance is that of features of a random network.
The model before is measured with guidance as well, where the tuning has folded that in (`config.loss.guidance`).
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

import mafx
from mafx import media
from mafx.benchmarks.quality import Example, check_report, mean_psnr, read_examples, write_report
from mafx.commands import Parser, parse_count, run_command
from mafx.densepose import read_labels
from mafx.evaluation.features import frechet_distance
from mafx.evaluation.random_features import random_features
from mafx.evaluation.summary import mean_interval
from mafx.metrics import relative_sharpness
from mafx.tables import markdown_table
from mafx.training.runs import read_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "python -m mafx.experiments.few_steps"
STEPS = (1, 2, 4, 8, 25)
MEASURES = ("psnr_person", "sharpness", "frechet")
Row = dict[str, Any]  # the fields of `Way`, "steps", and MEASURES, of which all but the last have intervals


class Way(NamedTuple):
    """A model ("before" or "after" the tuning), its sampler, and the scale of guidance by the reference."""

    model: str
    sampler: str
    guidance: float


def ways_with(guidance: float) -> list[Way]:
    """All ways, where the tuning has folded in this scale of guidance."""
    guided = [Way("before", "ddim", guidance)] if guidance != 1 else []
    return [Way("before", "ddim", 1.0), *guided, Way("after", "consistency", 1.0)]


def measure(models: dict[str, mafx.Model], examples: Sequence[Example], ways: Sequence[Way]) -> list[Row]:
    """Animate the examples in all ways and numbers of steps, and score them."""
    truth = np.concatenate([random_features(example["video"]) for example in examples])
    rows = []
    for way, steps in tqdm(list(itertools.product(ways, STEPS)), unit="way"):
        videos = [animate(models[way.model], example, way, steps) for example in examples]
        scores = [score(video, example) for video, example in zip(videos, examples, strict=True)]
        row: Row = way._asdict() | {"steps": steps}
        for name in MEASURES[:2]:
            row[name] = mean_interval([values[name] for values in scores])
        row["frechet"] = frechet_distance(np.concatenate([random_features(video) for video in videos]), truth)
        rows.append(row)
    return rows


def animate(model: mafx.Model, example: Example, way: Way, steps: int) -> np.ndarray:
    """The animation of an example, uint8 `f H W 3`."""
    settings: dict[str, Any] = {"sampler": way.sampler, "steps": steps, "guidance_scale": way.guidance}
    video = mafx.animate(model, example["reference"], example["motion"], progress=False, **settings).video
    return media.to_uint8(video)


def score(video: np.ndarray, example: Example) -> dict[str, float]:
    """The measures of one video that are means over its frames, within the person."""
    person = read_labels(example["motion"])[0] > 0
    truth = example["video"]
    return {"psnr_person": mean_psnr(video, truth, person), "sharpness": relative_sharpness(video, truth, person)}


def table(rows: Sequence[Row]) -> str:
    """A Markdown table."""
    header = ("model", "sampler", "guidance", "steps", "PSNR, person ↑", "sharpness → 1", "Fréchet distance ↓")
    lines = []
    for row in rows:
        cells = ["{:.2f} [{:.2f}, {:.2f}]".format(*row[name]) for name in MEASURES[:2]]
        way = row["model"], row["sampler"], f"{row['guidance']:g}", row["steps"]
        lines.append((*way, *cells, f"{row['frechet']:.4f}"))
    return markdown_table(header, lines, words=2)


def way_of(row: Row) -> Way:
    return Way(*(row[name] for name in Way._fields))


def label(way: Way) -> str:
    guidance = f", guidance {way.guidance:g}" if way.guidance != 1 else ""
    return f"{way.model}, {way.sampler}{guidance}"


def draw(rows: Sequence[Row]) -> "Figure":
    """Draw each measure over the number of steps, a line for each way."""
    import matplotlib as mpl  # noqa: PLC0415 (optional)

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    by_way = {way: list(chosen) for way, chosen in itertools.groupby(rows, way_of)}
    for axis, name in zip(axes, MEASURES, strict=True):
        for way, chosen in by_way.items():
            values = np.array([np.resize(row[name], 3) for row in chosen]).reshape(-1, 3)
            steps = [row["steps"] for row in chosen]
            (line,) = axis.plot(steps, values[:, 0], "o-", label=label(way), markersize=4)
            axis.fill_between(steps, values[:, 1], values[:, 2], color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set(xscale="log", xlabel="steps", title=name.replace("_", ", "), xticks=STEPS, xticklabels=STEPS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].axhline(1, color="grey", linewidth=0.5)
    axes[2].set_yscale("log")  # one guided step is a hundred times as far away
    axes[0].legend(fontsize=8)
    return figure


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--before", type=Path, help="Run before the tuning (default: the bundled model).")
    add("--after", type=Path, required=True, help="Run after it.")
    add("--out", type=Path, required=True, help="Name of the three files, without an ending.")
    add("--clips", type=parse_count, default=32, help="Number of held-out puppets (default 32).")
    return parser


def main(args: argparse.Namespace) -> None:
    check_report(args.out)
    before = mafx.load_run(args.before) if args.before else mafx.load_bundled()
    models = {"before": before, "after": mafx.load_run(args.after)}
    ways = ways_with(read_config(args.after).loss.get("guidance", 1.0))  # earlier runs lack it
    rows = measure(models, read_examples(args.clips, before.size), ways)
    write_report(args.out, rows, table(rows), draw(rows))


if __name__ == "__main__":
    sys.exit(run_command(NAME, main, make_parser().parse_args()))
