"""Bodies made of tapered capsules, seen in parallel projection: which pixel sees which part, how near, and from where.

Axes are x along the rows of the picture, y along its columns, either way, and z towards the viewer. Lengths are in any
unit.
"""

import dataclasses

import numpy as np

# DensePose's labels of the back and the front of each part; of arms, of the sides that T-poses show behind and before.
# The two halves of the head are left and right instead.
LABELS = {
    "torso": (1, 2), "hand_r": (3, 3), "hand_l": (4, 4), "foot_l": (5, 5), "foot_r": (6, 6),
    "thigh_r": (7, 9), "thigh_l": (8, 10), "shin_r": (11, 13), "shin_l": (12, 14),
    "upper_arm_l": (15, 17), "upper_arm_r": (16, 18), "lower_arm_l": (19, 21), "lower_arm_r": (20, 22),
}  # fmt: skip
HEAD = {"right": 23, "left": 24}


@dataclasses.dataclass(frozen=True)
class Capsule:
    """A tapered limb between two points `xyz`, with a radius at each."""

    part: str
    start: np.ndarray
    end: np.ndarray
    radii: tuple[float, float]


def bounding_box(capsule: Capsule, ys: np.ndarray, xs: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that the capsule can touch. Rows `ys` go down, columns `xs` up, in the capsule's unit."""
    (ax, ay, _), (bx, by, _) = capsule.start, capsule.end
    reach = max(capsule.radii)
    rows = np.searchsorted(-ys, [-max(ay, by) - reach, -min(ay, by) + reach])
    columns = np.searchsorted(xs, [min(ax, bx) - reach, max(ax, bx) + reach])
    return slice(*rows), slice(*columns)


@dataclasses.dataclass(frozen=True)
class Surface:
    """What each pixel of a box sees of a capsule; arrays `h w`.

    Attributes:
      along: Position of the nearest point of the axis, 0 at the start, 1 at the end.
      radius: Radius there.
      dx: Distance to the right of that point.
      dy: Distance above it.
      height: Square of the surface's distance in front of the axis; negative where the pixel misses the capsule.
      z: Of the surface.
    """

    along: np.ndarray
    radius: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    height: np.ndarray
    z: np.ndarray

    def normal(self, seen: np.ndarray) -> np.ndarray:
        """Unit normals `p 3` of the pixels that the mask `seen` selects."""
        front = np.sqrt(self.height[seen])
        radius = self.radius[seen]
        return np.stack([self.dx[seen] / radius, self.dy[seen] / radius, front / radius], -1)


def along_axis(start: np.ndarray, end: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Where on an axis, 0 to 1, the point is that lies nearest in the picture to places at `y` and `x`.

    Args:
      start: Of one axis `xyz`, or of an axis for each place, `p xyz`.
      end: Likewise.
      y: Of the places.
      x: Likewise; the result has the shape of both together.
    """
    ax, ay, bx, by = start[..., 0], start[..., 1], end[..., 0], end[..., 1]
    length = np.maximum((bx - ax) ** 2 + (by - ay) ** 2, 1e-6)  # in the picture, squared; 0 if seen end on
    return np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1)


def project(capsule: Capsule, y: np.ndarray, x: np.ndarray) -> Surface:
    """The surface of a capsule over rows `y`, `h 1`, and columns `x`, `1 w`."""
    (ax, ay, az), (bx, by, bz) = capsule.start, capsule.end
    first, last = capsule.radii
    along = along_axis(capsule.start, capsule.end, y, x)
    radius = first + along * (last - first)
    dx = x - ax - along * (bx - ax)
    dy = y - ay - along * (by - ay)
    height = radius * radius - dx * dx - dy * dy
    z = az + along * (bz - az) + np.sqrt(np.maximum(height, 0))
    return Surface(along, radius, dx, dy, height, z)
