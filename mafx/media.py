"""Pictures and videos in and out: uint8 RGB arrays, `H W 3` for a picture and `f H W 3` for a video."""

import contextlib
import itertools
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from mafx.boxes import check_tables
from mafx.commands import expand_home
from mafx.errors import InputError, refusals
from mafx.files import check_inside, check_name, check_regular
from mafx.interrupts import partial_path
from mafx.limits import FRAMES, PIXELS, VIDEO_BYTES

if TYPE_CHECKING:
    import av.container

DEFAULT_FPS = Fraction(25)  # frames per second of a folder of pictures, which states no rate
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})  # suffixes, in lower case
VIDEO_FORMATS = frozenset({".mp4", ".mkv", ".gif", ".webp", ".png"})  # that write_video knows; none means a folder
FITS = ("crop", "pad", "stretch")
Size = tuple[int, int]  # rows, columns

PILLOW_VIDEOS = frozenset({".gif", ".webp"})  # read by Pillow; all other videos by FFmpeg
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")  # by their contents, not their names
# FFmpeg's names of the files that hold a video themselves.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,h264,hevc"
DECODERS = 4  # threads of FFmpeg, each with a frame at work
AT_WORK = 4  # copies of a frame while it is decoded
SHORTEST, LONGEST = Fraction(1, 1000), Fraction(1000)  # seconds of a frame that are believed
WEBP_QUALITY = 90  # of 100
H264_QUALITY = 16  # constant rate factor: 0 is lossless, 23 the encoder's default


# -- Files and their names


