"""What does as a person in front of a camera does: a puppet, or the person of a picture. Both are given as labels.

A puppet has limbs of its own lengths, in the person's directions. So a person who is near or far, or whose legs are
behind a table, moves a whole puppet. The person of a picture has the shape that the camera sees, brought to the place
and the size of the picture's person.
"""

from typing import Protocol

import numpy as np

from mafx.densepose.align import Box, Fit, cut_labels, fit_body
from mafx.densepose.bodies import ANKLES, ELBOWS, HIPS, KNEES, SHOULDERS, WRISTS, Skeleton, draw_body, unit
from mafx.densepose.landmarks import Pose
from mafx.densepose.people import paint
from mafx.errors import InputError
from mafx.media import Size
from mafx.puppets import SIDES, STANDING, Identity, Limb, Stance, draw_puppet, label_puppet, rotate_yaw, stance_of

FARTHEST = 0.5  # that a puppet stands to the side, in its units, as far as those that models have seen
UNSEEN, SEEN = 0.2, 0.7  # visibility up to which a limb hangs as it would, and from which on it is believed
AT_EASE = stance_of(STANDING)


class Imitator(Protocol):
    """Draws the labels of who does as a person does."""

    def __call__(self, pose: Pose) -> np.ndarray | None:
        """The labels, uint8 `H W`; None where a pose shows nothing."""
        ...


# -- A puppet


class PuppetImitator:
    """A puppet, as `mafx.puppets` draws it.

    Attributes:
      picture: The puppet, standing, uint8 `H W 3`.
      labels: Its labels, uint8 `H W`.
    """

    def __init__(self, identity: Identity, size: Size):
        self._identity, self._size = identity, size
        self.picture, self.labels = draw_puppet(identity, STANDING, size)

    def __call__(self, pose: Pose) -> np.ndarray:
        return label_puppet(self._identity, imitate(pose), self._size)


def imitate(pose: Pose) -> Stance:
    """How a puppet stands that does as a person does. Limbs that the picture does not show hang down."""
    body = Skeleton(pose)
    yaw = float(np.arctan2(body.front[0], body.front[2]))
    x, _, _ = body.at(*HIPS)
    H, W = pose.size
    return Stance(
        up=unit(rotate_yaw(-body.down, -yaw) * (1, 1, 0)),  # how far a trunk leans to the viewer is not known well
        nod=0.0,
        arms={side: _limb(body, pose, yaw, (SHOULDERS, ELBOWS, WRISTS), AT_EASE.arms, side) for side in SIDES},
        legs={side: _limb(body, pose, yaw, (HIPS, KNEES, ANKLES), AT_EASE.legs, side) for side in SIDES},
        yaw=yaw,
        sway=float(np.clip((2 * x - W) / min(H, W), -FARTHEST, FARTHEST)),
    )


def _limb(
    body: Skeleton, pose: Pose, yaw: float, joints: tuple[tuple[int, int], ...], at_ease: dict[str, Limb], side: str
) -> Limb:
    """A limb between three joints, each a pair of landmarks."""
    start, middle, end = (pair["lr".index(side)] for pair in joints)
    upper = _believe(rotate_yaw(unit(body.span(start, middle)), -yaw), at_ease[side].upper, pose.visibility[middle])
    lower = _believe(rotate_yaw(unit(body.span(middle, end)), -yaw), at_ease[side].lower, pose.visibility[end])
    return Limb(upper, lower)


def _believe(found: np.ndarray, otherwise: np.ndarray, visibility: float) -> np.ndarray:
    """A direction between two, by how well it is seen."""
    share = np.clip((visibility - UNSEEN) / (SEEN - UNSEEN), 0, 1)
    return unit(share * found + (1 - share) * otherwise)


# -- The person of a picture


class PersonImitator:
    """The person of a picture, to whose place and size the first body that is seen is brought."""

    def __init__(self, labels: np.ndarray):
        """`labels` are those of the picture, uint8 `H W`, all 0 where nobody is in it."""
        self._labels = labels
        self._fit: Fit | None = None

    def __call__(self, pose: Pose) -> np.ndarray | None:
        person = draw_body(pose)
        if person is None:
            return None
        seen = paint([person], pose.size)
        if self._fit is None:
            self._fit = _fit(self._labels, seen)
        H, W = self._labels.shape
        return cut_labels(seen, self._fit, Box(0, 0, W, H), (H, W))


def _fit(labels: np.ndarray, seen: np.ndarray) -> Fit:
    """How a body comes to the place of another one; where they have nothing in common, the middles of both pictures."""
    try:
        return fit_body(labels, [seen], "body")[0]
    except InputError:
        (H, W), (h, w) = labels.shape, seen.shape
        scale = max(H / h, W / w)
        return Fit(scale, np.array([W - scale * w, H - scale * h]) / 2)
