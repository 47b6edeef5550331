"""What is animated: a reference and a motion of one size, from the files that sample.py is given."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from mafx import densepose, media
from mafx.data.clips import TEST_SEEDS, PuppetClip
from mafx.densepose.align import ALIGNMENTS, Box, Fit, common_crop, cut_labels, cut_picture, fit_body
from mafx.densepose.finders import FinderOptions, make_finder
from mafx.densepose.kept import Finder
from mafx.densepose.motions import MotionOptions, draw_motion, label_picture
from mafx.densepose.people import Person
from mafx.densepose.tracks import parse_choice
from mafx.errors import InputError
from mafx.media import Size
from mafx.stamps import Facts

DEFAULT_FRAMES = 16  # of a puppet's motion, and of what is compiled for
SMALL_SIDE = 256  # smaller videos are enlarged to about this by default
BODIES = 64  # frames by which a driver is brought to a reference

log = logging.getLogger("mafx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRequest:
    """What to animate, and where to write it.

    Attributes:
      reference: Picture of the person; None lets a puppet stand in.
      motion: DensePose video or folder of renders; None takes a puppet's motion, or the video's.
      video: A video of a person, whose motion is drawn first.
      person: Who of several people in `video` or in the reference, see `densepose.tracks.follow`.
      align: How the driver's body is brought to the reference's: "none", "place" or "body". None means "body" for a
        `video`, where both show a person.
      finder: How people are found in `video` and in the reference.
      outs: Files or folders to write, see `media.write_video`.
      overwrite: Whether existing outputs are replaced.
      size: Rows and columns in pixels; None means as the model was trained.
      fit: How pictures of other proportions are fitted, see `media.fit`.
      frames: Largest number of frames of the motion; None means all.
      stride: Every so many-th frame of the motion is taken.
      grid: Whether reference, motion and result are written side by side.
      zoom: How many times the video is enlarged; None enlarges small ones, unless a size is asked for.
      motion_check: What to do when the motion's colours are not DensePose's: "warn", "error" or "off".
      watcher: Called with the number of frames of `video` in which people were looked for by now. What it raises ends
        the reading.
    """

    reference: str | None = None
    motion: str | None = None
    video: str | None = None
    person: str = "largest"
    align: str | None = None
    finder: FinderOptions = dataclasses.field(default_factory=FinderOptions)
    outs: Sequence[Path]
    overwrite: bool = False
    size: Size | None = None
    fit: str = "crop"
    frames: int | None = None
    stride: int = 1
    grid: bool = False
    zoom: int | None = None
    motion_check: str = "warn"
    watcher: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if self.motion and self.video:
            raise InputError("expected one of --motion and --video, found both")
        if self.align not in (None, *ALIGNMENTS):
            raise InputError(f"expected {', '.join(ALIGNMENTS)} for --align, found {self.align!r}")
        parse_choice(self.person)

    @property
    def drawn(self) -> Path | None:
        """Where the motion of `video` is kept."""
        return self.outs[0].with_name(f"{self.outs[0].stem}_motion.mkv") if self.video else None

    @property
    def alignment(self) -> Path | None:
        """Where a picture shows the driver before and after it is brought to the reference."""
        aligned = self.align not in (None, "none") or (self.align is None and self.video and self.reference)
        return self.outs[0].with_name(f"{self.outs[0].stem}_alignment.png") if aligned else None

    def zoom_at(self, size: Size) -> int:
        """How many times a video of a size is enlarged."""
        if self.zoom:
            return self.zoom
        return 1 if self.size else max(1, SMALL_SIDE // max(size))


def read_inputs(request: FileRequest, size: Size, seed: int) -> tuple[np.ndarray, np.ndarray, Fraction]:
    """The reference `H W 3`, the motion `f H W 3`, both uint8 and of the size, and the motion's frames per second."""
    alignment = request.alignment
    if request.video and request.drawn:
        request = _with_drawn_motion(request, request.video, request.drawn)
    puppet = PuppetClip(TEST_SEEDS + seed, TEST_SEEDS + seed, size)
    reference = media.read_image(request.reference) if request.reference else puppet.read(np.array([0]))[0][0]
    if not request.motion:
        frames = 1 + request.stride * np.arange(request.frames or DEFAULT_FRAMES)
        motion, fps = puppet.read(frames)[1], puppet.fps / request.stride
    elif alignment and (placed := _place(request, request.motion, reference, size)):
        return _aligned(request, request.motion, reference, size, placed, alignment)
    else:
        sample = densepose.EvenSample()  # colours are checked before frames are fitted, which blends them
        fit = functools.partial(media.fit, size=size, how=request.fit, background=densepose.BACKGROUND)
        motion, fps = _read_motion(request, request.motion, sample, fit)
        _note_fit("motion", sample.frames[0], request.fit, size)
    _note_fit("reference", reference, request.fit, size)
    return media.fit(reference, size, request.fit), motion, fps


