"""Puppets: procedurally drawn people with exact DensePose renders, for examples, tests and training without any download.

A puppet is a skeleton in space, dressed in tapered capsules; it turns around, so that its back becomes visible, which its front says nothing about.
What it looks like (`Identity`) and how it moves (`Movement`) are drawn independently from seeds. World axes: x right in the image, y up, z towards
the viewer; one unit is half the image. A puppet that faces the viewer has its right hand at the left of the image.
"""

import colorsys
import dataclasses

import numpy as np

# Labels of the back and the front of each part, as DensePose numbers them; the head is halved left and right.
LABELS = {
    "torso": (1, 2), "hand_r": (3, 3), "hand_l": (4, 4), "foot_l": (5, 5), "foot_r": (6, 6),
    "thigh_r": (7, 9), "thigh_l": (8, 10), "shin_r": (11, 13), "shin_l": (12, 14),
    "upper_arm_l": (15, 17), "upper_arm_r": (16, 18), "lower_arm_l": (19, 21), "lower_arm_r": (20, 22),
}  # fmt: skip
HEAD = {"right": 23, "left": 24}


@dataclasses.dataclass(frozen=True)
class Cloth:
    """A fabric: colours of front and back, and a pattern of stripes along or around the limb, or dots, in a second colour."""

    front: np.ndarray
    back: np.ndarray
    second: np.ndarray
    pattern: str
    repeats: float

    def colour(self, along: np.ndarray, around: np.ndarray, front: np.ndarray) -> np.ndarray:
        """Colours `p 3` at surface coordinates `p`: `along` in [0, 1], `around` in radians from the body's front."""
        phase = {"plain": 0 * along, "hoops": along, "stripes": around / np.pi, "dots": along}[
            self.pattern
        ] * self.repeats
        marked = np.sin(2 * np.pi * phase) > 0.3
        if self.pattern == "dots":
            marked = (np.sin(2 * np.pi * phase) > 0) & (np.sin(2 * self.repeats * around) > 0)
        base = np.where(front[:, None], self.front, self.back)
        return np.where(marked[:, None], self.second, base)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a puppet looks like, and what stands behind it."""

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
    background: tuple[
        np.ndarray, ...
    ]  # colours of the wall's two ends, of the floor, and waves `k 5`: direction, phase, amplitude, hue

    @classmethod
    def draw(cls, seed: int) -> "Identity":
        rng = np.random.default_rng([seed, 1])

        def colour(low: float, high: float) -> np.ndarray:
            return rng.uniform(low, high, 3)

        def vivid() -> np.ndarray:
            return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 1), rng.uniform(0.4, 1)))

        def cloth() -> Cloth:
            front, second, other = vivid(), vivid(), vivid()
            pattern = str(rng.choice(["plain", "hoops", "stripes", "dots"], p=[1 / 2, 1 / 6, 1 / 6, 1 / 6]))
            return Cloth(front, front if rng.random() < 0.75 else other, second, pattern, rng.uniform(1, 2.5))

        tone, wall = rng.uniform(0, 1), rng.uniform(0.4, 0.8)
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
            background=(wall + colour(-0.1, 0.1), wall + colour(-0.1, 0.1), 0.7 * wall + colour(-0.1, 0.1), waves),
        )


@dataclasses.dataclass(frozen=True)
class Movement:
    """How a puppet moves: every joint angle is a sum of two sines of time, and the whole body turns."""

    offset: np.ndarray  # per angle
    amplitude: np.ndarray  # per angle and sine
    frequency: np.ndarray  # likewise, in Hz
    phase: np.ndarray
    turn: tuple[float, float, float]  # start, radians per second, swing

    ANGLES = (
        "arm_r",
        "arm_l",
        "raise_r",
        "raise_l",
        "elbow_r",
        "elbow_l",
        "leg_r",
        "leg_l",
        "spread",
        "knee_r",
        "knee_l",
        "lean",
        "nod",
        "sway",
    )

    @classmethod
    def draw(cls, seed: int) -> "Movement":
        rng = np.random.default_rng([seed, 2])
        offset = np.array([0, 0, 0.5, 0.5, 0.7, 0.7, 0, 0, 0.1, 0.35, 0.35, 0, 0, 0])
        reach = np.array([0.9, 0.9, 0.6, 0.6, 0.6, 0.6, 0.5, 0.5, 0.1, 0.3, 0.3, 0.12, 0.2, 0.4])
        shape = (len(offset), 2)
        turning = rng.random() < 0.6
        speed = float(rng.choice([-1, 1]) * rng.uniform(0.8, 2.2)) if turning else 0.0
        return cls(
            offset=offset + rng.uniform(-0.3, 0.6, len(offset)) * reach,
            amplitude=reach[:, None] * rng.uniform(0.2, 0.7, shape),
            frequency=rng.uniform(0.25, 1.1, shape),
            phase=rng.uniform(0, 2 * np.pi, shape),
            turn=(float(rng.uniform(-0.5, 0.5)), speed, float(rng.uniform(0, 0.5))),
        )

    def at(self, seconds: float) -> dict[str, float]:
        """Joint angles in radians, and "sway", how far to the side the puppet stands; "yaw" is 0 where the puppet faces the viewer."""
        angles = self.offset + (self.amplitude * np.sin(2 * np.pi * self.frequency * seconds + self.phase)).sum(1)
        start, speed, swing = self.turn
        named = dict(zip(self.ANGLES, angles.tolist(), strict=True))
        return named | {"yaw": start + speed * seconds + swing * np.sin(2.1 * seconds)}


@dataclasses.dataclass(frozen=True)
class Capsule:
    """A tapered limb between two points `xyz`, in camera space, and the directions of the body's front and left there."""

    part: str
    start: np.ndarray
    end: np.ndarray
    radii: tuple[float, float]


