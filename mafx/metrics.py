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
from mafx.densepose.capsules import LABELS

Mask = np.ndarray | None

LARGEST = 255  # value of a channel
MOSTLY = 0.75  # share of the trunk from which on a side is the one that is seen
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


def relative_sharpness(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """How sharp a video is as a share of the truth.

    Args:
      a: uint8 `f H W 3`.
      b: uint8 `f H W 3`, the truth.
      mask: bool `f H W`. Frames without a pixel count for nothing.

    Returns:
      1 for the truth, less for blur, more for noise; nan where no pixel counts.
    """
    ours, truth = ([sharpness(x, m) for x, m in zip(video, mask, strict=True) if m[:-1, :-1].any()] for video in (a, b))
    return float(np.mean(ours) / np.mean(truth)) if any(truth) else np.nan


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


def unseen_colours(video: np.ndarray, labels: np.ndarray, shown: np.ndarray, least: int = 4) -> np.ndarray:
    """Mean colours of the body parts that the reference does not show.

    Nothing in the reference says what colour these parts have. Only temporal attention can keep it.

    Args:
      video: uint8 `f H W 3`.
      labels: Body parts of `video`, integers `f H W`.
      shown: Labels of the reference, integers of any shape. Their parts are left out.
      least: Number of pixels that a part needs in a frame to have a colour there.

    Returns:
      float64 `f p 3`, of 1; nan where a part has no colour.
    """
    unseen = np.setdiff1d(np.arange(1, PARTS), shown)
    colours = np.full((len(video), len(unseen), 3), np.nan)
    for f, p in itertools.product(range(len(video)), range(len(unseen))):
        mask = labels[f] == unseen[p]
        if mask.sum() >= least:
            colours[f, p] = video[f][mask].mean(0) / LARGEST
    return colours


def flicker(colours: np.ndarray, pairs: np.ndarray | None = None) -> float:
    """How much the colours of parts change from frame to frame.

    Args:
      colours: Of `unseen_colours`, `f p 3`.
      pairs: Which changes count, bool `f - 1`; None means all.

    Returns:
      Root mean square change, of 1; nan where no part has a colour in two frames in a row.
    """
    changes = np.diff(colours, axis=0)
    return _root_mean_square(changes if pairs is None else changes[pairs])


def drift(colours: np.ndarray, frames: int) -> float:
    """How much the colours of parts change from the beginning of a video to its end.

    Args:
      colours: Of `unseen_colours`, `f p 3`.
      frames: Number of frames at either end, whose mean counts.

    Returns:
      Root mean square change, of 1; nan where no part has a colour at both ends.
    """
    means = [np.ma.masked_invalid(end).mean(0).filled(np.nan) for end in (colours[:frames], colours[-frames:])]
    return _root_mean_square(means[1] - means[0])


def _root_mean_square(changes: np.ndarray) -> float:
    defined = changes[np.isfinite(changes)]
    return float(np.sqrt(np.mean(np.square(defined)))) if len(defined) else np.nan


# -- What a video shows


def facing(labels: np.ndarray) -> str:
    """The side of the body that a frame shows: "front", "side" or "back", by the share of the trunk's pixels.

    Args:
      labels: DensePose's, `H W`.

    Returns:
      The side; "" where no trunk is seen.
    """
    back, front = LABELS["torso"]
    ahead, behind = (labels == front).sum(), (labels == back).sum()
    if ahead + behind == 0:
        return ""
    share = ahead / (ahead + behind)
    if share > MOSTLY:
        return "front"
    return "back" if share < 1 - MOSTLY else "side"


def mean_of_defined(values: Sequence[float]) -> float:
    """Mean of the finite values; nan where there are none."""
    array = np.asarray(values)
    finite = array[np.isfinite(array)]
    return float(finite.mean()) if len(finite) else np.nan


def _select(pixels: np.ndarray, mask: Mask) -> np.ndarray:
    return pixels if mask is None else pixels[mask]


def _decibel(squares: np.ndarray) -> float:
    return float(-10 * np.log10(max(squares.mean() / LARGEST**2, SMALLEST_ERROR)))
