"""What fewer steps, guidance in an interval of times, and reuse between steps cost in quality: on held-out puppets, by the model in the box.

    pip install matplotlib
    python benchmarks/speed_quality.py --out docs/speed_quality

writes a picture, a table and the figures as JSON. Every way starts from the same noise. 25 DDIM steps, guided throughout, are what the others are
compared with, and the truth is what all are compared with.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from tqdm.auto import tqdm

import mafx
from mafx import media
from mafx.bundled import bundled_config
from mafx.data.clips import puppet_clips
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.metrics import psnr
from mafx.training.loop import load_workdir

FULL = {"sampler": "ddim", "steps": 25}
WAYS = {  # by what is changed: each a line of the picture
    "DDIM": [{"steps": n} for n in (25, 15, 10, 8, 4, 2)],
    "DPM-Solver++ 2M": [{"sampler": "dpmpp_2m", "steps": n} for n in (15, 10, 8, 4)],
    "Euler": [{"sampler": "euler", "steps": n} for n in (15, 10, 8, 4)],
    "guided below time": [{"guidance_interval": (0, high)} for high in (800, 600, 400)],
    "guided from time": [{"guidance_interval": (low, 1000)} for low in (200, 400, 600)],
    "reuse": [{"reuse": n} for n in (2, 3, 5)],
    "reuse, DPM-Solver++ 2M": [{"sampler": "dpmpp_2m", "steps": 15, "reuse": n} for n in (2, 3)],
}
SCORES = ("to 25 steps", "to the truth", "to the truth, person")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="without an ending")
    parser.add_argument("--workdir", type=Path, help="of another model of puppets than the one in the box")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=2.0)
    args = parser.parse_args()
    model = load_workdir(args.workdir) if args.workdir else mafx.load_bundled()
    size = tuple(bundled_config().data.size)
    examples = [
        read_example(clip, 0, 1 + np.arange(16), ExampleOptions(size=size))
        for clip in puppet_clips("test", args.clips, size)
    ]
    ways = [(line, FULL | changes) for line, all_changes in WAYS.items() for changes in all_changes]
    whole, rows = None, []
    for line, settings in tqdm(ways, unit="way"):
        videos, seconds = zip(
            *(animate(model, example, settings | {"guidance_scale": args.guidance}) for example in examples),
            strict=True,
        )
        whole = whole or videos
        scores = np.mean([score(*each) for each in zip(videos, whole, examples, strict=True)], axis=0)
        took = statistics.median(seconds[1:])  # the first one compiles
        rows.append({"line": line, **settings, "seconds": took} | dict(zip(SCORES, scores.tolist(), strict=True)))
    args.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(rows))
    draw(rows).savefig(args.out.with_suffix(".png"), dpi=110)
    print(table(rows))


def animate(model: mafx.Model, example: dict, settings: dict) -> tuple[np.ndarray, float]:
    """The video and how long it took, from pictures to frames."""
    began = time.perf_counter()
    animation = mafx.animate(model, example["reference"], example["motion"], progress=False, **settings)
    return media.to_uint8(animation.video), time.perf_counter() - began


def score(video: np.ndarray, whole: np.ndarray, example: dict) -> list[float]:
    """SCORES, means over frames in dB."""
    person = read_labels(example["motion"])[0] > 0
    mean = lambda of, truth, masks: np.mean([psnr(*each) for each in zip(of, truth, masks, strict=True)])  # noqa: E731
    nowhere = [None] * len(video)
    return [mean(video, whole, nowhere), mean(video, example["video"], nowhere), mean(video, example["video"], person)]


def table(rows: list[dict]) -> str:
    """Markdown. Speed is relative to the first row, in which nothing is saved."""
    lines = [
        "| | sampler | steps | guided times | reuse | faster | PSNR to 25 steps | to the truth | person |",
        "|---|---|--:|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        low, high = row.get("guidance_interval", (0, 1000))
        scores = " | ".join("" if row[name] >= 100 else f"{row[name]:.2f}" for name in SCORES)
        faster = rows[0]["seconds"] / row["seconds"]
        lines.append(
            f"| {row['line']} | {row['sampler']} | {row['steps']} | {low} to {high} | {row.get('reuse', 1)} | {faster:.2f} x | {scores} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict]) -> plt.Figure:
    """Quality over speed, a line per kind of saving."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, name in zip(axes, (SCORES[0], SCORES[2]), strict=True):
        for line in WAYS:
            mine = [row for row in rows if row["line"] == line and row[name] < 100]
            axis.plot(
                [rows[0]["seconds"] / row["seconds"] for row in mine],
                [row[name] for row in mine],
                "o-",
                label=line,
                markersize=4,
            )
        axis.axvline(1, color="grey", linewidth=0.5)
        axis.set(xscale="log", xlabel="times faster than 25 DDIM steps", ylabel=f"PSNR {name}, dB")
        axis.grid(alpha=0.3, which="both")
    axes[1].axhline(rows[0][SCORES[2]], color="grey", linewidth=0.5)
    axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
