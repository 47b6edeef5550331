"""Landmarks of people in a video: where each network looks, who is who from frame to frame, and smoothing.

A person is looked for once. From then on, the next frame's crop comes from the landmarks of this frame, until the
person is lost. Numbers without a remark are those of mediapipe's graphs in `modules/pose_landmark`
(`pose_detection_to_roi`, `pose_landmarks_to_roi`, `pose_landmark_filtering`) and of its
`util/filtering/one_euro_filter.cc`.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.special import expit

from mafx.densepose.pose_networks import DETECTION_SIDE, LANDMARK_SIDE, CropLandmarks, PoseNetworks
from mafx.media import Size

BODY = 33  # landmarks that are used; the next two say where the next crop is
MARGIN = 1.25  # side of a crop over the diameter of the circle around a person
LEAST_PRESENCE = 0.5  # below which a person is lost
NEAR = 0.15  # distance between two people's hips, over the side of a crop, below which they are one (ours)
FPS = 25.0  # where nothing else is said


class Crop(NamedTuple):
    """A turned square of a picture, in which a person stands upright.

    Attributes:
      centre: x and y, `2`; pixels are counted from their centres, here and below, as mediapipe does.
      side: In pixels.
      angle: By which the square is turned clockwise, in radians.
    """

    centre: np.ndarray
    side: float
    angle: float

    @classmethod
    def around(cls, hips: np.ndarray, reach: np.ndarray) -> "Crop":
        """The crop for a person between whose hips is one point, and who reaches as far as another one, both `2`."""
        x, y = reach - hips
        return cls(hips, 2 * MARGIN * float(np.hypot(x, y)), float(np.arctan2(x, -y)))

    @property
    def axes(self) -> np.ndarray:
        """Directions of the square's rows and columns, in pixels, as rows of `2 2`."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.side * np.array([[cos, sin], [-sin, cos]])

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Pixels of points `n 2` in units of the side."""
        return (points - 0.5) @ self.axes + self.centre

    def from_picture(self, points: np.ndarray) -> np.ndarray:
        """Points `n 2` in units of the side, of pixels `n 2`."""
        return (points - self.centre) @ self.axes.T / self.side**2 + 0.5

    def cut(self, picture: np.ndarray, pixels: int, repeat: bool) -> np.ndarray:
        """What the square shows.

        Args:
          picture: uint8 `H W 3`.
          pixels: Side of the result.
          repeat: Whether the picture's border goes on beyond it; else there is black.

        Returns:
          float32 `pixels pixels 3` in [0, 1].
        """
        axes, origin = self.axes / pixels, self.to_picture(np.zeros((1, 2)))[0]
        shown = warp(picture, pixels, pixels, axes, origin)
        if repeat:
            _repeat_border(shown, picture, axes, origin)
        return shown.astype(np.float32) / 255

    def paste(self, mask: np.ndarray, box: tuple[int, int, int, int], step: int) -> np.ndarray:
        """What a box of the picture shows of an array in the square, the inverse of `cut`.

        Args:
          mask: float32 `n n`.
          box: Left, top, width and height in pixels, multiples of `step` in size.
          step: Distance between the pixels that are wanted.

        Returns:
          float32, `height / step` by `width / step`; 0 outside of the square.
        """
        left, top, width, height = box
        first = np.array([left, top]) + (step - 1) / 2
        origin, right, down = self.from_picture(first + np.array([(0, 0), (step, 0), (0, step)])) * len(mask)
        return warp(mask, height // step, width // step, np.stack([right - origin, down - origin]), origin)


def warp(picture: np.ndarray, height: int, width: int, axes: np.ndarray, origin: Iterable[float]) -> np.ndarray:
    """Sample a picture, bilinearly, on a grid that is turned and scaled; 0 outside of it.

    Args:
      picture: uint8 `H W 3` or float32 `H W`.
      height: Rows of the result.
      width: Its columns.
      axes: The steps from a pixel of the result to the next one in a row and in a column, as rows `2 2` of x and y.
      origin: x and y of the result's first pixel in the picture.

    Returns:
      As `picture`, `height width ...`.
    """
    (right_x, right_y), (down_x, down_y) = axes
    x, y = np.asarray(origin) + 0.5 - (axes[0] + axes[1]) / 2  # Pillow counts from the corners of pixels
    matrix = right_x, down_x, x, right_y, down_y, y
    image = Image.fromarray(picture)
    return np.array(image.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))


def _repeat_border(shown: np.ndarray, picture: np.ndarray, axes: np.ndarray, origin: np.ndarray) -> None:
    """Let places of `warp`'s result that lie beyond the picture have the colours of its border. It changes `shown`."""
    H, W = picture.shape[:2]
    steps = np.arange(len(shown), dtype=np.float32)
    axes, origin = axes.astype(np.float32), origin.astype(np.float32)
    x, y = (origin[i] + axes[0, i] * steps + axes[1, i] * steps[:, None] for i in (0, 1))
    beyond = (x < 0) | (y < 0) | (x > W - 1) | (y > H - 1)
    x, y = x[beyond].clip(0, W - 1), y[beyond].clip(0, H - 1)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right, bottom = np.minimum(left + 1, W - 1), np.minimum(top + 1, H - 1)
    across, down = (x - left)[:, None], (y - top)[:, None]
    colours = picture.reshape(H * W, 3)
    above = colours.take(top * W + left, 0) * (1 - across) + colours.take(top * W + right, 0) * across
    below = colours.take(bottom * W + left, 0) * (1 - across) + colours.take(bottom * W + right, 0) * across
    shown[beyond] = (above * (1 - down) + below * down + 0.5).astype(np.uint8)


