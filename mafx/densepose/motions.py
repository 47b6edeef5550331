"""From any video to a motion: people are found, or labels are read that another tool drew, and renders are written."""

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from mafx import media
from mafx.commands import expand_home
from mafx.densepose import draw_labels
from mafx.densepose.colour_maps import Reader, find_reader, read_iuv
from mafx.densepose.dumps import read_dump
from mafx.densepose.kept import Finder, find_and_keep
from mafx.densepose.people import Person, paint
from mafx.densepose.steady import fill_holes, without_flicker
from mafx.densepose.tracks import follow
from mafx.errors import InputError
from mafx.media import Size
from mafx.stamps import Facts, write_whole

KINDS = "auto", "people", "renders", "iuv", "dump"
QUALITY = 6  # of an mp4, where 0.2 to 1 % of the labels change; at 16, twice as many
SAMPLED, SAMPLE_STRIDE = 8, 5  # frames at the beginning by which the kind of a video is seen
DUMPS = frozenset({".pkl", ".pt", ".pth"})  # suffixes
log = logging.getLogger("mafx")

MakeFinder = Callable[[Fraction, bool], tuple[Finder, Facts]]  # see `finders.make_finder`


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionOptions:
    """How a motion is made.

    Attributes:
      kind: Of the input, one of `KINDS`.
      person: Who is drawn, see `tracks.follow`.
      raw: Draw everybody who was found, the surest first, and leave it at that, as detectron2 does.
      size: Rows and columns of the renders of a dump whose pictures are not there.
      stride: Every so many-th frame is taken.
      frames: Largest number of frames; None takes all.
    """

    kind: str = "auto"
    person: str | int = "largest"
    raw: bool = False
    size: Size | None = None
    stride: int = 1
    frames: int | None = None


@dataclasses.dataclass
class MotionReport:
    """What was seen on the way.

    Attributes:
      source: The kind of input in words.
      frames: Number of frames.
      nobody: How many of them show nobody, before holes are filled.
      scores: How sure the finder is of each frame's person, 0 where there is none; empty where labels were read.
    """

    source: str
    frames: int = 0
    nobody: int = 0
    scores: list[float] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.frames} frames from {self.source}, {self.nobody} of them with nobody"
        sure = [score for score in self.scores if score]
        return f"{text}; {sum(sure) / len(sure):.0%} sure of the others" if sure else text


