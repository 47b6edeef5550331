"""People in a frame, as every finder of people gives them, and the label map that they are painted into."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Person(NamedTuple):
    """A person that was found in a frame.

    Attributes:
      box: Whole pixels of the frame: x and y of the upper left corner, width, height. A side may be 0.
      labels: uint8 `h w` of that box, 0 to 24.
      score: How sure the finder is, 0 to 1.
    """

    box: tuple[int, int, int, int]
    labels: np.ndarray
    score: float


def whole_box(box: np.ndarray) -> tuple[int, int, int, int]:
    """The whole pixels of a box, as detectron2 has them.

    Args:
      box: float32 `4`: x0 y0 x1 y1 in pixels, inside of the frame.

    Returns:
      x, y, width and height, each without its fraction.
    """
    x0, y0, x1, y1 = np.asarray(box, np.float32)
    return int(x0), int(y0), int(x1 - x0), int(y1 - y0)


def paint(people: Iterable[Person], size: tuple[int, int]) -> np.ndarray:
    """Paint people over one another, in their order.

    Args:
      people: Later ones cover earlier ones, wherever they have a body part.
      size: Rows and columns of the frame. What lies outside is left out.

    Returns:
      Labels, uint8 `H W`.
    """
    canvas = np.zeros(size, np.uint8)
    for (x, y, width, height), labels, _ in people:
        top, left = max(y, 0), max(x, 0)
        target = canvas[top : max(y + height, 0), left : max(x + width, 0)]
        part = labels[top - y :, left - x :][: target.shape[0], : target.shape[1]]
        np.copyto(target, part, where=part > 0)
    return canvas
