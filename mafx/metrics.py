"""How far a video is from the truth, by measures that need no network.

Pictures are uint8 `H W 3`; a mask, bool `H W`, says which pixels count (all of them without one). Videos have a first axis `f`. The published
protocol is DisCo's (arXiv 2307.00040), which MagicAnimate's tables follow: every measure per frame, averaged over frames, then over videos.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

from mafx.densepose import PARTS

Mask = np.ndarray | None


def l1(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """Mean absolute difference, of 1."""
    return float(_where(np.abs(a.astype(np.int16) - b), mask).mean() / 255)


def l1_published(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """Mean absolute difference, of 255, divided by the picture's number of pixels once more: to be compared at equal sizes only."""
    return l1(a, b, mask) * 255 / (a.shape[-3] * a.shape[-2])


def psnr(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """Peak signal-to-noise ratio in dB; 100 where nothing differs."""
    return _decibel(np.square(_where(a.astype(np.float64) - b, mask)))


def psnr_legacy(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """What the published tables call PSNR: differences and squares of bytes, which wrap around at 256. About 29 dB whatever the pictures."""
    difference = _where(a, mask) - _where(b, mask)
    return _decibel((difference * difference).astype(np.float64))


def ssim(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """Structural similarity of the grey pictures, windows of 7x7, all pixels of a window alike; a mask chooses the windows by their centres."""
    grey = [np.asarray(Image.fromarray(x).convert("L")) for x in (a, b)]
    mean, local = structural_similarity(*grey, full=True)
    return float(mean if mask is None else local[mask].mean())


def difference_error(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> np.ndarray:
    """How far the change from each frame to the next is from the true change: float64 `f - 1`, mean absolute difference, of 1.

    Of a mask `f H W` the pixels count that it shows in both frames.
    """
    error = np.abs(np.diff(a.astype(np.int16), axis=0) - np.diff(b.astype(np.int16), axis=0)) / 255
    both = np.ones(error.shape[:-1], bool) if mask is None else mask[1:] & mask[:-1]
    return np.array([frame[seen].mean() if seen.any() else np.nan for frame, seen in zip(error, both, strict=True)])


def flicker(video: np.ndarray, labels: np.ndarray, shown: np.ndarray, least: int = 4) -> float:
    """How much the colours of surfaces jump that the reference has never `shown` (its labels `H W`): nothing but memory can keep them.

    The root mean square change, of 1, from frame to frame of a body part's mean colour, over the parts that are not among those of the reference and
    have at least so many pixels in both frames; nan where there are none. `labels` are the video's, `f H W`.
    """
    jumps = []
    for part in np.setdiff1d(np.arange(1, PARTS), shown):
        colours = [
            frame[seen].mean(0) if seen.sum() >= least else None
            for frame, seen in zip(video, labels == part, strict=True)
        ]
        jumps += [y - x for x, y in itertools.pairwise(colours) if x is not None and y is not None]
    return float(np.sqrt(np.mean(np.square(jumps)))) / 255 if jumps else np.nan


def mean_of_defined(values: Sequence[float]) -> float:
    """The mean of those that are not nan; nan where there are none."""
    values = np.asarray(values)[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def _where(x: np.ndarray, mask: Mask) -> np.ndarray:
    return x if mask is None else x[mask]


def _decibel(squares: np.ndarray) -> float:
    return float(-10 * np.log10(max(squares.mean() / 255**2, 1e-10)))