# -- Smoothing


class OneEuro:
    """A low-pass filter that gives way to fast movement.

    Paper: Casiez, Roussel, Vogel, 1 euro filter, CHI 2012.
    """

    def __init__(self, least_cutoff: float, beta: float, speed_cutoff: float = 1.0):
        """`least_cutoff` and `speed_cutoff` are in Hz; `beta` says how much speed raises the former."""
        self._least_cutoff, self._beta, self._speed_cutoff = least_cutoff, beta, speed_cutoff
        self._raw = self._smooth = self._speed = np.zeros(0)

    def __call__(self, x: np.ndarray, fps: float, scale: float = 1.0) -> np.ndarray:
        """The filtered `x`, an array of any shape.

        Args:
          x: Comes 1 / `fps` seconds behind the one before.
          fps: Frames per second.
          scale: Unit of what speeds are of.
        """
        if not self._raw.size:
            self._raw = self._smooth = x
            self._speed = np.zeros_like(x)
            return x
        speed = (x - self._raw) / scale * fps
        self._speed = self._speed + _weight(self._speed_cutoff, fps) * (speed - self._speed)
        weight = _weight(self._least_cutoff + self._beta * np.abs(self._speed), fps)
        self._raw, self._smooth = x, self._smooth + weight * (x - self._smooth)
        return self._smooth


def _weight(cutoff, fps: float):
    """That of a new value in a low-pass filter."""
    return 1 / (1 + fps / (2 * np.pi * cutoff))


VISIBILITY_WEIGHT = 0.1  # of a new value


class Smoothing:
    """What smooths one person's landmarks."""

    def __init__(self) -> None:
        # mediapipe's cutoffs are 0.05, 0.01 and 0.1 Hz, with beta 80, 10 and 40. With them, labels of moving people are
        # wrong more often, since what is drawn lags behind.
        self._points = OneEuro(least_cutoff=0.3, beta=80)
        self._next = OneEuro(least_cutoff=0.3, beta=30)
        self._world = OneEuro(least_cutoff=0.3, beta=60)
        self._visibility = np.zeros(0)

    def __call__(self, pose: "Pose", fps: float) -> "Pose":
        """The same at the next frame, smoothed."""
        size = 2 * float(np.hypot(*(pose.points[BODY + 1, :2] - pose.points[BODY, :2])))
        old = self._visibility if self._visibility.size else pose.visibility
        self._visibility = old + VISIBILITY_WEIGHT * (pose.visibility - old)
        body, crop = self._points(pose.points[:BODY], fps, size), self._next(pose.points[BODY:], fps, size)
        world = self._world(pose.world, fps)
        return pose._replace(points=np.concatenate([body, crop]), visibility=self._visibility, world=world)


# -- People


