"""Pictures and videos in and out: uint8 RGB arrays, `H W 3` for a picture and `f H W 3` for a video."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mafx.errors import InputError

DEFAULT_FPS = Fraction(25)  # of a folder of frames, which has none of its own
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
VIDEO_FORMATS = frozenset({".mp4", ".gif", ".webp"})  # what write_video knows, besides a folder
FITS = ("crop", "pad", "stretch")
Size = tuple[int, int]  # rows, columns


def read_image(path: str | Path) -> np.ndarray:
    """Any picture Pillow knows: rotated as EXIF says, 16 bits scaled to 8, transparency over white."""
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except FileNotFoundError as error:
        raise InputError(f"there is no picture at {path}") from error
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:  # SyntaxError: some broken PNGs
        raise InputError(f"{path} is not a picture that can be read: {error}") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, sometimes held as 32
        return np.repeat((np.clip(np.asarray(image), 0, 65535) / 257 + 0.5).astype(np.uint8)[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def read_video(path: str | Path, *, stride: int = 1, limit: int | None = None) -> tuple[np.ndarray, Fraction]:
    """Every `stride`-th frame, at most `limit` of them, and the rate they are to be shown at (the source's, divided by the stride).

    A folder is read as its pictures in natural order of their names; gif and webp by Pillow; all else by FFmpeg.
    """
    path = Path(path)
    if stride < 1 or (limit is not None and limit < 1):
        raise InputError(f"expected a stride and a number of frames of at least 1, found {stride} and {limit}")
    if not path.exists():
        raise InputError(f"there is no video at {path}")
    if path.is_dir():
        frames, fps = _folder_frames(path), DEFAULT_FPS
    elif path.suffix.lower() in {".gif", ".webp"}:
        frames, fps = _pillow_frames(path), _pillow_fps(path)
    else:
        frames, fps = ffmpeg_frames(path), _ffmpeg_fps(path)
    taken = []
    for i, frame in enumerate(frames):
        if i % stride == 0:
            taken.append(frame)
        if limit is not None and len(taken) == limit:
            break
    if not taken:
        raise InputError(f"{path} holds no frame")
    if len(sizes := {frame.shape for frame in taken}) > 1:
        raise InputError(
            f"the frames of {path} differ in size: {', '.join(f'{h}x{w}' for h, w, _ in sorted(sizes))} (rows x columns)"
        )
    return np.stack(taken), fps / stride


def _folder_frames(path: Path) -> Iterator[np.ndarray]:
    names = [p for p in path.iterdir() if p.suffix.lower() in PICTURES]
    natural = sorted(
        names, key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)]
    )
    return (read_image(p) for p in natural)


def _pillow_frames(path: Path) -> Iterator[np.ndarray]:
    try:
        with Image.open(path) as image:
            for i in range(getattr(image, "n_frames", 1)):
                image.seek(i)
                yield _to_rgb(image)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is not a video that can be read: {error}") from error


def _pillow_fps(path: Path) -> Fraction:
    try:
        with Image.open(path) as image:
            image.load()  # webp knows a frame's duration only then
            return Fraction(1000, image.info.get("duration") or 40).limit_denominator(1000)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is not a video that can be read: {error}") from error


@contextmanager
def _open_video(path: Path):
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} holds no video stream")
            yield container
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path} is not a video that can be read: {error}") from error


def _ffmpeg_fps(path: Path) -> Fraction:
    with _open_video(path) as container:
        stream = container.streams.video[0]
        return Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def ffmpeg_frames(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video one after the other, each uint8 `H W 3`."""
    with _open_video(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            yield np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))


def write_video(path: str | Path, frames: np.ndarray, fps: Fraction | float) -> None:
    """Write `f H W 3`, uint8, in the format of the extension: .mp4 (H.264 that browsers play), .gif, .webp, or, without one, a folder of PNGs.

    Nothing half-written is left behind: the file gets its name when it is whole.
    """
    path = Path(path)
    check_writable(path)
    part = _part(path)
    fps = Fraction(fps).limit_denominator(1001)
    try:
        if not path.suffix:
            part.mkdir()
            for i, frame in enumerate(frames):
                Image.fromarray(frame).save(part / f"{i:05d}.png")
        elif path.suffix == ".mp4":
            _write_mp4(part, frames, fps)
        else:
            first, *rest = map(Image.fromarray, frames)
            options = {"quality": 90} if path.suffix == ".webp" else {}
            first.save(part, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, **options)
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise InputError where write_video would fail for a reason one can know beforehand."""
    if path.suffix and path.suffix not in VIDEO_FORMATS:
        raise InputError(
            f"cannot write {path}: expected the extension {', '.join(sorted(VIDEO_FORMATS))} or none for a folder of PNGs"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    if path.suffix and path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    probe = _part(path)
    try:  # the one sure way to know
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _part(path: Path) -> Path:
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")


def _write_mp4(path: Path, frames: np.ndarray, fps: Fraction) -> None:
    h, w = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")  # 4:2:0 halves both sides
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "16"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Bicubic, as the published demo resizes both the picture and the motion."""
    return (
        image
        if image.shape[:2] == size
        else np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
    )


def fit(
    image: np.ndarray,
    size: Size,
    how: str = "crop",
    background: tuple[int, int, int] = (0, 0, 0),
    at: tuple[float, float] = (0.5, 0.5),
) -> np.ndarray:
    """Bring a picture to `size`: "crop" fills it and cuts what overhangs at the sides, "pad" keeps all and fills up, "stretch" distorts.

    `at` places the crop between top and bottom, left and right: 0 to 1.
    """
    if how not in FITS:
        raise InputError(f"fit {how!r} is unknown, expected one of {', '.join(FITS)}")
    h, w = image.shape[:2]
    if how == "stretch":
        return resize(image, size)
    scale = (max if how == "crop" else min)(size[0] / h, size[1] / w)
    image = resize(image, (max(1, round(h * scale)), max(1, round(w * scale))))
    h, w = image.shape[:2]
    if how == "crop":
        top, left = (int(place * (n - wanted)) for place, n, wanted in zip(at, (h, w), size, strict=True))
        return image[top : top + size[0], left : left + size[1]]
    out = np.full((*size, 3), background, np.uint8)
    top, left = (size[0] - h) // 2, (size[1] - w) // 2
    out[top : top + h, left : left + w] = image
    return out


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] -> uint8, rounded."""
    return (np.clip(video, 0, 1) * 255 + 0.5).astype(np.uint8)


def side_by_side(*videos: np.ndarray) -> np.ndarray:
    """Videos `f H W 3` of one length and height as one; a picture `H W 3` stands still beside them."""
    frames = max(len(video) for video in videos if video.ndim == 4)
    return np.concatenate([np.broadcast_to(v, (frames, *v.shape)) if v.ndim == 3 else v for v in videos], axis=2)


def enlarge(pictures: np.ndarray, times: int) -> np.ndarray:
    """Every pixel of `... H W 3` so many times as high and wide."""
    return pictures.repeat(times, axis=-3).repeat(times, axis=-2)


def contact_sheet(video: np.ndarray, columns: int = 8) -> np.ndarray:
    """Up to `columns` evenly spaced frames of `f H W 3` in a row, as one picture."""
    chosen = np.unique(np.linspace(0, len(video) - 1, columns).round().astype(int))
    return np.concatenate(list(video[chosen]), axis=1)