def _rotate_yaw(points: np.ndarray, yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return points @ np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])


def skeleton(identity: Identity, angles: dict[str, float]) -> list[Capsule]:
    """The capsules of a pose, turned by its yaw and scaled to fit the image."""
    w = identity.width
    lean, nod = angles["lean"], angles["nod"]
    hips, up = np.array([0.0, -0.08, 0.0]), np.array([np.sin(lean), np.cos(lean), 0.0])
    chest, neck = hips + 0.42 * up, hips + 0.56 * up
    parts = []

    def add(part: str, start: np.ndarray, end: np.ndarray, *radii: float) -> None:
        parts.append((part, start, end, radii))

    for x in (-0.11, 0.0, 0.11):  # three columns make a flat torso
        side = np.array([x * w, 0, 0])
        add("torso", hips + 0.8 * side, chest + 1.1 * side, 0.105 * w**0.5, 0.115 * w**0.5)
    crown = neck + (0.14 + 0.02 * np.cos(nod)) * identity.head * up + np.array([0, 0, 0.06 * np.sin(nod)])
    add("head", neck + 0.03 * up, crown, 0.07, 0.14 * identity.head)

    for s, sign in (("r", -1.0), ("l", 1.0)):  # the puppet's right is the viewer's left
        shoulder = chest + np.array([0.24 * w * sign, 0.02, 0])
        swing, lift, bend = angles[f"arm_{s}"], angles[f"raise_{s}"], angles[f"elbow_{s}"]
        upper = _limb(swing, lift * sign)
        lower = _limb(swing + max(0.0, bend), lift * sign * 1.3)
        elbow = shoulder + 0.26 * upper
        wrist = elbow + 0.22 * lower
        add(f"upper_arm_{s}", shoulder, elbow, 0.085, 0.07)
        add(f"lower_arm_{s}", elbow, wrist, 0.07, 0.055)
        add(f"hand_{s}", wrist + 0.02 * lower, wrist + 0.06 * lower, 0.06, 0.055)

        hip = hips + np.array([0.11 * w * sign, -0.04, 0])
        swing, bend = angles[f"leg_{s}"], max(0.0, angles[f"knee_{s}"])
        thigh, shin = _limb(swing, abs(angles["spread"]) * sign), _limb(swing - bend, abs(angles["spread"]) * sign)
        knee = hip + 0.36 * thigh
        ankle = knee + 0.34 * shin
        add(f"thigh_{s}", hip, knee, 0.115 * w**0.5, 0.09)
        add(f"shin_{s}", knee, ankle, 0.09, 0.065)
        add(f"foot_{s}", ankle + np.array([0, -0.02, 0]), ankle + np.array([0, -0.045, 0.12]), 0.06, 0.05)

    scale = identity.height
    floor = np.array(
        [angles["sway"], -0.92 + 0.86 * scale, 0]
    )  # the feet of a standing puppet touch the floor whatever its height
    place = lambda p: _rotate_yaw(p, angles["yaw"]) * scale + floor  # noqa: E731
    return [
        Capsule(part, place(start), place(end), tuple(r * scale for r in radii)) for part, start, end, radii in parts
    ]


