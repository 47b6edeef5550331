"""How well a model that was trained on the beginning of one clip draws the rest of it, see configs/one_clip.py.

    python -m mafx.experiments.one_clip --workdir RUNS/clip_temporal

Two answers that need no model stand beside it: the reference itself, and the training frame whose render is nearest. A
table is printed, and RUNS/clip_temporal/held_out.mp4 shows the videos side by side.
"""

import argparse
import sys
from pathlib import Path

import ml_collections
import numpy as np

import mafx
from mafx import media
from mafx.commands import Parser, run_command
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.evaluation.protocol import score
from mafx.tables import markdown_table
from mafx.training.runs import load_run, read_config

NAME = "python -m mafx.experiments.one_clip"
MEASURES = ("psnr", "psnr_person", "ssim", "ssim_person")
MODEL, NEAREST, COPYING = "mafx", "nearest render", "copying the reference"


def read_part(config: ml_collections.ConfigDict, split: str) -> dict[str, np.ndarray]:
    """All frames of the clip's training part or of its held-out part, each part with its first frame as reference."""
    (clip,) = find_clips(config.data, split)
    rows, columns = config.data.size
    return read_example(clip, 0, np.arange(clip.frames), ExampleOptions(frames=1, size=(rows, columns)))


def nearest_renders(trained: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """For labels `f H W` of each held-out frame, the training frame that differs from it in the fewest pixels."""
    return np.array([(trained != labels).mean((1, 2)).argmin() for labels in held_out])


def answer(args: argparse.Namespace, train: dict, test: dict, nearest: np.ndarray) -> dict[str, np.ndarray]:
    """The videos of the model and of both answers without one, uint8 `f H W 3`."""
    reference = train["reference"]
    animation = mafx.animate(
        load_run(args.workdir), reference, test["motion"], steps=args.steps, guidance_scale=args.guidance
    )
    return {
        MODEL: media.to_uint8(animation.video),
        NEAREST: train["video"][nearest],
        COPYING: np.broadcast_to(reference, test["video"].shape),
    }


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="Work folder of the run.")
    add("--guidance", type=float, default=1.0, help="Guidance scale (default 1).")
    add("--steps", type=int, default=2, help="Number of sampler steps (default 2).")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    config = read_config(args.workdir)
    train, test = read_part(config, "train"), read_part(config, "test")
    trained_labels, labels = (read_labels(part["motion"])[0] for part in (train, test))
    answers = answer(args, train, test, nearest_renders(trained_labels, labels))

    rows = []
    for name, video in answers.items():
        scores = score(video, test["video"], labels=labels, reference_labels=trained_labels[0])
        rows.append([name, *(f"{scores[measure]:.3g}" for measure in MEASURES)])
    H, W = config.data.size
    print(f"{len(labels)} held-out frames of {H}x{W}\n\n{markdown_table(('', *MEASURES), rows)}")

    out = args.workdir / "held_out.mp4"
    shown = media.side_by_side(train["reference"], test["motion"], answers[MODEL], answers[NEAREST], test["video"])
    media.write_video(out, shown, media.DEFAULT_FPS)
    print(f"{out}: reference | motion | {MODEL} | {NEAREST} | truth")


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
