"""Files that people upload are checked before work starts: what they are by their contents, and how much they hold."""

import dataclasses
import itertools
import os
from fractions import Fraction
from pathlib import Path

import numpy as np

from mafx import densepose, media
from mafx.densepose.colour_maps import find_reader
from mafx.errors import InputError
from mafx.files import check_regular
from mafx.limits import Limit
from mafx.media import Size

BYTES = Limit("max_upload_bytes", 200 * 2**20, "bytes")
SECONDS = Limit("max_upload_seconds", 600, "seconds")
SIDE = Limit("max_upload_side", 8192, "pixels in a row or column")
LIMITS = (BYTES, SECONDS, SIDE)

CHECKED_FRAMES, CHECKED_STRIDE = 16, 4  # frames at the beginning by which a video is judged
# How files begin, and the suffix that makes `mafx.media` read them as what they are.
PICTURE_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
LONGEST_BEGINNING = 12
VIDEO = ".mp4"  # the suffix of all that FFmpeg reads, which looks into the file itself


@dataclasses.dataclass(frozen=True)
class Driving:
    """A driving video that was checked.

    Attributes:
      path: The file, under a name that says what it is.
      kind: "motion", where it has DensePose's colours, "labels", where it has those of another tool, else "people".
      frames: Their number as the file says, 0 where it does not.
      fps: Frames per second.
      size: Rows and columns.
      verdict: What was found, in a sentence or two.
    """

    path: Path
    kind: str
    frames: int
    fps: Fraction
    size: Size
    verdict: str


def check_picture(path: Path) -> Size:
    """Check an uploaded picture, of which only the beginning is read.

    Returns: Rows and columns.

    Raises:
      InputError: It is not a picture, or has too many bytes or pixels.
    """
    _check_bytes(path)
    if suffix_of(path) == VIDEO:
        raise InputError(f"expected a picture (PNG, JPEG, WebP, GIF, BMP or TIFF), found another file: {path.name}")
    size = media.picture_size(path)
    SIDE.check(path.name, max(size))
    return size


def check_driving(path: Path) -> Driving:
    """Check an uploaded driving video: its length as the file says, and its first frames.

    Raises:
      InputError: It is not a video, or has too many bytes, seconds or pixels.
    """
    _check_bytes(path)
    path = _named_by_content(path)
    stream = media.stream_video(path)
    SECONDS.check(path.name, round(stream.length / stream.fps))
    frames = list(itertools.islice(media.stream_video(path, stride=CHECKED_STRIDE).frames, CHECKED_FRAMES))
    if not frames:
        raise InputError(f"expected a video, found no frame in {path.name}")
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise InputError(f"the frames of {path.name} differ in size: {media.list_sizes(shapes)}")
    h, w, _ = frames[0].shape
    SIDE.check(path.name, max(h, w))
    kind, verdict = _judge(np.stack(frames))
    return Driving(path, kind, stream.length, stream.fps, (h, w), verdict)


def _judge(frames: np.ndarray) -> tuple[str, str]:
    """The kind of a driving video, and what to say of it."""
    report = densepose.check_motion(frames)
    if report.complaint is None:
        share = f"{report.fitting:.0%} of its pixels have DensePose's colours, {report.person:.0%} show a body part"
        return "motion", f"A DensePose video: {share}."
    if reader := find_reader(frames):
        return "labels", f"Body parts in other colours than DensePose's ({reader[0]}): they are redrawn."
    return "people", "Not a DensePose video: the people in it are found, and their poses are drawn."


def suffix_of(path: Path) -> str:
    """The suffix that a file should have by its contents."""
    with path.open("rb") as file:
        beginning = file.read(LONGEST_BEGINNING)
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for begin, suffix in PICTURE_BEGINNINGS.items() if beginning.startswith(begin)), VIDEO)


def _check_bytes(path: Path) -> None:
    check_regular(path)
    BYTES.check(path.name, path.stat().st_size)


def _named_by_content(path: Path) -> Path:
    """The same file, under a name beside it that says what it is."""
    suffix, given = suffix_of(path), path.suffix.lower()
    if given == suffix or (suffix == VIDEO and given not in media.PICTURES | media.PILLOW_VIDEOS):
        return path
    named = path.with_name(f"{path.stem}-as{suffix}")
    if not named.exists():
        os.link(path, named)
    return named
