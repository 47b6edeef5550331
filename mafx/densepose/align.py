"""Fitting a driver to a reference: the driver's body is brought to the size and place of the reference's, undistorted.

Both bodies are label maps. Positions are in pixels, x to the right and y down.
"""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mafx.errors import InputError
from mafx.media import Size

ALIGNMENTS = "none", "place", "body"
# The 14 parts whose sizes and places are compared: sides of limbs count, the two labels of one part do not.
PARTS_OF = np.array([0, 1, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9, 8, 9, 10, 11, 10, 11, 12, 13, 12, 13, 14, 14])
TORSO, HEAD = 1, 14
SIZED = (TORSO, HEAD, 6, 7, 10, 11)  # parts whose size hardly depends on the pose: torso, head, upper legs and arms
LEAST_PIXELS = 12  # of a part that counts
MARGIN = 0.08  # of the crop's sides, around everybody


class Box(NamedTuple):
    """A rectangle in pixels; sides need not be whole.

    Attributes:
      left: Smallest x.
      top: Smallest y.
      right: Largest x.
      bottom: Largest y.
    """

    left: float
    top: float
    right: float
    bottom: float

    def around(self, other: "Box") -> "Box":
        """The smallest box around both."""
        low, high = np.minimum(self, other), np.maximum(self, other)
        return Box(*low[:2].tolist(), *high[2:].tolist())


class Body(NamedTuple):
    """What is measured of a body.

    Attributes:
      box: Around it.
      sizes: Square root of the area of each of 15 parts in pixels, nan where it is not seen; the first is nobody's.
      places: Their centres `15 2`, x and y, likewise.
    """

    box: Box
    sizes: np.ndarray
    places: np.ndarray


class Fit(NamedTuple):
    """The driver's pixels in the reference's picture: `scale * (x, y) + shift`.

    Attributes:
      scale: Of lengths.
      shift: x and y, in pixels of the reference's picture.
    """

    scale: float
    shift: np.ndarray

    def move(self, box: Box) -> Box:
        """A box of the driver, in the reference's picture."""
        corners = self.scale * np.array(box) + np.tile(self.shift, 2)
        return Box(*corners.tolist())


def measure(labels: np.ndarray) -> Body | None:
    """Measure the body of a label map `H W`, None where there is none."""
    parts = PARTS_OF[labels].ravel()
    count = PARTS_OF.max() + 1
    areas = np.bincount(parts, minlength=count).astype(float)
    areas[0] = 0
    if not areas.any():
        return None
    y, x = (np.bincount(parts, axis.ravel(), minlength=count) for axis in np.indices(labels.shape))
    areas[areas < LEAST_PIXELS] = np.nan
    places = np.stack([x, y], -1) / areas[:, None]
    rows, columns = (np.flatnonzero(labels.any(axis)) for axis in (1, 0))
    box = Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return Body(box, np.sqrt(areas), places)


def fit_body(reference: np.ndarray, driver: Iterable[np.ndarray], how: str) -> tuple[Fit, Box]:
    """Bring a driver to a reference.

    The scale is the median over parts of how much larger the reference's are, and over the distance from torso to head.
    The driver's parts are medians over its frames, so that one pose decides nothing.

    Args:
      reference: Labels of the reference's picture, `H W`.
      driver: Labels of the driver's frames, `H W` each.
      how: "body" changes size and place, "place" the place only.

    Returns:
      The fit, and the box around all of the driver's bodies in the reference's picture.

    Raises:
      InputError: Nobody is in the reference, or in the driver, or they have no part in common.
    """
    body = measure(reference)
    bodies = [found for found in map(measure, driver) if found is not None]
    if body is None or not bodies:
        where = "the driver" if body else "the reference"
        raise InputError(f"expected a person in {where}, found none; --align none does without")
    sizes, places = (_median([getattr(found, name) for found in bodies]) for name in ("sizes", "places"))
    if how == "body":
        necks = [np.hypot(*(x[HEAD] - x[TORSO])) for x in (body.places, places)]
        ratios = np.append(body.sizes[list(SIZED)] / sizes[list(SIZED)], necks[0] / necks[1])
        scale = float(_median(ratios))
    else:
        scale = 1.0
    common = np.flatnonzero(~np.isnan(body.sizes + sizes))
    middle = [part for part in (TORSO, HEAD) if part in common] or common
    if np.isnan(scale) or not len(middle):
        raise InputError("expected a part of the body that both the reference and the driver show, found none")
    fit = Fit(scale, (body.places[middle] - scale * places[middle]).mean(0))
    return fit, functools.reduce(Box.around, (fit.move(found.box) for found in bodies), body.box)


