"""How well a model trained on the beginning of one clip draws the rest of it (configs/one_clip.py), beside two answers that need no model: the
reference itself, and the training frame whose render is nearest.

    pip install scikit-image
    python benchmarks/one_clip.py --workdir RUNS/clip
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mafx
from mafx import media
from mafx.data.datasets import find_clips
from mafx.data.pipeline import Sampling, read_example
from mafx.densepose import read_labels
from mafx.metrics import psnr
from mafx.training.checkpoints import read_parameters
from mafx.training.loop import load_workdir


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of uint8 videos, with Gaussian windows as in its paper (Wang et al., 2004), mean over frames."""
    options = {"channel_axis": -1, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(np.mean([structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--guidance", type=float, default=1.0)
    args = parser.parse_args()
    _, config = read_parameters(args.workdir)
    sampling = Sampling(frames=1, size=tuple(config.data.size))
    train, test = (read_example(clip, 0, np.arange(clip.frames), sampling) for split in ("train", "test") for clip in find_clips(config.data, split))

    model = load_workdir(args.workdir)
    result = mafx.animate(model, train["reference"], test["motion"], guidance_scale=args.guidance)
    labels = [read_labels(x["motion"])[0] for x in (train, test)]
    nearest = [int((labels[0] != wanted).mean((1, 2)).argmin()) for wanted in labels[1]]
    answers = {
        "mafx": media.to_uint8(result.video),
        "nearest render": train["video"][nearest],
        "copying the reference": np.broadcast_to(train["reference"], test["video"].shape),
    }
    person = labels[1] > 0
    print(f"{len(nearest)} held-out frames of {config.data.size[0]}x{config.data.size[1]}\n\n| | PSNR | PSNR, person | SSIM |\n|---|--:|--:|--:|")
    for name, video in answers.items():
        scores = psnr(video, test["video"]), psnr(video, test["video"], person), ssim(video, test["video"])
        print("| {} | {:.2f} | {:.2f} | {:.3f} |".format(name, *scores))
    out = args.workdir / "held_out.mp4"
    shown = media.side_by_side(train["reference"], test["motion"], *[answers[name] for name in ("mafx", "nearest render")], test["video"])
    media.write_video(out, shown, media.DEFAULT_FPS)
    print(f"\n{out}: reference | motion | mafx | nearest render | truth")


if __name__ == "__main__":
    main()
