"""How well a model trained on the beginning of one clip draws the rest of it (configs/one_clip.py), beside two answers that need no model: the
reference itself, and the training frame whose render is nearest.

    python benchmarks/one_clip.py --workdir RUNS/clip_temporal
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mafx
from mafx import media
from mafx.data.datasets import find_clips
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.evaluation.protocol import score
from mafx.training.loop import load_workdir, read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    config = read_config(args.workdir)
    options = ExampleOptions(frames=1, size=tuple(config.data.size))
    train, test = (
        read_example(clip, 0, np.arange(clip.frames), options)
        for split in ("train", "test")
        for clip in find_clips(config.data, split)
    )

    reference, truth = train["reference"], test["video"]
    result = mafx.animate(
        load_workdir(args.workdir), reference, test["motion"], steps=args.steps, guidance_scale=args.guidance
    )
    trained, wanted = (read_labels(x["motion"])[0] for x in (train, test))
    nearest = [int((trained != labels).mean((1, 2)).argmin()) for labels in wanted]
    answers = {
        "mafx": media.to_uint8(result.video),
        "nearest render": train["video"][nearest],
        "copying the reference": np.broadcast_to(reference, truth.shape),
    }
    names = ("psnr", "psnr_person", "ssim", "ssim_person")
    print(
        f"{len(nearest)} held-out frames of {config.data.size[0]}x{config.data.size[1]}\n\n| | {' | '.join(names)} |\n|---|{'--:|' * len(names)}"
    )
    for answer, video in answers.items():
        scores = score(video, truth, wanted, trained[0])
        print(f"| {answer} | {' | '.join(f'{scores[name]:.3g}' for name in names)} |")
    out = args.workdir / "held_out.mp4"
    shown = media.side_by_side(reference, test["motion"], answers["mafx"], answers["nearest render"], truth)
    media.write_video(out, shown, media.DEFAULT_FPS)
    print(f"\n{out}: reference | motion | mafx | nearest render | truth")


if __name__ == "__main__":
    main()