def _median(x: Any) -> np.ndarray:
    """The median along the first axis of what is no nan; nan where all are."""
    ordered = np.sort(x, axis=0)  # nan comes last
    count = np.maximum((~np.isnan(ordered)).sum(0), 1)
    low, high = (np.take_along_axis(ordered, np.asarray(i)[None], 0)[0] for i in ((count - 1) // 2, count // 2))
    return (low + high) / 2


# -- One crop for both


def common_crop(box: Box, picture: Size, size: Size) -> Box:
    """The part of a reference's picture that both people are shown in.

    It has the proportions of `size` and holds `box` with a margin. Where everybody is in the picture, it stays inside,
    and shows as much of it as it can. Else it reaches beyond.

    Args:
      box: Around the bodies, in the picture's pixels.
      picture: Rows and columns of the picture.
      size: Rows and columns of what is animated.
    """
    aspect = size[1] / size[0]
    left, top, right, bottom = box
    high = max((bottom - top), (right - left) / aspect) * (1 + 2 * MARGIN)
    high = max(high, min(picture[0], picture[1] / aspect))  # as much as the plain crop would show
    centre = (left + right) / 2, (top + bottom) / 2
    x, y = (
        _start(middle, extent, whole, low, up)
        for middle, extent, whole, low, up in zip(
            centre, (high * aspect, high), picture[::-1], (left, top), (right, bottom), strict=True
        )
    )
    return Box(x, y, x + high * aspect, y + high)


def _start(middle: float, extent: float, whole: int, low: float, up: float) -> float:
    """Where an interval begins that is `extent` long and holds `low` to `up`: within 0 to `whole` if that can be."""
    start = middle - extent / 2
    if extent <= whole:
        start = min(max(start, 0.0), whole - extent)
    return min(max(start, up - extent), low)


def cut_picture(picture: np.ndarray, crop: Box, size: Size) -> np.ndarray:
    """What a crop shows of a picture uint8 `H W 3`, brought to `size`; its border goes on where the crop is beyond."""
    height, width = picture.shape[:2]
    low = np.floor(np.minimum([crop.left, crop.top], 0)).astype(int)
    high = np.ceil(np.maximum([crop.right - width, crop.bottom - height], 0)).astype(int)
    wider = np.pad(picture, ((-low[1], high[1]), (-low[0], high[0]), (0, 0)), mode="edge")
    corners = (np.array(crop) - np.tile(low, 2)).clip(0, wider.shape[1::-1] * 2)
    image = Image.fromarray(wider).resize(size[::-1], Image.Resampling.BICUBIC, box=tuple(corners))
    return np.asarray(image)


def cut_labels(labels: np.ndarray, fit: Fit, crop: Box, size: Size) -> np.ndarray:
    """What a crop of the reference's picture shows of a driver's labels `H W`: `size`, 0 beyond the driver's frame."""
    starts, ends = np.array(crop).reshape(2, 2)
    positions = [
        np.floor((start + (np.arange(n) + 0.5) * (end - start) / n - shift) / fit.scale).astype(int)
        for start, end, shift, n in zip(starts, ends, fit.shift, size[::-1], strict=True)
    ]
    x, y = positions
    inside = np.logical_and.outer((y >= 0) & (y < labels.shape[0]), (x >= 0) & (x < labels.shape[1]))
    taken = labels[np.ix_(y.clip(0, labels.shape[0] - 1), x.clip(0, labels.shape[1] - 1))]
    return np.where(inside, taken, 0).astype(np.uint8)
