"""What a puppet looks like, and what is behind it."""

import colorsys
import dataclasses

import numpy as np

HIDDEN = 0.25  # share of the identities whose clothes have another look behind
PATTERNS = {"plain": 0.4, "hoops": 0.15, "stripes": 0.15, "checks": 0.15, "dots": 0.15}
HAIR_STYLES = {"short": 0.4, "long": 0.35, "bun": 0.15, "bald": 0.1}
SLEEVES = {"none": 0.15, "short": 0.45, "long": 0.4}
FLOOR = -0.8  # y where the wall meets the floor
WAVES = 3  # of the wall's texture


def draw_name(rng: np.random.Generator, shares: dict[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


@dataclasses.dataclass(frozen=True)
class Fabric:
    """A cloth with a pattern.

    Attributes:
      ground: Its colour, `3`.
      second: Colour of the pattern.
      pattern: One of `PATTERNS`.
      period: Length in which the pattern repeats.
      emblem: Whether there is a disc of the second colour on the chest, or on the back.
    """

    ground: np.ndarray
    second: np.ndarray
    pattern: str
    period: float
    emblem: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Fabric":
        hues = rng.random(2)
        ground = colorsys.hsv_to_rgb(hues[0], rng.uniform(0.2, 0.9), rng.uniform(0.25, 0.95))
        second = colorsys.hsv_to_rgb(hues[1], rng.uniform(0.1, 0.9), rng.uniform(0.2, 1.0))
        pattern, period, emblem = draw_name(rng, PATTERNS), rng.uniform(0.16, 0.28), bool(rng.random() < 0.3)
        return cls(np.array(ground), np.array(second), pattern, period, emblem and pattern == "plain")

    def colour(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Colours `p 3` of points at `u` across and `v` along the cloth, both `p`."""
        return np.where(self._is_marked(u, v)[:, None], self.second, self.ground)

    def _is_marked(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Which points have the second colour, bool `p`."""
        across, along = np.sin(2 * np.pi / self.period * u), np.sin(2 * np.pi / self.period * v)
        if self.pattern == "hoops":
            return along > 0.2
        if self.pattern == "stripes":
            return across > 0.2
        if self.pattern == "checks":
            return (across > 0) ^ (along > 0)
        if self.pattern == "dots":
            return across + along > 0.9
        return np.zeros(len(u), bool)


@dataclasses.dataclass(frozen=True)
class Garment:
    """A piece of clothing: its fabric where the body's front is, and behind.

    Attributes:
      front: What a viewer sees whom the puppet faces.
      back: What the others see.
    """

    front: Fabric
    back: Fabric

    @classmethod
    def draw(cls, rng: np.random.Generator, hidden: float) -> "Garment":
        front, other, u = Fabric.draw(rng), Fabric.draw(rng), rng.random()
        return cls(front, other if u < hidden else front)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A rectangle on the wall: a picture or a window.

    Attributes:
      box: Left, right, bottom and top.
      border: Colour of its border, `3`.
      inside: Colours at the bottom and at the top, `2 3`.
    """

    box: tuple[float, float, float, float]
    border: np.ndarray
    inside: np.ndarray


@dataclasses.dataclass(frozen=True)
class Background:
    """A wall with light from one side, with frames on it, and a floor.

    Attributes:
      left: Colour of the wall's left end, `3`.
      right: Colour of its right end.
      floor: Colour of the floor.
      waves: Texture of the wall, `k 5`: two components of the direction, phase, amplitude, and hue as an angle.
      frames: What hangs there.
    """

    left: np.ndarray
    right: np.ndarray
    floor: np.ndarray
    waves: np.ndarray
    frames: tuple[Frame, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Background":
        light = rng.uniform(0.45, 0.85)
        left, right, floor = np.clip(light * np.array([[1], [1], [0.7]]) + rng.uniform(-0.1, 0.1, (3, 3)), 0, 1)
        ranges = (-6, 6), (-6, 6), (0, 2 * np.pi), (0.01, 0.025), (0, 2 * np.pi)
        waves = np.stack([rng.uniform(low, high, WAVES) for low, high in ranges], axis=1)
        frames = [_draw_frame(rng, side) for side in (-1, 1) if rng.random() < 0.5]
        return cls(left, right, floor, waves, tuple(frames))


def _draw_frame(rng: np.random.Generator, side: int) -> Frame:
    x, y = side * rng.uniform(0.55, 0.8), rng.uniform(0.15, 0.5)
    width, height = rng.uniform(0.15, 0.3, 2)
    inside = np.sort(rng.uniform(0.1, 1, (2, 3)), axis=0)
    return Frame((x - width, x + width, y - height, y + height), rng.uniform(0.1, 0.9, 3), inside)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a puppet looks like, and what is behind it.

    Attributes:
      skin: Colour, `3`; likewise `eyes`, `lips`, `hair`, `shoes` and `belt`.
      style: Of the hair, one of `HAIR_STYLES`.
      shirt: Of torso and arms.
      sleeves: How far down the arms it goes, one of `SLEEVES`.
      trousers: Of hips and legs.
      shorts: Whether they end above the knees.
      height: Scale of the whole puppet.
      shoulders: Scale of the width of the shoulders; likewise `hips`, and `build` of the limbs' radii.
      head: Scale of the head.
      background: What is behind the puppet.
    """

    skin: np.ndarray
    eyes: np.ndarray
    lips: np.ndarray
    hair: np.ndarray
    style: str
    shirt: Garment
    sleeves: str
    trousers: Garment
    shorts: bool
    belt: np.ndarray
    shoes: np.ndarray
    height: float
    shoulders: float
    hips: float
    build: float
    head: float
    background: Background

    @classmethod
    def from_seed(cls, seed: int, hidden: float = HIDDEN) -> "Identity":
        """Choose an identity. The order of the random draws below is part of the data set.

        Args:
          seed: Of every choice.
          hidden: Share of the garments that look otherwise behind, 0 to 1. No other choice depends on it.
        """
        rng = np.random.default_rng([seed, 3])
        tone, warmth, grey = rng.random(), rng.random(), rng.random()
        skin = (1 - tone) * np.array([0.96, 0.80, 0.69]) + tone * np.array([0.40, 0.26, 0.18])
        brown = (1 - warmth) * np.array([0.10, 0.07, 0.06]) + warmth * np.array([0.75, 0.55, 0.30])
        return cls(
            skin=skin,
            eyes=rng.uniform(0.05, 0.4, 3),
            lips=skin * np.array([0.85, 0.5, 0.5]),
            hair=brown if grey < 0.85 else np.full(3, 0.4 + 2 * (grey - 0.85)),
            style=draw_name(rng, HAIR_STYLES),
            shirt=Garment.draw(rng, hidden),
            sleeves=draw_name(rng, SLEEVES),
            trousers=Garment.draw(rng, hidden),
            shorts=bool(rng.random() < 0.3),
            belt=rng.uniform(0.05, 0.4, 3),
            shoes=rng.uniform(0.05, 0.9, 3),
            height=rng.uniform(0.86, 1.0),
            shoulders=rng.uniform(0.88, 1.15),
            hips=rng.uniform(0.9, 1.15),
            build=rng.uniform(0.9, 1.2),
            head=rng.uniform(0.92, 1.08),
            background=Background.draw(rng),
        )
