"""A puppet's body: the capsules that it is made of, in a pose, as they stand in the world."""

import dataclasses

import numpy as np

from mafx.densepose.capsules import Capsule
from mafx.puppets.looks import Identity
from mafx.puppets.moves import SIDES, Limb, Pose, Stance, rotate_yaw, stance_of

GROUND = -0.92  # y on which the lower foot stands
HIPS = np.array([0.0, -0.06, 0.0])
CHEST = 0.40  # from the hips, up the spine; likewise:
CHIN = 0.52
KINDS = (
    "head", "hair", "neck", "torso", "hips", "upper_arm", "lower_arm", "hand", "thigh", "shin", "foot",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Piece(Capsule):
    """A capsule of a puppet.

    Attributes:
      kind: What it is painted as, one of `KINDS`.
    """

    kind: str


@dataclasses.dataclass(frozen=True)
class Body:
    """A puppet in a pose.

    Attributes:
      pieces: Its capsules, in the world.
      stance: How it stands.
      scale: Of its own lengths.
      place: Where the origin of its own axes is in the world, `3`.
    """

    pieces: list[Piece]
    stance: Stance
    scale: float
    place: np.ndarray

    def to_own_axes(self, points: np.ndarray) -> np.ndarray:
        """Points `n 3` of the world in the puppet's own axes, in which it looks along z."""
        return rotate_yaw((points - self.place) / self.scale, -self.stance.yaw)


def skeleton(identity: Identity, pose: Pose) -> list[Piece]:
    """The capsules of a puppet in a pose, as they stand in the world."""
    return stand(identity, stance_of(pose)).pieces


def stand(identity: Identity, stance: Stance) -> Body:
    """A puppet that stands in some way."""
    pieces = [*_trunk(identity, stance.up), *_head(identity, stance)]
    for side, sign in SIDES.items():
        pieces += _arm(identity, stance.arms[side], side, sign, HIPS + CHEST * stance.up)
        pieces += _leg(identity, stance.legs[side], side, sign)
    return _place(pieces, identity.height, stance)


def _trunk(identity: Identity, up: np.ndarray) -> list[Piece]:
    """Three columns, which together are flat and narrower at the waist, between shoulders and hips."""
    across, chest = np.array([up[1], -up[0], 0.0]), HIPS + CHEST * up
    wide, narrow = 0.105 * identity.shoulders, 0.07 * (identity.shoulders + identity.hips) / 2
    waist = HIPS + 0.1 * up
    ends = [(waist + x * narrow * across, chest + x * wide * across) for x in (-1, 0, 1)]
    yoke, seat = 0.17 * identity.shoulders * across, 0.085 * identity.hips * across
    shoulders, throat = chest + 0.025 * up, chest + 0.08 * up
    return [
        *(Piece("torso", low, high, (0.092, 0.1), "torso") for low, high in ends),
        Piece("torso", shoulders - yoke, shoulders + yoke, (0.068, 0.068), "torso"),
        Piece("torso", HIPS - seat, HIPS + seat, (0.108, 0.108), "hips"),
        Piece("head", throat, HIPS + CHIN * up, (0.056, 0.056), "neck"),
    ]


def head_axes(stance: Stance) -> np.ndarray:
    """The head's left, up and ahead, as rows in the puppet's own axes, `3 3`."""
    up, nod = stance.up, stance.nod
    across, ahead = np.array([up[1], -up[0], 0.0]), np.array([0.0, 0.0, 1.0])
    return np.stack([across, np.cos(nod) * up + np.sin(nod) * ahead, np.cos(nod) * ahead - np.sin(nod) * up])


def chin_of(stance: Stance) -> np.ndarray:
    """The centre of the chin in the puppet's own axes, `3`."""
    return HIPS + CHIN * stance.up + 0.055 * head_axes(stance)[1]


def _head(identity: Identity, stance: Stance) -> list[Piece]:
    """A skull that is narrower at the chin, and the hair around it, from which the face looks out."""
    _, up, ahead = head_axes(stance)
    size = identity.head
    chin = chin_of(stance)
    crown = chin + 0.09 * size * up
    pieces = [Piece("head", chin, crown, (0.085 * size, 0.112 * size), "head")]
    top = crown + size * (0.018 * up - 0.034 * ahead)
    if identity.style != "bald":
        pieces.append(Piece("head", top - 0.03 * size * up, top, (0.108 * size, 0.124 * size), "hair"))
    if identity.style == "long":
        ends = chin - 0.1 * up - 0.07 * ahead
        pieces.append(Piece("head", top - size * (0.05 * up + 0.01 * ahead), ends, (0.11 * size, 0.07), "hair"))
    if identity.style == "bun":
        bun = top + size * (0.1 * up - 0.05 * ahead)
        pieces.append(Piece("head", bun, bun + 0.01 * up, (0.055 * size, 0.055 * size), "hair"))
    return pieces


def _arm(identity: Identity, arm: Limb, side: str, sign: float, chest: np.ndarray) -> list[Piece]:
    shoulder = chest + np.array([0.215 * identity.shoulders * sign, 0.015, 0])
    elbow = shoulder + 0.26 * arm.upper
    wrist = elbow + 0.23 * arm.lower
    inwards = np.array([-sign, 0, 0.6]) * 0.035
    palm, tips = wrist + 0.02 * arm.lower, wrist + 0.1 * arm.lower
    thumb = palm + 0.035 * arm.lower + inwards
    b = identity.build
    return [
        Piece(f"upper_arm_{side}", shoulder, elbow, (0.066 * b, 0.052 * b), "upper_arm"),
        Piece(f"lower_arm_{side}", elbow, wrist, (0.052 * b, 0.038 * b), "lower_arm"),
        Piece(f"hand_{side}", palm, thumb, (0.03, 0.018), "hand"),
        Piece(f"hand_{side}", palm, tips, (0.04, 0.03), "hand"),
    ]


def _leg(identity: Identity, leg: Limb, side: str, sign: float) -> list[Piece]:
    hip = HIPS + np.array([0.088 * identity.hips * sign, -0.03, 0])
    knee = hip + 0.37 * leg.upper
    ankle = knee + 0.36 * leg.lower
    heel, toes = ankle + np.array([0, -0.045, -0.015]), ankle + np.array([0.03 * sign, -0.055, 0.13])
    b = identity.build
    return [
        Piece(f"thigh_{side}", hip, knee, (0.098 * b, 0.07 * b), "thigh"),
        Piece(f"shin_{side}", knee, ankle, (0.068 * b, 0.045 * b), "shin"),
        Piece(f"foot_{side}", heel, toes, (0.048, 0.04), "foot"),
    ]


def _place(pieces: list[Piece], scale: float, stance: Stance) -> Body:
    """Turn the pieces by the yaw, scale them, and put the lower foot on the ground."""
    lowest = min(min(p.start[1] - p.radii[0], p.end[1] - p.radii[1]) for p in pieces if p.kind == "foot")
    place = np.array([stance.sway, GROUND - scale * lowest, 0.0])
    ends = np.array([(piece.start, piece.end) for piece in pieces]).reshape(-1, 3)
    ends = (scale * rotate_yaw(ends, stance.yaw) + place).reshape(-1, 2, 3)
    placed = [
        Piece(piece.part, start, end, (scale * piece.radii[0], scale * piece.radii[1]), piece.kind)
        for piece, (start, end) in zip(pieces, ends, strict=True)
    ]
    return Body(placed, stance, scale, place)