def _read_motion(
    request: FileRequest, path: str, sample: densepose.EvenSample, prepare: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, Fraction]:
    """The motion, each frame prepared, and its frames per second; its colours are checked."""

    def take(frame: np.ndarray) -> np.ndarray:
        sample.add(frame)
        return prepare(frame)

    motion, fps = media.read_video(path, stride=request.stride, limit=request.frames, prepare=take)
    if request.motion_check != "off" and (complaint := densepose.check_motion(sample.frames, path).complaint):
        if request.motion_check == "error":
            raise InputError(complaint)
        log.warning("%s (--motion_check off silences this)", complaint)
    return motion, fps


def _note_fit(name: str, picture: np.ndarray, how: str, size: Size) -> None:
    if picture.shape[:2] != size:
        log.info("The %s is %dx%d: %s to %dx%d (rows x columns).", name, *picture.shape[:2], how, *size)


# -- From a video of a person


def _with_drawn_motion(request: FileRequest, video: str, out: Path) -> FileRequest:
    """Draw the motion of the video into a file, and take that as the motion."""
    options = MotionOptions(
        kind="people", person=parse_choice(request.person), stride=request.stride, frames=request.frames
    )
    report = draw_motion(video, out, options, functools.partial(_make_watched, request))
    log.info("Wrote %s: %s. --motion takes it the next time.", out, report)
    if report.nobody == report.frames:
        raise InputError(f"expected a person in {video}, found nobody in any of its frames")
    return dataclasses.replace(request, video=None, motion=str(out), stride=1, frames=None)


def _make_watched(request: FileRequest, fps: Fraction, is_video: bool) -> tuple[Finder, Facts]:
    finder, facts = make_finder(request.finder, fps, is_video)
    return (finder if request.watcher is None else WatchedFinder(finder, request.watcher)), facts


class WatchedFinder:
    """A finder that tells after each frame how many it has seen."""

    def __init__(self, finder: Finder, watcher: Callable[[int], None]):
        self._finder, self._watcher = finder, watcher
        self.warm_up = finder.warm_up

    def find(self, frames: Iterator[np.ndarray]) -> Iterator[list[Person]]:
        """As the finder does."""
        for seen, people in enumerate(self._finder.find(frames), start=1):
            self._watcher(seen)
            yield people


# -- The driver's body brought to the reference's


def _place(request: FileRequest, motion: str, reference: np.ndarray, size: Size) -> tuple[Fit, Box] | None:
    """How the driver fits the reference, and the crop for both; None where it cannot be known and nobody asked."""
    finder, _ = make_finder(request.finder, media.DEFAULT_FPS, is_video=False)
    labels = label_picture(reference, finder, parse_choice(request.person))
    try:
        fit, box = fit_body(labels, _driver(request, motion), request.align or "body")
    except InputError as error:
        if request.align:
            raise
        log.warning("The driver stays as it is: %s.", error)
        return None
    return fit, common_crop(box, labels.shape, size)


def _aligned(
    request: FileRequest, path: str, reference: np.ndarray, size: Size, placed: tuple[Fit, Box], picture: Path
) -> tuple[np.ndarray, np.ndarray, Fraction]:
    """As `read_inputs`, with one crop for both people; a picture of before and after is written."""
    fit, crop = placed

    def prepare(frame: np.ndarray) -> np.ndarray:
        return densepose.draw_labels(cut_labels(densepose.read_labels(frame)[0], fit, crop, size))

    sample = densepose.EvenSample()
    motion, fps = _read_motion(request, path, sample, prepare)
    shown = cut_picture(reference, crop, size)
    before = [media.fit(x, size, request.fit, densepose.BACKGROUND) for x in (reference, sample.frames[0])]
    media.write_video(picture, [np.concatenate([*before, shown, motion[0]], axis=1)], media.DEFAULT_FPS)
    log.info("The driver is scaled by %.2f; %s shows reference and driver before and after.", fit.scale, picture)
    return shown, motion, fps


def _driver(request: FileRequest, motion: str) -> Iterator[np.ndarray]:
    """Label maps of some of the driver's frames, evenly spaced where their number is known."""
    length = media.stream_video(motion, stride=request.stride, limit=request.frames).length
    stride = request.stride * max(1, length // BODIES)
    for frame in media.stream_video(motion, stride=stride, limit=BODIES).frames:
        yield densepose.read_labels(frame)[0]
