"""Puppets: drawn people with exact DensePose labels, for examples, tests and training without any download.

A puppet is a skeleton in space that wears tapered capsules. It turns around, and so shows its back, about which its
front says nothing. Two seeds decide what it looks like (`Identity`) and how it moves (`Movement`), independently.

World axes: x to the right of the picture, y up, z towards the viewer. One unit is half of the picture's shorter side.
Lengths below are in these units, angles in radians, colours RGB in [0, 1]. A puppet that faces the viewer has its
right hand at the left of the picture.
"""

import colorsys
import dataclasses
from typing import NamedTuple

import numpy as np

from mafx.densepose.capsules import HEAD, LABELS, Capsule, bounding_box, project
from mafx.media import Size, to_uint8

# Mean and reach of each angle of a pose.
JOINTS = {
    "arm_r": (0, 0.9), "arm_l": (0, 0.9), "raise_r": (0.5, 0.6), "raise_l": (0.5, 0.6),
    "elbow_r": (0.7, 0.6), "elbow_l": (0.7, 0.6), "leg_r": (0, 0.5), "leg_l": (0, 0.5), "spread": (0.1, 0.1),
    "knee_r": (0.35, 0.3), "knee_l": (0.35, 0.3), "lean": (0, 0.12), "nod": (0, 0.2), "sway": (0, 0.4),
}  # fmt: skip

# Joint angles, "yaw" (0 faces the viewer), and "sway", a length: how far to the side the puppet stands.
Pose = dict[str, float]

STANDING: Pose = dict.fromkeys(JOINTS, 0.0) | {
    "raise_r": 0.35,
    "raise_l": 0.35,
    "elbow_r": 0.2,
    "elbow_l": 0.2,
    "spread": 0.12,
    "yaw": 0.0,
}


# -- What a puppet looks like


@dataclasses.dataclass(frozen=True)
class Cloth:
    """A fabric, possibly with a pattern.

    Attributes:
      front: Colour of the body's front, `3`.
      back: Colour of the body's back.
      second: Colour of the pattern.
      pattern: "plain", "hoops" around the limb, "stripes" along it, or "dots".
      repeats: Number of times that the pattern repeats.
    """

    front: np.ndarray
    back: np.ndarray
    second: np.ndarray
    pattern: str
    repeats: float

    def colour(self, along: np.ndarray, around: np.ndarray, front: np.ndarray) -> np.ndarray:
        """Colours at `p` points of a limb's surface.

        Args:
          along: Position along the limb, `p`, 0 to 1.
          around: Angle from the body's front, `p`.
          front: Whether the point is at the body's front, bool `p`.

        Returns:
          float64 `p 3`.
        """
        base = np.where(front[:, None], self.front, self.back)
        if self.pattern == "plain":
            return base
        position = around / np.pi if self.pattern == "stripes" else along
        wave = np.sin(2 * np.pi * (position * self.repeats))
        marked = wave > 0.3
        if self.pattern == "dots":
            marked = (wave > 0) & (np.sin(2 * self.repeats * around) > 0)
        return np.where(marked[:, None], self.second, base)