def _limb(swing: float, spread: float) -> np.ndarray:
    """Direction of a hanging limb: swung forward (z) and spread sideways (x)."""
    return np.array([np.sin(spread) * np.cos(swing), -np.cos(spread) * np.cos(swing), np.sin(swing)])


def render(identity: Identity, angles: dict[str, float], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a pose: the picture, uint8 `H W 3`, and its DensePose labels, uint8 `H W` (0 where the background shows)."""
    H, W = size
    unit = min(H, W) / 2  # pixels
    ys, xs = (
        ((H / 2 - 0.5 - np.arange(H)) / unit).astype(np.float32),
        ((np.arange(W) - W / 2 + 0.5) / unit).astype(np.float32),
    )
    picture = _background(identity, ys, xs)
    labels = np.zeros(size, np.uint8)
    depth = np.full(size, -np.inf, np.float32)
    forward, left = _rotate_yaw(np.array([[0.0, 0, 1], [1.0, 0, 0]]), angles["yaw"]).astype(np.float32)
    for capsule in skeleton(identity, angles):
        (ax, ay, az), (bx, by, bz), (ra, rb) = capsule.start, capsule.end, capsule.radii
        reach = max(ra, rb)
        rows = slice(*np.searchsorted(-ys, [-max(ay, by) - reach, -min(ay, by) + reach]))
        columns = slice(*np.searchsorted(xs, [min(ax, bx) - reach, max(ax, bx) + reach]))
        y, x = ys[rows, None], xs[None, columns]
        dx, dy = bx - ax, by - ay
        s = np.clip(((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        radius = ra + s * (rb - ra)
        nx, ny = x - ax - s * dx, y - ay - s * dy
        height = radius * radius - nx * nx - ny * ny  # of the surface over the axis, squared
        z = az + s * (bz - az) + np.sqrt(np.maximum(height, 0))
        seen = (height > 0) & (z > depth[rows, columns])
        if not seen.any():
            continue
        depth[rows, columns][seen] = z[seen]
        r = radius[seen]
        normal = np.stack([nx[seen] / r, ny[seen] / r, np.sqrt(height[seen]) / r], -1)
        ahead, sideways = normal @ forward, normal @ left
        if capsule.part == "head":
            label = np.where(sideways > 0, HEAD["left"], HEAD["right"])
            colour = _head_colour(identity, s[seen], normal[:, 1], ahead, sideways)
        else:
            back, front = LABELS[capsule.part]
            label = np.where(ahead > 0, front, back)
            colour = _body_colour(identity, capsule.part, s[seen], np.arctan2(sideways, ahead), ahead > 0)
        labels[rows, columns][seen] = label
        picture[rows, columns][seen] = colour * (0.7 + 0.3 * normal[:, 2:])
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), labels


def _background(identity: Identity, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    left, right, floor, waves = identity.background
    across = ((xs + 1) / 2).clip(0, 1)[None, :, None]
    picture = np.broadcast_to((1 - across) * left + across * right, (len(ys), len(xs), 3)).astype(np.float32)
    for kx, ky, phase, amplitude, hue in waves.astype(np.float32):
        picture = picture + amplitude * np.sin(kx * xs[None, :] + ky * ys[:, None] + phase)[..., None] * np.cos(
            hue + np.arange(3, dtype=np.float32)
        )
    ground = ys < -0.8
    picture[ground] = floor + 0.3 * (picture[ground] - picture.mean((0, 1)))
    return picture


def _head_colour(
    identity: Identity, along: np.ndarray, up: np.ndarray, ahead: np.ndarray, sideways: np.ndarray
) -> np.ndarray:
    hairy = (ahead < -0.1) | (up > 0.55) if identity.long_hair else (ahead < -0.35) & (up > -0.3) | (up > 0.65)
    hairy &= along > 0.3  # not the neck
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


STANDING = dict.fromkeys(Movement.ANGLES, 0.0) | {
    "raise_r": 0.35,
    "raise_l": 0.35,
    "elbow_r": 0.2,
    "elbow_l": 0.2,
    "spread": 0.12,
    "yaw": 0.0,
}