class Pose(NamedTuple):
    """One person in one frame.

    Attributes:
      points: x, y and z in pixels of `BODY + 2` landmarks, `35 3`. z grows away from the viewer.
      world: The body's landmarks in metres `33 3`, from the point between the hips; axes are those of the picture.
      visibility: Probability that nothing hides a landmark, `33`.
      mask: Probability of each place in the crop that it shows the person, float32 `256 256`.
      crop: Where the network looked.
      presence: Probability that there is a person.
      size: Rows and columns of the picture.
    """

    points: np.ndarray
    world: np.ndarray
    visibility: np.ndarray
    mask: np.ndarray
    crop: Crop
    presence: float
    size: Size

    @property
    def next_crop(self) -> Crop:
        """Where to look in the next frame."""
        return Crop.around(self.points[BODY, :2], self.points[BODY + 1, :2])


class Track(NamedTuple):
    """A person who is followed."""

    crop: Crop
    smoothing: Smoothing


class PoseTracker:
    """Follows people from one frame to the next. Each video has one of its own.

    Attributes:
      fps: Frames per second, for the smoothing. It may change on the way.
    """

    def __init__(self, networks: PoseNetworks, people: int = 1, tracking: bool = True, fps: float = FPS):
        """At most `people` are found. Without `tracking` each frame is a picture of its own."""
        self._networks, self._people, self._tracking, self.fps = networks, people, tracking, fps
        self._tracks: list[Track] = []

    def __call__(self, frame: np.ndarray) -> list[Pose]:
        """The people of the next frame, uint8 `H W 3` RGB, those who were found first before the others."""
        found: list[tuple[Track, Pose]] = []
        for track in [*self._tracks, *self._look(frame, self._tracks)]:
            pose = self._follow(frame, track)
            if pose is not None and not any(_is_near(pose.next_crop, other.next_crop) for _, other in found):
                found.append((track, pose))
        self._tracks = [Track(pose.next_crop, track.smoothing) for track, pose in found] if self._tracking else []
        return [pose for _, pose in found]

    def _look(self, frame: np.ndarray, tracks: list[Track]) -> list[Track]:
        """New people, as many as are missing."""
        missing = self._people - len(tracks)
        if missing <= 0:
            return []
        H, W = frame.shape[:2]
        whole = Crop(np.array([W / 2, H / 2]), max(H, W), 0.0)
        detections = self._networks.detect(whole.cut(frame, DETECTION_SIDE, repeat=False))
        crops = [Crop.around(*whole.to_picture(np.stack([found.hips, found.reach]))) for found in detections]
        new: list[Track] = []
        for crop in crops:
            if not any(_is_near(crop, track.crop) for track in (*tracks, *new)):
                new.append(Track(crop, Smoothing()))
        return new[:missing]

    def _follow(self, frame: np.ndarray, track: Track) -> Pose | None:
        """The person of a track in the next frame; None where nobody is there."""
        found = self._networks.find_landmarks(track.crop.cut(frame, LANDMARK_SIDE, repeat=True))
        if found.presence < LEAST_PRESENCE:
            return None
        pose = _place(found, track.crop, frame.shape[:2])
        return track.smoothing(pose, self.fps) if self._tracking else pose


class PoseFinder:
    """Finds people's landmarks in the frames of a video, or in single pictures."""

    def __init__(self, networks: PoseNetworks, people: int = 1, tracking: bool = True, fps: float = FPS):
        """As `PoseTracker`."""
        self._new_tracker = functools.partial(PoseTracker, networks, people, tracking, fps)

    def find(self, frames: Iterable[np.ndarray]) -> Iterator[list[Pose]]:
        """Find the people of each frame.

        Args:
          frames: uint8 `H W 3` RGB, in the order of time. Only the one at work is held.

        Yields:
          The people of each frame, those who were found first before the others.
        """
        tracker = self._new_tracker()
        for frame in frames:
            yield tracker(frame)


def _is_near(crop: Crop, other: Crop) -> bool:
    return bool(np.hypot(*(crop.centre - other.centre)) < NEAR * max(crop.side, other.side))


def _place(found: CropLandmarks, crop: Crop, size: Size) -> Pose:
    """From the crop into the picture."""
    used = BODY + 2
    plane = crop.to_picture(found.points[:used, :2])
    turned = found.world[:BODY, :2] @ crop.axes / crop.side
    return Pose(
        points=np.concatenate([plane, found.points[:used, 2:] * crop.side], axis=1),
        world=np.concatenate([turned, found.world[:BODY, 2:]], axis=1),
        visibility=found.visibility[:BODY],
        mask=expit(found.mask),
        crop=crop,
        presence=found.presence,
        size=size,
    )
