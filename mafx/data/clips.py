"""Clips: what training and evaluation read from, whatever the data set. A clip gives any of its frames with their renders."""

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from mafx import media
from mafx.data import puppets
from mafx.densepose import draw_labels
from mafx.errors import InputError


class Clip(Protocol):
    """One person moving in front of one background."""

    name: str
    frames: int
    fps: Fraction

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames and their DensePose renders, both uint8 `f H W 3`, of one size for the whole clip."""
        ...


@dataclasses.dataclass(frozen=True)
class PuppetClip:
    """A clip that is drawn when it is read. Frame 0 of a facing clip is the puppet standing, seen from the front."""

    identity: int
    movement: int
    size: media.Size
    frames: int = 96
    fps: Fraction = Fraction(12)

    @property
    def name(self) -> str:
        return f"puppet{self.identity:06d}-{self.movement:06d}"

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        who, how = puppets.Identity.draw(self.identity), puppets.Movement.draw(self.movement)
        pose = lambda i: puppets.STANDING if i == 0 else how.at(float(i / self.fps))  # noqa: E731
        drawn = [puppets.render(who, pose(int(i)), self.size) for i in indices]
        video, labels = (np.stack(x) for x in zip(*drawn, strict=True))
        return video, draw_labels(labels)


TEST_SEEDS = 1_000_000  # identities and motions from here on are never trained on


def puppet_clips(split: str, count: int, size: media.Size, frames: int = 96) -> list[PuppetClip]:
    """`count` clips, each of an own identity and motion; those of "train" and "test" have none in common."""
    first = {"train": 0, "test": TEST_SEEDS}[split]
    return [PuppetClip(first + i, first + i, size, frames) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class FolderClip:
    """A folder with `images/` and `densepose/`, whose pictures have equal names; frames from `first` to before `last`."""

    path: Path
    first: int = 0
    last: int | None = None
    fps: Fraction = media.DEFAULT_FPS

    def __post_init__(self):
        images, renders = (
            {p.name for p in (self.path / kind).glob("*") if p.suffix in media.PICTURES}
            for kind in ("images", "densepose")
        )
        if not images or images != renders:
            odd = sorted(images ^ renders)
            found = f"only one of them for {', '.join(odd[:3])}" if odd else "none"
            raise InputError(
                f"expected pictures of equal names in {self.path}/images and {self.path}/densepose, found {found}"
            )
        object.__setattr__(self, "_names", sorted(images)[self.first : self.last])

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def frames(self) -> int:
        return len(self._names)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        names = [self._names[i] for i in indices]
        video, motion = (
            np.stack([media.read_image(self.path / kind / name) for name in names]) for kind in ("images", "densepose")
        )
        return video, motion