class Motion:
    """The label maps of a motion, made frame by frame.

    Attributes:
      fps: Frames per second.
      length: Number of frames, as far as it is known; 0 where it is not.
      report: Complete when all label maps were taken.
    """

    def __init__(self, labels: Iterator[np.ndarray], fps: Fraction, length: int, report: MotionReport):
        self.fps, self.length, self.report = fps, length, report
        self._labels = labels

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 `H W` each."""
        return self._labels


def make_motion(
    path: str | Path,
    options: MotionOptions,
    make_finder: MakeFinder,
    kept: Path,
) -> Motion:
    """Make the label maps of a motion.

    Args:
      path: A video, a picture, a folder of pictures, or a dump of detectron2.
      options: How.
      make_finder: Makes what finds people, as `finders.make_finder` does: it takes the frames per second, and whether
        the frames are a video. It is called where people have to be found.
      kept: A folder for people who were found, see `find_and_keep`. It need not exist.

    Raises:
      InputError: The input cannot be read, or is not of the kind that it should be.
    """
    path = expand_home(path)
    if options.kind not in KINDS:
        raise InputError(f"expected {', '.join(KINDS)} for --kind, found {options.kind!r}")
    if options.kind == "dump" or (options.kind == "auto" and path.suffix.lower() in DUMPS):
        return _from_dump(path, options)
    sample = list(media.stream_video(path, stride=SAMPLE_STRIDE, limit=SAMPLED).frames)
    if not sample:
        raise InputError(f"{path} holds no frame")
    stream = media.stream_video(path, stride=options.stride, limit=options.frames)
    if reader := _choose_reader(path, sample, options.kind):
        report = MotionReport(reader[0])
        log.info("%s shows %s.", path, report.source)
        labels = _noted(map(reader[1], stream.frames), report)
    else:
        finder, facts = make_finder(stream.fps, stream.length != 1)
        report = MotionReport(f"people found by {facts['finder']}")
        size = sample[0].shape[:2]
        facts = facts | _facts_of(path) | {"stride": options.stride, "frames": options.frames, "size": size}
        frames = tqdm(_of_one_size(stream.frames, path), "people", stream.length or None, unit="frame")
        labels = _drawn(find_and_keep(iter(frames), finder, kept, facts), size, options, report)
    return Motion(labels, stream.fps, stream.length, report)


def _facts_of(path: Path) -> Facts:
    """What changes with a video, or with a folder of pictures."""
    files = [file.stat() for file in (media.picture_files(path) if path.is_dir() else [path])]
    sizes, times = [file.st_size for file in files], [file.st_mtime_ns for file in files]
    return {"files": len(files), "bytes": sum(sizes), "changed": max(times)}


def _choose_reader(path: Path, sample: list[np.ndarray], kind: str) -> tuple[str, Reader] | None:
    """How labels are read from a video of which some frames are given, None where people have to be found."""
    if kind == "people":
        return None
    if kind == "iuv":
        return "IUV images", read_iuv
    reader = find_reader(np.stack(sample)) if len({frame.shape for frame in sample}) == 1 else None
    if kind == "renders" and reader is None:
        raise InputError(f"expected labels drawn with a colour map in {path}, found none that is known")
    return reader


def _of_one_size(frames: Iterable[np.ndarray], path: Path) -> Iterator[np.ndarray]:
    first = None
    for frame in frames:
        first = first or frame.shape
        if frame.shape != first:
            raise InputError(f"the frames of {path} differ in size: {media.list_sizes({first, frame.shape})}")
        yield frame


def _from_dump(path: Path, options: MotionOptions) -> Motion:
    """The people of a dump, in the natural order of its pictures."""
    pictures = sorted(read_dump(path), key=lambda picture: media.natural_order(picture[0]))
    pictures = pictures[:: options.stride][: options.frames]
    if not pictures:
        raise InputError(f"{path} holds no picture")
    report = MotionReport("a dump of detectron2")
    size = options.size or _size_of_pictures(pictures[0][0], path)
    labels = _drawn((people for _, people in pictures), size, options, report)
    return Motion(labels, media.DEFAULT_FPS / options.stride, len(pictures), report)


def _size_of_pictures(name: str, dump: Path) -> Size:
    """Rows and columns of a picture that a dump names: beside the dump, or where the dump says."""
    for path in (dump.parent / Path(name).name, Path(name)):
        with contextlib.suppress(InputError):
            h, w, _ = media.read_image(path).shape
            return h, w
    raise InputError(
        f"expected {name}, of which {dump} tells, to know the size of its pictures; give --size HxW instead"
    )


def _noted(labels: Iterable[np.ndarray], report: MotionReport) -> Iterator[np.ndarray]:
    """Labels that were read, while the report counts them."""
    for frame in labels:
        report.frames += 1
        report.nobody += not frame.any()
        yield frame


def _drawn(
    found: Iterable[list[Person]], size: Size, options: MotionOptions, report: MotionReport
) -> Iterator[np.ndarray]:
    """The people as label maps, while the report counts them."""
    chosen = found if options.raw else follow(found, options.person, size)
    labels = _painted(chosen, size, report)
    return labels if options.raw else without_flicker(fill_holes(labels))


def _painted(chosen: Iterable[list[Person]], size: Size, report: MotionReport) -> Iterator[np.ndarray]:
    for people in chosen:
        report.frames += 1
        report.nobody += not people
        report.scores.append(max((person.score for person in people), default=0.0))
        yield paint(people, size)


def write_motion(motion: Motion, out: Path) -> None:
    """Write the renders of a motion, see `media.write_video`.

    Where people were found, `OUT.json` says beside it how sure the finder is of each frame.

    Raises:
      InputError: `out` cannot be written, or is a picture while there are several frames.
    """
    media.write_video(out, map(draw_labels, motion), motion.fps, QUALITY)
    if motion.report.scores:
        scores = [round(score, 3) for score in motion.report.scores]
        facts = dataclasses.asdict(motion.report) | {"scores": scores}
        write_whole(out.with_name(f"{out.name}.json"), json.dumps(facts) + "\n")
    if motion.report.nobody == motion.report.frames:
        log.warning("Nobody was found in any frame: %s shows background only.", out)


def draw_motion(path: str | Path, out: Path, options: MotionOptions, make_finder: MakeFinder) -> MotionReport:
    """Make a motion and write it. People who were found are kept beside `out` until that is done.

    Args:
      path: As `make_motion` takes it, as `options` and `make_finder`.
      out: As `write_motion` takes it.

    Raises:
      InputError: See `make_motion` and `write_motion`.
    """
    kept = kept_beside(out)
    motion = make_motion(path, options, make_finder, kept)
    write_motion(motion, out)
    forget(kept)
    return motion.report


def label_picture(picture: np.ndarray, finder: Finder, person: str | int = "largest") -> np.ndarray:
    """The labels uint8 `H W` of a picture `H W 3` of people; which of them, see `tracks.follow`."""
    h, w, _ = picture.shape
    return paint(next(follow(finder.find(iter([picture])), person, (h, w))), (h, w))


def kept_beside(out: Path) -> Path:
    """Where people who were found are kept while `out` is made."""
    return out.with_name(f".{out.name}.people")


def forget(kept: Path) -> None:
    """Remove the people that were kept while a motion was made."""
    shutil.rmtree(kept, ignore_errors=True)
