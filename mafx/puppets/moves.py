"""How a puppet moves, and how it stands at a time."""

import dataclasses
from typing import NamedTuple

import numpy as np

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


# -- How it stands

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


def _direction(swing: float, spread: float) -> np.ndarray:
    """Direction of a hanging limb that swings forward (z) and spreads sideways (x)."""
    return np.array([np.sin(spread) * np.cos(swing), -np.cos(spread) * np.cos(swing), np.sin(swing)])


def rotate_yaw(points: np.ndarray, yaw: float) -> np.ndarray:
    """Points `n 3`, or one, turned by a yaw: from the puppet's axes to those of the world."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
