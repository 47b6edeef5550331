"""Distances between a video and the truth, by measures that need no network.

Pictures are uint8 `H W 3`. A mask, bool `H W`, selects the pixels that count; without one, all do. Videos and their
masks have a first axis `f`. The published tables follow the protocol of DisCo (arXiv 2307.00040): every measure per
frame, averaged over the frames of a video, then over videos.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mafx.densepose import PARTS

Mask = np.ndarray | None

LARGEST = 255  # value of a channel
SMALLEST_ERROR = 1e-10  # mean square of [0, 1] that bounds PSNR at 100 dB


# -- One picture against another


def l1(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """Mean absolute difference of two pictures.

    Args:
      a: uint8 `H W 3`.
      b: uint8 `H W 3`.
      mask: bool `H W`.

    Returns:
      0 for equal pictures, at most 1.
    """
    return float(_select(np.abs(a.astype(np.int16) - b), mask).mean() / LARGEST)


def l1_published(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """Mean absolute difference as in the published tables: of 255, and divided by `H * W` once more.

    Compare it only between pictures of one size. Arguments as for `l1`.
    """
    return l1(a, b, mask) * LARGEST / (a.shape[-3] * a.shape[-2])


def psnr(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """Peak signal-to-noise ratio in dB, 100 for equal pictures. Arguments as for `l1`."""
    return _decibel(np.square(_select(a.astype(np.float64) - b, mask)))


def psnr_legacy(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """What the published tables call PSNR: differences and squares are bytes, which wrap around at 256.

    It is about 29 dB whatever the pictures are. Arguments as for `l1`.
    """
    difference = _select(a, mask) - _select(b, mask)
    return _decibel((difference * difference).astype(np.float64))


def ssim(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> float:
    """Structural similarity (Wang et al., 2004) of the grey pictures, with uniform windows of 7x7 pixels.

    Args:
      a: uint8 `H W 3`, at least 7x7.
      b: uint8 `H W 3`.
      mask: bool `H W`, selects windows by their centres.

    Returns:
      1 for equal pictures, at least -1.
    """
    from skimage.metrics import structural_similarity  # noqa: PLC0415 (slow to import)

    grey = [np.asarray(Image.fromarray(x).convert("L")) for x in (a, b)]
    mean, local = structural_similarity(*grey, full=True)
    return float(mean if mask is None else local[mask].mean())


# -- One picture by itself


def sharpness(picture: np.ndarray, mask: Mask = None) -> float:
    """Mean difference in brightness between a pixel and its neighbours to the right and below.

    Blur lowers it and noise raises it, so that it says something only beside the truth's.

    Args:
      picture: uint8 `H W 3`.
      mask: bool `H W`, selects pixels that have both neighbours.

    Returns:
      0 for a flat picture, at most 2.
    """
    grey = picture.astype(np.float64).mean(-1) / LARGEST
    change = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    return float(_select(change, None if mask is None else mask[:-1, :-1]).mean())


# -- One video against another


def difference_error(a: np.ndarray, b: np.ndarray, mask: Mask = None) -> np.ndarray:
    """Error of the change from each frame to the next.

    Args:
      a: uint8 `f H W 3`.
      b: uint8 `f H W 3`, the truth.
      mask: bool `f H W`. A pixel counts where both frames show it.

    Returns:
      float64 `f - 1`: mean absolute error of the change, of 1; nan where no pixel counts.
    """
    error = np.abs(np.diff(a.astype(np.int16), axis=0) - np.diff(b.astype(np.int16), axis=0)) / LARGEST
    shown = np.ones(error.shape[:-1], bool) if mask is None else mask[1:] & mask[:-1]
    means = [frame[seen].mean() if seen.any() else np.nan for frame, seen in zip(error, shown, strict=True)]
    return np.array(means)


def flicker(video: np.ndarray, labels: np.ndarray, shown: np.ndarray, least: int = 4) -> float:
    """Change of colour, from frame to frame, of the body parts that the reference does not show.

    Nothing in the reference says what colour these parts have. Only temporal attention can keep it.

    Args:
      video: uint8 `f H W 3`.
      labels: Body parts of `video`, integers `f H W`.
      shown: Labels of the reference, integers of any shape. Their parts are left out.
      least: Number of pixels that a part needs in both frames to count.

    Returns:
      Root mean square change of a part's mean colour, of 1; nan where no part counts.
    """
    changes: list[np.ndarray] = []
    for part in np.setdiff1d(np.arange(1, PARTS), shown):
        masks = labels == part
        colours = [_mean_colour(frame, mask, least) for frame, mask in zip(video, masks, strict=True)]
        pairs = itertools.pairwise(colours)
        changes += [after - before for before, after in pairs if before is not None and after is not None]
    return float(np.sqrt(np.mean(np.square(changes)))) / LARGEST if changes else np.nan


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of the finite values; nan where there are none."""
    array = np.asarray(values)
    finite = array[np.isfinite(array)]
    return float(finite.mean()) if len(finite) else np.nan


def _mean_colour(frame: np.ndarray, mask: np.ndarray, least: int) -> np.ndarray | None:
    return frame[mask].mean(0) if mask.sum() >= least else None


def _select(pixels: np.ndarray, mask: Mask) -> np.ndarray:
    return pixels if mask is None else pixels[mask]


def _decibel(squares: np.ndarray) -> float:
    return float(-10 * np.log10(max(squares.mean() / LARGEST**2, SMALLEST_ERROR)))
