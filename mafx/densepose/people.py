"""People as a detector gives them, and how they are painted into one label map."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mafx.media import Size


class Person(NamedTuple):
    """The labels of one person.

    Attributes:
      box: Left, top, width and height in pixels of the picture; it may reach beyond the picture.
      labels: uint8 `h w` of the box, 0 to 24.
      score: How sure the detector is, 0 to 1.
    """

    box: tuple[int, int, int, int]
    labels: np.ndarray
    score: float


def paint(people: Iterable[Person], size: Size) -> np.ndarray:
    """Draw people over one another: later ones over earlier ones, while label 0 hides nobody.

    Args:
      people: In the order of drawing.
      size: Rows and columns of the picture.

    Returns:
      The label map, uint8 `H W`.
    """
    H, W = size
    picture = np.zeros(size, np.uint8)
    for (x, y, w, h), labels, _ in people:
        left, top = min(max(x, 0), W), min(max(y, 0), H)
        right, bottom = max(min(x + w, W), left), max(min(y + h, H), top)
        region = picture[top:bottom, left:right]
        if not region.size:
            continue
        inside = labels[top - y : bottom - y, left - x : right - x]
        np.copyto(region, inside, where=inside > 0)
    return picture
