"""Clips as they are downloaded: how they are found in folders, and how their frames are read and checked."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mafx import media
from mafx.data.clips import HALVES
from mafx.densepose import PARTS, check_motion, draw_labels, read_labels
from mafx.errors import InputError
from mafx.files import check_name

VIDEOS = frozenset({".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi"})  # suffixes, in lower case
Frame = np.ndarray | Path | None  # pixels, the file that holds them, or nothing where a file is missing


@dataclasses.dataclass(frozen=True)
class Raw:
    """A clip as it was downloaded.

    Attributes:
      name: Of the clip.
      kind: "pictures"; "iuv", pictures whose renders are IUV images; "videos", one file for all images and one for all
        renders; or "images", pictures that are clips of their own.
      images: Files by the names of the frames, without suffix. The file of a video has the name "".
      renders: Likewise. A name may be missing in either.
    """

    name: str
    kind: str
    images: dict[str, Path]
    renders: dict[str, Path]


# -- Finding


def find_pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder, which need not exist, by their names without suffix."""
    return {path.stem: path for path in media.picture_files(folder)}


def find_raw(folder: Path, kind: str = "pictures") -> list[Raw]:
    """Find the clips in a folder, sorted by name.

    A clip is a folder with `images/` or `densepose/`, or a video NAME.mp4 or NAME_densepose.mp4 (or another suffix of
    `VIDEOS`). One of the two is enough to be found, so that the other's absence can be reported. Where a folder and a
    video have one name, the video is ignored: the folder probably holds its frames.

    Args:
      folder: Where the clips are.
      kind: Of the clips that are folders, "pictures" or "iuv".

    Returns:
      The clips.

    Raises:
      InputError: A name is of more than one line.
    """
    videos = {path.stem: {"": path} for path in sorted(folder.glob("[!.]*.*")) if path.suffix.lower() in VIDEOS}
    names = {stem.removesuffix("_densepose") for stem in videos}
    clips = {name: Raw(name, "videos", videos.get(name, {}), videos.get(f"{name}_densepose", {})) for name in names}
    for path in folder.iterdir():
        if any((path / half).is_dir() for half in HALVES):
            images, renders = (find_pictures(path / half) for half in HALVES)
            clips[path.name] = Raw(path.name, kind, images, renders)
    for name in clips:
        check_name(name, folder)
    return [clips[name] for name in sorted(clips)]


# -- Reading


def read_raw(raw: Raw) -> Iterator[tuple[str, Frame, Frame]]:
    """Go through the frames of a clip.

    Args:
      raw: The clip.

    Yields:
      Name, image and render of each frame: files of pictures, and decoded frames of videos.

    Raises:
      InputError: A video is missing or cannot be read, or the two videos differ in length, so that it is unknown which
        frame belongs to which render.
    """
    if raw.kind == "videos":
        yield from _read_videos(raw)
        return
    for name in sorted(raw.images.keys() | raw.renders.keys(), key=media.natural_order):
        yield name, raw.images.get(name), raw.renders.get(name)


def _read_videos(raw: Raw) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    if not (raw.images and raw.renders):
        raise InputError(f"expected {raw.name}.mp4 and {raw.name}_densepose.mp4, found only one of them")
    images, renders = (media.ffmpeg_frames(files[""]) for files in (raw.images, raw.renders))
    for i, (image, render) in enumerate(itertools.zip_longest(images, renders)):
        if image is None or render is None:
            shorter = "frames" if image is None else "renders"
            raise InputError(f"expected as many frames as renders, found that the {shorter} end after {i}")
        yield str(i), image, render


def check_frame(image: Frame, render: Frame, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a frame and check that one should train on it.

    Args:
      image: The frame.
      render: Its render.
      kind: Of the clip; IUV renders are read by their part index.

    Returns:
      The picture, uint8 `H W 3`, and its labels, integers `H W`.

    Raises:
      InputError: One is missing or cannot be read, their sizes differ, or the render has other colours than DensePose.
    """
    if image is None or render is None:
        raise InputError(f"there is no {'image' if image is None else 'render'} of this name")
    pixels, colours = _read_frame(image), _read_frame(render)
    if pixels.shape != colours.shape:
        (h, w, _), (other_h, other_w, _) = pixels.shape, colours.shape
        raise InputError(f"expected image and render of one size, found {h}x{w} and {other_h}x{other_w}")
    if kind == "iuv":  # stored as BGR, so that the channels of RGB are V, U and I
        parts = colours[..., 2]
        if parts.max() >= PARTS:
            raise InputError(
                f"expected an IUV render with parts 0 to {PARTS - 1} in its blue channel, found {parts.max()}"
            )
        colours = draw_labels(parts)
    if complaint := check_motion(colours[None]).complaint:
        raise InputError(complaint)
    return pixels, read_labels(colours)[0]


def _read_frame(frame: np.ndarray | Path) -> np.ndarray:
    return media.read_image(frame) if isinstance(frame, Path) else frame