@dataclasses.dataclass(frozen=True)
class Background:
    """A wall, whose colour changes from left to right and in waves, and a floor.

    Attributes:
      left: Colour of the wall's left end, `3`.
      right: Colour of its right end.
      floor: Colour of the floor.
      waves: `k 5`: two components of the direction, phase, amplitude, and hue as an angle.
    """

    left: np.ndarray
    right: np.ndarray
    floor: np.ndarray
    waves: np.ndarray

    def colour(self, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
        """Colours, float32 `H W 3`, at rows `ys` and columns `xs`, both in world units."""
        across = ((xs + 1) / 2).clip(0, 1)[None, :, None]
        picture = np.broadcast_to((1 - across) * self.left + across * self.right, (len(ys), len(xs), 3))
        picture = picture.astype(np.float32)
        for kx, ky, phase, amplitude, hue in self.waves.astype(np.float32):
            wave = amplitude * np.sin(kx * xs[None, :] + ky * ys[:, None] + phase)
            picture = picture + wave[..., None] * np.cos(hue + np.arange(3, dtype=np.float32))
        ground = ys < -0.8
        picture[ground] = self.floor + 0.3 * (picture[ground] - picture.mean((0, 1)))
        return picture


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a puppet looks like, and what is behind it.

    Attributes:
      skin: Colour, `3`; likewise `hair` and `shoes`.
      shirt: Cloth of torso and upper arms; of lower arms too, with `long_sleeves`.
      trousers: Cloth of thighs and shins.
      height: Scale of the whole puppet; `width` scales the trunk, and `head` the head.
    """

    skin: np.ndarray
    hair: np.ndarray
    shirt: Cloth
    trousers: Cloth
    shoes: np.ndarray
    long_sleeves: bool
    long_hair: bool
    height: float
    width: float
    head: float
    background: Background

    @classmethod
    def from_seed(cls, seed: int) -> "Identity":
        """Choose an identity. The order of the random draws below is part of the data set."""
        rng = np.random.default_rng([seed, 1])

        def colour(low: float, high: float) -> np.ndarray:
            return rng.uniform(low, high, 3)

        def vivid() -> np.ndarray:
            return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 1), rng.uniform(0.4, 1)))

        def cloth() -> Cloth:
            front, second, other = vivid(), vivid(), vivid()
            pattern = str(rng.choice(["plain", "hoops", "stripes", "dots"], p=[1 / 2, 1 / 6, 1 / 6, 1 / 6]))
            return Cloth(front, front if rng.random() < 0.75 else other, second, pattern, rng.uniform(1, 2.5))

        tone = rng.uniform(0, 1)
        wall = rng.uniform(0.4, 0.8)
        ranges = (-9, 9), (-9, 9), (0, 2 * np.pi), (0.02, 0.05), (0, 2 * np.pi)
        waves = np.stack([rng.uniform(low, high, 4) for low, high in ranges], axis=1)
        return cls(
            skin=(1 - tone) * np.array([0.96, 0.80, 0.69]) + tone * np.array([0.36, 0.22, 0.15]),
            hair=colour(0.02, 0.7),
            shirt=cloth(),
            trousers=cloth(),
            shoes=colour(0.05, 0.8),
            long_sleeves=bool(rng.random() < 0.5),
            long_hair=bool(rng.random() < 0.5),
            height=rng.uniform(0.86, 1.0),
            width=rng.uniform(0.8, 1.25),
            head=rng.uniform(0.9, 1.15),
            background=Background(
                wall + colour(-0.1, 0.1), wall + colour(-0.1, 0.1), 0.7 * wall + colour(-0.1, 0.1), waves
            ),
        )


# -- How it moves


@dataclasses.dataclass(frozen=True)
class Movement:
    """How a puppet moves: every angle is a sum of two sines of time, and the whole body turns.

    Attributes:
      offset: Mean of each angle, in the order of `JOINTS`.
      amplitude: Of each angle and sine, `angles 2`.
      frequency: In Hz, `angles 2`.
      phase: `angles 2`.
      turn: First yaw, its speed per second, and the amplitude of its swing.
    """

    offset: np.ndarray
    amplitude: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray
    turn: tuple[float, float, float]

    @classmethod
    def from_seed(cls, seed: int) -> "Movement":
        """Choose a movement. The order of the random draws below is part of the data set."""
        rng = np.random.default_rng([seed, 2])
        mean, reach = np.array(list(JOINTS.values())).T
        shape = (len(JOINTS), 2)
        turning = rng.random() < 0.6
        speed = float(rng.choice([-1, 1]) * rng.uniform(0.8, 2.2)) if turning else 0.0
        return cls(
            offset=mean + rng.uniform(-0.3, 0.6, len(JOINTS)) * reach,
            amplitude=reach[:, None] * rng.uniform(0.2, 0.7, shape),
            frequency=rng.uniform(0.25, 1.1, shape),
            phase=rng.uniform(0, 2 * np.pi, shape),
            turn=(float(rng.uniform(-0.5, 0.5)), speed, float(rng.uniform(0, 0.5))),
        )

    def pose_at(self, seconds: float) -> Pose:
        """The pose at a time."""
        angles = self.offset + (self.amplitude * np.sin(2 * np.pi * self.frequency * seconds + self.phase)).sum(1)
        start, speed, swing = self.turn
        pose = dict(zip(JOINTS, angles.tolist(), strict=True))
        return pose | {"yaw": start + speed * seconds + swing * np.sin(2.1 * seconds)}


# -- Skeleton

SIDES = {"r": -1.0, "l": 1.0}  # the puppet's right is at negative x


class Limb(NamedTuple):
    """Where the two parts of an arm or a leg point: unit vectors `3`."""

    upper: np.ndarray
    lower: np.ndarray


class Stance(NamedTuple):
    """Where the limbs point, in the puppet's own axes, in which it looks along z.

    Attributes:
      up: Direction of the spine, `3`.
      nod: Angle of the head.
      arms: By side.
      legs: By side.
      yaw: As in a pose, as `sway`.
      sway: To the side.
    """

    up: np.ndarray
    nod: float
    arms: dict[str, Limb]
    legs: dict[str, Limb]
    yaw: float
    sway: float


def stance_of(pose: Pose) -> Stance:
    """Where the limbs of a pose point."""
    lean = pose["lean"]
    return Stance(
        up=np.array([np.sin(lean), np.cos(lean), 0.0]),
        nod=pose["nod"],
        arms={side: _arm_of(pose, side, sign) for side, sign in SIDES.items()},
        legs={side: _leg_of(pose, side, sign) for side, sign in SIDES.items()},
        yaw=pose["yaw"],
        sway=pose["sway"],
    )


def _arm_of(pose: Pose, side: str, sign: float) -> Limb:
    swing, lift, bend = pose[f"arm_{side}"], pose[f"raise_{side}"], max(0.0, pose[f"elbow_{side}"])
    return Limb(_direction(swing, lift * sign), _direction(swing + bend, lift * sign * 1.3))


def _leg_of(pose: Pose, side: str, sign: float) -> Limb:
    swing, spread, bend = pose[f"leg_{side}"], abs(pose["spread"]) * sign, max(0.0, pose[f"knee_{side}"])
    return Limb(_direction(swing, spread), _direction(swing - bend, spread))


def skeleton(identity: Identity, pose: Pose) -> list[Capsule]:
    """The capsules of a puppet in a pose, as they stand in the world."""
    return stand(identity, stance_of(pose))


def stand(identity: Identity, stance: Stance) -> list[Capsule]:
    """The capsules of a puppet that stands in some way, in the world."""
    up, hips = stance.up, np.array([0.0, -0.08, 0.0])
    chest = hips + 0.42 * up
    capsules = [*_torso(identity, hips, chest), _head(identity, hips + 0.56 * up, up, stance.nod)]
    for side, sign in SIDES.items():
        capsules += _arm(identity, stance.arms[side], side, sign, chest)
        capsules += _leg(identity, stance.legs[side], side, sign, hips)
    return _place(capsules, identity.height, stance)


def _torso(identity: Identity, hips: np.ndarray, chest: np.ndarray) -> list[Capsule]:
    """Three columns, which together are flat."""
    w = identity.width
    columns = [np.array([x * w, 0, 0]) for x in (-0.11, 0.0, 0.11)]
    radii = 0.105 * w**0.5, 0.115 * w**0.5
    return [Capsule("torso", hips + 0.8 * column, chest + 1.1 * column, radii) for column in columns]


def _head(identity: Identity, neck: np.ndarray, up: np.ndarray, nod: float) -> Capsule:
    crown = neck + (0.14 + 0.02 * np.cos(nod)) * identity.head * up + np.array([0, 0, 0.06 * np.sin(nod)])
    return Capsule("head", neck + 0.03 * up, crown, (0.07, 0.14 * identity.head))


def _arm(identity: Identity, arm: Limb, side: str, sign: float, chest: np.ndarray) -> list[Capsule]:
    upper, lower = arm
    shoulder = chest + np.array([0.24 * identity.width * sign, 0.02, 0])
    elbow = shoulder + 0.26 * upper
    wrist = elbow + 0.22 * lower
    return [
        Capsule(f"upper_arm_{side}", shoulder, elbow, (0.085, 0.07)),
        Capsule(f"lower_arm_{side}", elbow, wrist, (0.07, 0.055)),
        Capsule(f"hand_{side}", wrist + 0.02 * lower, wrist + 0.06 * lower, (0.06, 0.055)),
    ]


def _leg(identity: Identity, leg: Limb, side: str, sign: float, hips: np.ndarray) -> list[Capsule]:
    hip = hips + np.array([0.11 * identity.width * sign, -0.04, 0])
    knee = hip + 0.36 * leg.upper
    ankle = knee + 0.34 * leg.lower
    heel, toes = ankle + np.array([0, -0.02, 0]), ankle + np.array([0, -0.045, 0.12])
    return [
        Capsule(f"thigh_{side}", hip, knee, (0.115 * identity.width**0.5, 0.09)),
        Capsule(f"shin_{side}", knee, ankle, (0.09, 0.065)),
        Capsule(f"foot_{side}", heel, toes, (0.06, 0.05)),
    ]


def _direction(swing: float, spread: float) -> np.ndarray:
    """Direction of a hanging limb that swings forward (z) and spreads sideways (x)."""
    return np.array([np.sin(spread) * np.cos(swing), -np.cos(spread) * np.cos(swing), np.sin(swing)])


def _place(capsules: list[Capsule], scale: float, stance: Stance) -> list[Capsule]:
    """Turn the capsules by the yaw, scale them, and put them on the floor, which any standing puppet's feet touch."""
    shift = np.array([stance.sway, -0.92 + 0.86 * scale, 0])
    return [
        Capsule(
            capsule.part,
            rotate_yaw(capsule.start, stance.yaw) * scale + shift,
            rotate_yaw(capsule.end, stance.yaw) * scale + shift,
            (capsule.radii[0] * scale, capsule.radii[1] * scale),
        )
        for capsule in capsules
    ]


def rotate_yaw(points: np.ndarray, yaw: float) -> np.ndarray:
    """Points `n 3`, or one, turned by a yaw: from the puppet's axes to those of the world."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])


# -- Drawing


def draw_puppet(identity: Identity, pose: Pose | Stance, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Draw a puppet in a pose, in parallel projection.

    Args:
      identity: What the puppet looks like.
      pose: How it stands.
      size: Rows and columns in pixels.

    Returns:
      The picture, uint8 `H W 3`, and its DensePose labels, uint8 `H W`, 0 where the background shows.
    """
    stance = pose if isinstance(pose, Stance) else stance_of(pose)
    ys, xs = _pixel_centres(size)
    picture = identity.background.colour(ys, xs)
    labels = np.zeros(size, np.uint8)
    depth = np.full(size, -np.inf, np.float32)  # z of the nearest surface so far
    forward, left = rotate_yaw(np.array([[0.0, 0, 1], [1.0, 0, 0]]), stance.yaw).astype(np.float32)
    for capsule in stand(identity, stance):
        box = bounding_box(capsule, ys, xs)
        surface = project(capsule, ys[box[0], None], xs[None, box[1]])
        seen = (surface.height > 0) & (surface.z > depth[box])
        if not seen.any():
            continue
        depth[box][seen] = surface.z[seen]
        normal = surface.normal(seen)
        label, colour = _paint(identity, capsule.part, surface.along[seen], normal, forward, left)
        labels[box][seen] = label
        picture[box][seen] = colour * (0.7 + 0.3 * normal[:, 2:])  # light comes from the viewer
    return to_uint8(picture), labels


def _pixel_centres(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """World coordinates of rows and columns, float32."""
    H, W = size
    unit = min(H, W) / 2  # pixels
    ys = (H / 2 - 0.5 - np.arange(H)) / unit
    xs = (np.arange(W) - W / 2 + 0.5) / unit
    return ys.astype(np.float32), xs.astype(np.float32)


def _paint(
    identity: Identity, part: str, along: np.ndarray, normal: np.ndarray, forward: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labels `p` and colours `p 3` of points with normals `p 3`; `forward` and `left` are the body's directions."""
    ahead, sideways = normal @ forward, normal @ left
    if part == "head":
        label = np.where(sideways > 0, HEAD["left"], HEAD["right"])
        return label, _head_colour(identity, along, normal[:, 1], ahead, sideways)
    back, front = LABELS[part]
    label = np.where(ahead > 0, front, back)
    return label, _body_colour(identity, part, along, np.arctan2(sideways, ahead), ahead > 0)


def _head_colour(
    identity: Identity, along: np.ndarray, up: np.ndarray, ahead: np.ndarray, sideways: np.ndarray
) -> np.ndarray:
    """Skin with hair, eyes and mouth, placed by the three components of the normal."""
    long_hair = (ahead < -0.1) | (up > 0.55)
    short_hair = ((ahead < -0.35) & (up > -0.3)) | (up > 0.65)
    hairy = (long_hair if identity.long_hair else short_hair) & (along > 0.3)  # not on the neck
    eyes = (ahead > 0.5) & (np.abs(np.abs(sideways) - 0.38) < 0.13) & (np.abs(up - 0.12) < 0.12) & (along > 0.5)
    mouth = (ahead > 0.6) & (np.abs(sideways) < 0.25) & (np.abs(up + 0.45) < 0.08) & (along > 0.3)
    colour = np.where(hairy[:, None], identity.hair, identity.skin)
    colour = np.where(eyes[:, None], [0.05, 0.05, 0.1], colour)
    return np.where(mouth[:, None], [0.65, 0.15, 0.15], colour)


def _body_colour(identity: Identity, part: str, along: np.ndarray, around: np.ndarray, front: np.ndarray) -> np.ndarray:
    kind = part.rsplit("_", 1)[0]
    if kind == "foot":
        return np.broadcast_to(identity.shoes, (len(along), 3))
    if kind == "hand" or (kind == "lower_arm" and not identity.long_sleeves):
        return np.broadcast_to(identity.skin, (len(along), 3))
    cloth = identity.trousers if kind in ("thigh", "shin") else identity.shirt
    return cloth.colour(along, around, front)
