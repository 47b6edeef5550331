"""Clips: what training and evaluation read, whatever the data set.

A clip gives any of its frames with their renders.
"""

import dataclasses
import urllib.parse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from mafx import media
from mafx.densepose import draw_labels
from mafx.errors import InputError
from mafx.puppets import HIDDEN, STANDING, Identity, Movement, Pose, draw_puppet
from mafx.stamps import hash_of

TEST_SEEDS = 1_000_000  # identities and movements from here on are never trained on
FIRST_SEEDS = {"train": 0, "test": TEST_SEEDS, "images": 2 * TEST_SEEDS}
PUPPET_FRAMES = 96
HALVES = ("images", "densepose")  # folders of a clip's frames and of their renders
PLAIN = " #+,=@()[]"  # kept in names of files, beside letters, digits and "-._~"


class Clip(Protocol):
    """One person who moves in front of one background."""

    @property
    def name(self) -> str:
        """Unique within the data set."""
        ...

    @property
    def frames(self) -> int:
        """Number of frames."""
        ...

    @property
    def fps(self) -> Fraction:
        """Frames per second."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with what the clip shows, as far as names and sizes of files tell."""
        ...

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read some frames.

        Args:
          indices: Integers `f`, in any order, also repeated.

        Returns:
          The frames and their renders, both uint8 `f H W 3`, of one size for the whole clip.
        """
        ...

    def read_motion(self, indices: np.ndarray) -> np.ndarray:
        """The renders of `read`, without decoding the frames."""
        ...


def file_name(clip: Clip) -> str:
    """A name for a file about a clip: of one part, not hidden, another one for each clip of a data set."""
    name = urllib.parse.quote(clip.name, safe=PLAIN)
    return f"%2E{name[1:]}" if name.startswith(".") else name


def fingerprint_clips(clips: Sequence[Clip]) -> str:
    """Changes with the clips of a data set, their order, and what they show."""
    return hash_of([clip.fingerprint for clip in clips])


@dataclasses.dataclass(frozen=True)
class PuppetClip:
    """A clip of a puppet, drawn when it is read. At its first moment the puppet stands still and faces the viewer.

    Attributes:
      identity: Seed of what the puppet looks like.
      movement: Seed of how it moves.
      size: Rows and columns in pixels.
      frames: Number of frames.
      hidden: Share of the garments that look otherwise behind.
      first: Moment of the first frame, in frames.
      fps: Frames per second.
    """

    identity: int
    movement: int
    size: media.Size
    frames: int = PUPPET_FRAMES
    hidden: float = HIDDEN
    first: int = 0
    fps: Fraction = Fraction(12)

    @property
    def name(self) -> str:
        moment = f"-{self.first}" if self.first else ""
        return f"puppet{self.identity:06d}-{self.movement:06d}{moment}"

    @property
    def fingerprint(self) -> str:
        return hash_of([self.name, self.size, self.frames, self.hidden, str(self.fps)])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        identity = Identity.from_seed(self.identity, self.hidden)
        movement = Movement.from_seed(self.movement)

        def pose(moment: int) -> Pose:
            return STANDING if moment == 0 else movement.pose_at(float(moment / self.fps))

        drawn = [draw_puppet(identity, pose(self.first + int(i)), self.size) for i in indices]
        video, labels = (np.stack(pictures) for pictures in zip(*drawn, strict=True))
        return video, draw_labels(labels)

    def read_motion(self, indices: np.ndarray) -> np.ndarray:
        return self.read(indices)[1]


def puppet_clips(
    split: str, count: int, size: media.Size, frames: int = PUPPET_FRAMES, hidden: float = HIDDEN
) -> list[PuppetClip]:
    """Make clips, each with an identity and a movement of its own.

    Args:
      split: "train" or "test", which have no identity and no movement in common.
      count: Number of clips.
      size: Rows and columns in pixels.
      frames: Frames of each clip.
      hidden: Share of the garments that look otherwise behind, 0 to 1.

    Returns:
      The clips. They are drawn when they are read.
    """
    first = FIRST_SEEDS[split]
    return [PuppetClip(first + i, first + i, size, frames, hidden) for i in range(count)]


def puppet_images(count: int, size: media.Size, hidden: float = HIDDEN) -> list[PuppetClip]:
    """Make pictures: clips of one frame, each of an identity of its own that is neither in "train" nor in "test"."""
    first = FIRST_SEEDS["images"]
    moments = (1 + i % (PUPPET_FRAMES - 1) for i in range(count))
    return [PuppetClip(first + i, first + i, size, 1, hidden, moment) for i, moment in enumerate(moments)]


@dataclasses.dataclass(frozen=True)
class FolderClip:
    """A folder with `images/` and `densepose/`, in which a frame and its render have the same name.

    Names are in natural order, so that frame 2 comes before frame 10. Hidden files are ignored.

    Attributes:
      path: The folder.
      first: Index of the first frame that belongs to the clip.
      last: Index behind the last one; None takes all.

    Raises:
      InputError: The pictures of the two folders are not the same, or none of them belongs to the clip.
    """

    path: Path
    first: int = 0
    last: int | None = None
    fps: Fraction = media.DEFAULT_FPS
    _names: tuple[str, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        images, renders = ([p.name for p in media.picture_files(self.path / half)] for half in HALVES)
        if not images or images != renders:
            odd = sorted({*images} ^ {*renders}, key=media.natural_order)
            reason = f"only one of them for {', '.join(odd[:3])}" if odd else "none"
            raise InputError(
                f"expected pictures of equal names in {self.path}/images and {self.path}/densepose, found {reason}"
            )
        names = tuple(images[self.first : self.last])
        if not names:
            raise InputError(f"expected more than {self.first} frames in {self.path}, found {len(images)}")
        object.__setattr__(self, "_names", names)  # how a frozen dataclass sets a field

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def frames(self) -> int:
        return len(self._names)

    @property
    def fingerprint(self) -> str:
        sizes = [[(self.path / half / name).stat().st_size for half in HALVES] for name in self._names]
        return hash_of([self._names, sizes, self.first])

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        video, motion = self._read(indices, HALVES)
        return video, motion

    def read_motion(self, indices: np.ndarray) -> np.ndarray:
        (motion,) = self._read(indices, HALVES[1:])
        return motion

    def _read(self, indices: np.ndarray, halves: Sequence[str]) -> list[np.ndarray]:
        names = [self._names[i] for i in indices]
        pictures = [[media.read_image(self.path / half / name) for name in names] for half in halves]
        if len(sizes := {picture.shape for half in pictures for picture in half}) > 1:
            found = media.list_sizes(sizes)
            raise InputError(f"expected frames and renders of one size in {self.path}, found {found}")
        return [np.stack(half) for half in pictures]