def natural_order(name: str) -> tuple[list[str | int], str]:
    """Sort key by which numbers in names count as numbers: `2.png` comes before `10.png`.

    Args:
      name: A file name, with or without its suffix.

    Returns:
      What to compare. Names that differ only in leading zeros are ordered as text.
    """
    parts: list[str | int] = list(re.split(r"(\d+)", name))
    parts[1::2] = map(int, parts[1::2])  # every second part is a run of digits
    return parts, name


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, in natural order of their names.

    Hidden files are left out: macOS puts `._0001.png` beside `0001.png`. Suffixes may be in upper case.

    Args:
      folder: Need not exist.

    Returns:
      Paths with a suffix of `PICTURES`.

    Raises:
      InputError: A name is of more than one line, or a link leads out of the folder.
    """
    pictures = [path for path in folder.glob("[!.]*") if path.suffix.lower() in PICTURES]
    for path in pictures:
        check_name(path.name, folder)
        if path.is_symlink():
            check_inside(path, folder)
    return sorted(pictures, key=lambda path: natural_order(path.name))


# -- Reading


def read_image(path: str | Path | BinaryIO) -> np.ndarray:
    """Read a picture of one of `PICTURE_FORMATS`.

    It is turned as its EXIF data say. 16 bits are scaled to 8. Transparent pixels are laid over white. A JPEG of more
    pixels than `mafx.limits.PIXELS` is reduced while it is decoded, by 2, 4 or 8.

    Args:
      path: A path, in which `~` is the home folder, or an open binary file.

    Returns:
      uint8 `H W 3`.

    Raises:
      InputError: The file is missing, is not a picture, or has too many pixels.
    """
    if not isinstance(path, str | Path):
        return _read_open_image(path, getattr(path, "name", "a picture"))
    path = expand_home(path)
    check_regular(path, "picture")
    with refusals(f"{path} is not a picture that can be read"), path.open("rb") as file:
        return _read_open_image(file, str(path))


def picture_size(path: str | Path | BinaryIO) -> Size:
    """Rows and columns of a picture, of which nothing is decoded.

    Args:
      path: As `read_image` takes it.

    Raises:
      InputError: As `read_image`.
    """
    if not isinstance(path, str | Path):
        return _size_of_open_image(path, getattr(path, "name", "a picture"))
    path = expand_home(path)
    check_regular(path, "picture")
    with refusals(f"{path} is not a picture that can be read"), path.open("rb") as file:
        return _size_of_open_image(file, str(path))


def _size_of_open_image(file: BinaryIO, name: str) -> Size:
    with refusals(f"{name} is not a picture that can be read"), _open_with_pillow(file, name) as image:
        w, h = image.size
        return h, w


def _read_open_image(file: BinaryIO, name: str) -> np.ndarray:
    with refusals(f"{name} is not a picture that can be read"), _open_with_pillow(file, name) as image:
        return _to_rgb(image)


def _open_with_pillow(file: BinaryIO, name: str) -> Image.Image:
    """Open a picture without decoding it, and refuse it if it has too many pixels."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow would refuse large photographs, which can be reduced
    try:
        image = Image.open(file, formats=PICTURE_FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"it is none of {', '.join(PICTURE_FORMATS)}, or damaged") from error
    Image.MAX_IMAGE_PIXELS = PIXELS.value  # from here on Pillow guards the sizes inside of the file
    w, h = image.size
    # Progressive photographs are decoded whole before they are reduced.
    if w * h > PIXELS.value and isinstance(image, JpegImageFile) and "progressive" not in image.info:
        step = next((step for step in (2, 4) if w * h <= step**2 * PIXELS.value), 8)
        image.draft(image.mode, (w // step, h // step))
    _check_pixels(image, name)
    return image


def _check_pixels(image: Image.Image, name: object) -> None:
    PIXELS.check(name, math.prod(image.size))


def _to_rgb(image: Image.Image) -> np.ndarray:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits, which Pillow sometimes holds as 32
        sixteen = np.clip(np.asarray(image), 0, 65535).astype(np.float32)
        return np.repeat((sixteen / 257 + 0.5).astype(np.uint8)[..., None], 3, axis=-1)  # 65535 / 257 is 255
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        opaque = Image.new("RGB", image.size, "white")
        opaque.paste(image, mask=image)
        return np.array(opaque)
    return np.array(image.convert("RGB"))


class Stream(NamedTuple):
    """A video that is decoded while it is read.

    Attributes:
      frames: The frames in their order, uint8 `H W 3`.
      length: Number of frames that there will be, as the file says; 0 where it does not.
      fps: Frames per second at which to show them.
    """

    frames: Iterator[np.ndarray]
    length: int
    fps: Fraction


def stream_video(path: str | Path, *, stride: int = 1, limit: int | None = None) -> Stream:
    """Open a video to read it frame by frame: every `stride`-th frame, at most `limit` of them.

    A folder is read as its pictures in natural order of their names, gif and webp by Pillow, all else by FFmpeg. A
    picture is a video of one frame.

    Args:
      path: A file or a folder; `~` is the home folder.
      stride: Distance between the frames that are taken, at least 1.
      limit: Number of frames, at least 1; None takes all.

    Returns:
      The stream; its rate is that of the source, divided by `stride`.

    Raises:
      InputError: The video is missing or cannot be read. While it is read: it has more frames, or frames of more
        pixels, than `mafx.limits` says.
    """
    path = expand_home(path)
    if stride < 1 or (limit is not None and limit < 1):
        raise InputError(f"expected a stride and a number of frames of at least 1, found {stride} and {limit}")
    if not path.is_dir():
        check_regular(path, "video")
    with refusals(f"{path} is not a video that can be read"):
        frames, count, fps = _open_video(path)
    stop = None if limit is None else (limit - 1) * stride + 1
    chosen = itertools.islice(frames, 0, stop, stride)
    return Stream(_checked(path, chosen), len(range(0, count, stride)[:limit]), fps / stride)


def _checked(path: Path, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, as long as they are not too many; an InputError for whatever their decoder raises."""
    with refusals(f"{path} is not a video that can be read"):
        for i, frame in enumerate(frames, start=1):
            FRAMES.check(path, i)
            yield frame


def read_video(
    path: str | Path,
    *,
    stride: int = 1,
    limit: int | None = None,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, Fraction]:
    """Read a video as one array.

    Args:
      path: As `stream_video` takes it, as the next two.
      stride: Distance between the frames that are taken.
      limit: Number of frames; None takes all.
      prepare: Changes each frame as soon as it is decoded, for example to a smaller one: only that is kept.

    Returns:
      uint8 `f H W 3`, and the rate in frames per second at which to show it: that of the source, divided by `stride`.

    Raises:
      InputError: As `stream_video`. Or the video holds no frame, its frames differ in size, or they have more bytes
        than `mafx.limits` says.
    """
    stream = stream_video(path, stride=stride, limit=limit)
    return _hold(expand_home(path), stream.frames, stream.length, prepare), stream.fps


def _open_video(path: Path) -> tuple[Iterator[np.ndarray], int, Fraction]:
    """The frames, how many the file says that there are (0 where it does not), and their rate."""
    if path.is_dir() or path.suffix.lower() in PICTURES - PILLOW_VIDEOS:
        files = picture_files(path) if path.is_dir() else [path]
        return map(read_image, files), len(files), DEFAULT_FPS
    if path.suffix.lower() in PILLOW_VIDEOS:
        return _pillow_frames(path), *_pillow_facts(path)
    return ffmpeg_frames(path), *_ffmpeg_facts(path)


def _hold(
    path: Path, frames: Iterator[np.ndarray], expected: int, prepare: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """Stack frames, unless they are too many: `expected` are announced, which is known before they are decoded."""
    held: list[np.ndarray | None] = []
    sizes = set()
    for frame in frames:
        sizes.add(frame.shape)
        kept = prepare(frame) if prepare else frame
        count = max(expected, len(held) + 1)
        FRAMES.check(path, count)
        VIDEO_BYTES.check(path, count * kept.nbytes + AT_WORK * frame.nbytes)
        held.append(kept)
    if not held:
        raise InputError(f"{path} holds no frame")
    if len(sizes) > 1:
        raise InputError(f"the frames of {path} differ in size: {list_sizes(sizes)}")
    video = np.empty((len(held), *kept.shape), np.uint8)
    for i, frame_i in enumerate(held):
        video[i] = frame_i
        held[i] = None  # no frame is there twice
    return video


def list_sizes(shapes: Iterable[tuple[int, ...]]) -> str:
    """Shapes `H W 3` in words."""
    return ", ".join(f"{h}x{w}" for h, w, _ in sorted(shapes)) + " (rows x columns)"


@contextlib.contextmanager
def _open_pillow_video(path: Path) -> Iterator[Image.Image]:
    with (
        refusals(f"{path} is not a video that can be read"),
        path.open("rb") as file,
        _open_with_pillow(file, str(path)) as image,
    ):
        yield image


def _pillow_frames(path: Path) -> Iterator[np.ndarray]:
    with _open_pillow_video(path) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            _check_pixels(image, path)
            yield _to_rgb(image.copy())


def _pillow_facts(path: Path) -> tuple[int, Fraction]:
    with _open_pillow_video(path) as image:
        count = getattr(image, "n_frames", 1)
        image.load()  # only then is the duration of a webp's frame known
        return count, _sensible_rate(Fraction(image.info.get("duration") or 0) / 1000)


def _sensible_rate(seconds: Fraction) -> Fraction:
    """The rate at which frames last so long, or the default where nobody could show them."""
    return (1 / seconds).limit_denominator(1001) if SHORTEST <= seconds <= LONGEST else DEFAULT_FPS


@contextlib.contextmanager
def _open_with_ffmpeg(path: Path) -> Iterator["av.container.InputContainer"]:
    import av  # noqa: PLC0415 (slow to import)

    check_regular(path, "video")
    if path.stat().st_size:
        check_tables(path)
    # Playlists and the like would make FFmpeg open other files, and so would a name with a colon without `file:`.
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    with (
        refusals(f"{path} is not a video that can be read, as mp4, mov, mkv, webm, avi, mpg, flv, ogg and wmv are"),
        av.open(f"file:{path}", options=options, metadata_errors="ignore") as container,
    ):
        if not container.streams.video:
            raise InputError(f"{path} holds no video stream")
        codec = container.streams.video[0].codec_context
        codec.options = {"max_pixels": str(PIXELS.value)}
        codec.thread_type, codec.thread_count = "AUTO", DECODERS
        PIXELS.check(path, codec.width * codec.height)
        yield container


def ffmpeg_frames(path: Path) -> Iterator[np.ndarray]:
    """Decode a video frame by frame.

    Args:
      path: A video in one of `CONTAINERS`.

    Yields:
      Each frame, uint8 `H W 3`, turned as the file says.

    Raises:
      InputError: The file is not a video.
    """
    with _open_with_ffmpeg(path) as container:
        for frame in container.decode(video=0):
            PIXELS.check(path, frame.width * frame.height)
            yield np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))


def _ffmpeg_facts(path: Path) -> tuple[int, Fraction]:
    with _open_with_ffmpeg(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        return stream.frames, _sensible_rate(1 / Fraction(rate) if rate else Fraction(0))


# -- Writing


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: Fraction | float, quality: int = H264_QUALITY
) -> None:
    """Write a video in the format of its suffix, in either case.

    .mp4 is H.264 that browsers play, .mkv is FFV1, which loses nothing, .gif and .webp are pictures that move, .png is
    one picture. Without a suffix, write a folder of PNGs; it replaces a folder of frames that is there. Everything is
    written to a temporary name first, so that the video is complete or absent.

    Args:
      path: Where to write; `~` is the home folder.
      frames: uint8 `H W 3` of one size, at least one: an array `f H W 3`, or an iterator, of which no more than one is
        held. An mp4 with an odd side repeats its last row or column, because H.264 needs even sides.
      fps: Frames per second.
      quality: Of an mp4: the constant rate factor, from 0 (lossless but for the colours, which have half the
        resolution) to 51.

    Raises:
      InputError: There is no frame, or several for a picture; or `path` cannot be written, for a reason of
        `check_writable` or of the file system.
    """
    path = expand_home(path)
    check_writable(path)
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError(f"cannot write {path}: expected at least one frame, found none")
    frames = itertools.chain([first], frames)
    partial = _temporary_name(path)
    fps = Fraction(fps).limit_denominator(1001)  # 30000/1001 and the like stay exact
    try:
        with partial_path(partial):
            if not path.suffix:
                _write_pngs(partial, frames)
            elif path.suffix.lower() == ".mp4":
                options = {"crf": str(quality)}
                _write_with_ffmpeg(partial, map(_with_even_sides, frames), fps, "libx264", "yuv420p", options)
            elif path.suffix.lower() == ".png":
                _write_picture(partial, frames)
            elif path.suffix.lower() == ".mkv":
                _write_with_ffmpeg(partial, frames, fps, "ffv1", "bgr0", {})
            else:
                _write_with_pillow(partial, frames, fps)
            if path.is_dir():
                shutil.rmtree(path)
            os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(path: str | Path) -> None:
    """Check everything that can be known before the frames of a video are made.

    Args:
      path: As `write_video` takes it.

    Raises:
      InputError: `write_video` would fail.
    """
    path = expand_home(path)
    if path.name in {"", ".."}:
        raise InputError(f"cannot write {str(path)!r}: expected the name of a video or of a new folder")
    if path.suffix and path.suffix.lower() not in VIDEO_FORMATS:
        formats = ", ".join(sorted(VIDEO_FORMATS))
        raise InputError(f"cannot write {path}: expected the suffix {formats}, or none for a folder of PNGs")
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.is_dir():
        if path.suffix:
            raise InputError(f"cannot write {path}: it is a folder")
        _check_only_frames(path)
    probe = _temporary_name(path)
    try:  # permissions, quotas and read-only file systems show only in an attempt
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _check_only_frames(folder: Path) -> None:
    """A folder is replaced as a whole, so it must hold nothing that write_video did not write."""
    if others := sorted(p.name for p in folder.iterdir() if not (p.stem.isdigit() and p.suffix == ".png")):
        raise InputError(
            f"cannot write {folder}: the folder holds other files than frames ({others[0]}); choose another"
        )


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix.lower()}")


def _write_pngs(folder: Path, frames: Iterable[np.ndarray]) -> None:
    folder.mkdir()
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{i:05d}.png")


def _write_picture(path: Path, frames: Iterator[np.ndarray]) -> None:
    Image.fromarray(next(frames)).save(path)
    if next(frames, None) is not None:
        raise InputError("expected one frame for a picture, found more; choose a video or a folder")


def _write_with_pillow(path: Path, frames: Iterable[np.ndarray], fps: Fraction) -> None:
    pictures = map(Image.fromarray, frames)
    options: dict[str, Any] = {"quality": WEBP_QUALITY} if path.suffix == ".webp" else {}
    next(pictures).save(path, save_all=True, append_images=pictures, duration=round(1000 / fps), loop=0, **options)


def _with_even_sides(frame: np.ndarray) -> np.ndarray:
    h, w, _ = frame.shape
    return np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")  # 4:2:0 halves both sides


def _write_with_ffmpeg(
    path: Path, frames: Iterable[np.ndarray], fps: Fraction, codec: str, pixels: str, options: dict[str, str]
) -> None:
    import av  # noqa: PLC0415 (slow to import)

    # Without the protocol, FFmpeg takes what is before a colon in a name for one.
    with av.open(f"file:{path}", "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.pix_fmt = pixels
        for i, frame in enumerate(frames):
            if i == 0:
                stream.height, stream.width, _ = frame.shape
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


# -- Arrays


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize a picture, bicubic as in the published demo.

    Args:
      image: uint8 `H W 3`.
      size: Rows and columns.

    Returns:
      uint8 `size 3`; `image` itself where it has this size.
    """
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))


def fit(
    image: np.ndarray,
    size: Size,
    how: str = "crop",
    background: tuple[int, int, int] = (0, 0, 0),
    at: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Bring a picture of any proportions to `size`.

    Args:
      image: uint8 `H W 3`.
      size: Rows and columns.
      how: "crop" fills `size` and cuts what overhangs, "pad" keeps the whole picture and fills the rest with
        `background`, "stretch" distorts.
      background: RGB, 0 to 255.
      at: Where the crop lies between top and bottom, and between left and right, 0 to 1.

    Returns:
      uint8 `size 3`.

    Raises:
      InputError: `how` is unknown.
    """
    if how not in FITS:
        raise InputError(f"fit {how!r} is unknown, expected one of {', '.join(FITS)}")
    if how == "stretch":
        return resize(image, size)
    h, w = image.shape[:2]
    scale = (max if how == "crop" else min)(size[0] / h, size[1] / w)
    image = resize(image, (max(1, round(h * scale)), max(1, round(w * scale))))
    h, w = image.shape[:2]
    if how == "crop":
        top, left = int(at[0] * (h - size[0])), int(at[1] * (w - size[1]))
        return image[top : top + size[0], left : left + size[1]]
    padded = np.full((*size, 3), background, np.uint8)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    padded[top : top + h, left : left + w] = image
    return padded


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Round floats in [0, 1], of any shape, to uint8; values outside are clipped."""
    return (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8)


def side_by_side(*videos: np.ndarray) -> np.ndarray:
    """Join videos `f H W 3` of one length and height from left to right; a picture `H W 3` stands still beside them."""
    frames = max(len(video) for video in videos if video.ndim == 4)
    moving = [np.broadcast_to(v, (frames, *v.shape)) if v.ndim == 3 else v for v in videos]
    return np.concatenate(moving, axis=2)


def enlarge(pictures: np.ndarray, times: int) -> np.ndarray:
    """Repeat every pixel of `... H W 3`, so that the pictures are `times` as high and as wide."""
    return pictures.repeat(times, axis=-3).repeat(times, axis=-2)
