"""A mirror: camera frames of a person in, pictures out of somebody else who does the same.

Every frame goes through by itself: the landmark networks look where the person was in the frame before, the pose is
drawn as labels, and the program of one frame is run, whose banks were written when the mirror was opened. A window of
the last frames in place of one frame costs as many times more and is hardly better: see docs/mirror.md.
"""

import dataclasses
import time
from typing import NamedTuple

import numpy as np

from mafx.data.clips import TEST_SEEDS
from mafx.densepose import draw_labels
from mafx.densepose.bodies import draw_body
from mafx.densepose.landmarks import PoseTracker
from mafx.densepose.people import paint
from mafx.densepose.pose_files import PoseFiles
from mafx.densepose.pose_networks import PoseNetworks
from mafx.media import fit, to_uint8
from mafx.model import Model
from mafx.program import plan
from mafx.puppets import Identity
from mafx.settings import Settings
from mafx.web.imitation import Imitator, PersonImitator, PuppetImitator

SLOWEST, FASTEST = 1.0, 60.0  # frames per second that the smoothing is told of


class Seconds(NamedTuple):
    """What a frame took.

    Attributes:
      pose: To find the person's landmarks.
      labels: To draw the labels.
      networks: To animate.
    """

    pose: float = 0.0
    labels: float = 0.0
    networks: float = 0.0


class Shown(NamedTuple):
    """What a mirror shows.

    Attributes:
      picture: uint8 `H W 3`. While nobody is seen, it is the last one.
      found: Whether somebody is seen.
      seconds: What it took.
    """

    picture: np.ndarray
    found: bool
    seconds: Seconds


class Mirror:
    """What all who look into mirrors have in common: the networks, compiled for one frame.

    Attributes:
      program: Animates one frame.
      networks: Find landmarks.
    """

    def __init__(self, model: Model, files: PoseFiles, settings: Settings):
        """Args:
        model: What animates.
        files: The landmark networks.
        settings: How to animate. The window is one frame, whatever they say.
        """
        alone = dataclasses.replace(settings, window=1, overlap=0)
        self.program = plan(model, alone, frames=1)
        self.networks = PoseNetworks(files)

    def open_on_puppet(self, seed: int) -> "Reflection":
        """A mirror that shows a puppet. Its first picture is animated, so that everything is compiled.

        Args:
          seed: Of a puppet that no bundled model was trained on, as in sample.py.
        """
        puppet = PuppetImitator(Identity.from_seed(TEST_SEEDS + seed), self.program.size)
        return Reflection(self, puppet.picture, puppet.labels, puppet)

    def open_on_person(self, picture: np.ndarray) -> "Reflection":
        """A mirror that shows the person of a picture, uint8 `H W 3`, likewise."""
        picture = fit(picture, self.program.size)
        people = [draw_body(pose) for pose in PoseTracker(self.networks, tracking=False)(picture)]
        labels = paint([person for person in people if person is not None], self.program.size)
        return Reflection(self, picture, labels, PersonImitator(labels))


class Reflection:
    """What one person sees in a mirror. It is used by one thread at a time."""

    def __init__(self, mirror: Mirror, reference: np.ndarray, labels: np.ndarray, imitator: Imitator):
        """Args:
        mirror: What all have in common.
        reference: Who is shown, uint8 `H W 3`.
        labels: Their labels, uint8 `H W`.
        imitator: Gives them for other poses.
        """
        self._program, self._imitate = mirror.program, imitator
        self._follow = PoseTracker(mirror.networks)
        self._appearance = self._program.see(reference)
        self._last: float | None = None  # when a frame came
        self.picture = self._animate(labels)

    def show(self, frame: np.ndarray) -> Shown:
        """What the mirror shows.

        Args:
          frame: What the camera sees, uint8 `h w 3`. People expect to see its mirror image, and it is turned to that.
        """
        began = time.perf_counter()
        self._note_time(began)
        poses = self._follow(np.ascontiguousarray(frame[:, ::-1]))
        found = time.perf_counter()
        labels = self._imitate(poses[0]) if poses else None
        if labels is None:
            return Shown(self.picture, False, Seconds(pose=found - began))
        drawn = time.perf_counter()
        self.picture = self._animate(labels)
        return Shown(self.picture, True, Seconds(found - began, drawn - found, time.perf_counter() - drawn))

    def _note_time(self, now: float) -> None:
        """Cameras and machines are as fast as they are: the smoothing goes by the clock."""
        if self._last is not None:
            self._follow.fps = float(np.clip(1 / max(now - self._last, 1e-6), SLOWEST, FASTEST))
        self._last = now

    def _animate(self, labels: np.ndarray) -> np.ndarray:
        return to_uint8(self._program.move(self._appearance, draw_labels(labels)[None])[0])
