"""Clips as they are downloaded: found, checked frame by frame, renders redrawn; each one's result kept in a zip, so that an interrupted preparation
goes on where it stopped."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mafx import media
from mafx.densepose import PARTS, check_motion, draw_labels, read_labels
from mafx.errors import InputError


@dataclasses.dataclass(frozen=True)
class Raw:
    """A clip as it was downloaded, its pictures by their names without suffix.

    `kind` is "pictures", "iuv" (pictures whose renders are IUV images), "videos" (one file each, named "") or "images" (each a clip of its own).
    """

    name: str
    kind: str
    images: dict[str, Path]
    renders: dict[str, Path]


def find_pictures(folder: Path) -> dict[str, Path]:
    """Those of a folder, which need not exist. Hidden files are none: macOS leaves ._0001.png beside 0001.png."""
    return {p.stem: p for p in folder.glob("[!.]*") if p.suffix.lower() in media.PICTURES}


def find_raw(folder: Path, kind: str = "pictures") -> list[Raw]:
    """The clips in a folder, sorted: folders with `images/` or `densepose/`, and NAME.mp4 or NAME_densepose.mp4; halves, too, to be reported.

    A folder goes before videos of its name, whose frames it probably has.
    """
    halves = ("images", "densepose")
    videos = {p.stem: {"": p} for p in folder.glob("[!.]*.mp4")}
    names = {stem.removesuffix("_densepose") for stem in videos}
    clips = {name: Raw(name, "videos", videos.get(name, {}), videos.get(f"{name}_densepose", {})) for name in names}
    folders = [p for p in folder.iterdir() if any((p / half).is_dir() for half in halves)]
    clips |= {p.name: Raw(p.name, kind, *(find_pictures(p / half) for half in halves)) for p in folders}
    return [clips[name] for name in sorted(clips)]


Frame = np.ndarray | Path | None


def read_raw(raw: Raw) -> Iterator[tuple[str, Frame, Frame]]:
    """Name, image and render of each frame. Of videos of different lengths nobody knows which frame belongs to which render: InputError."""
    if raw.kind != "videos":
        natural = lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]  # noqa: E731
        for name in sorted(raw.images.keys() | raw.renders.keys(), key=natural):
            yield name, raw.images.get(name), raw.renders.get(name)
        return
    if not (raw.images and raw.renders):
        raise InputError(f"expected {raw.name}.mp4 and {raw.name}_densepose.mp4, found only one of them")
    decoded = (media.ffmpeg_frames(x[""]) for x in (raw.images, raw.renders))
    for i, (image, render) in enumerate(itertools.zip_longest(*decoded)):
        if image is None or render is None:
            raise InputError(
                f"expected as many frames as renders, found that the {'frames' if image is None else 'renders'} end after {i}"
            )
        yield str(i), image, render


def check_frame(image: Frame, render: Frame, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `H W 3` and labels `H W` of a frame. InputError if one should not train on it."""
    if image is None or render is None:
        raise InputError(f"there is no {'image' if image is None else 'render'} of this name")
    image, render = (media.read_image(x) if isinstance(x, Path) else x for x in (image, render))
    if image.shape != render.shape:
        raise InputError(
            "expected image and render of one size, found {}x{} and {}x{}".format(*image.shape[:2], *render.shape[:2])
        )
    if kind == "iuv":  # its channels, read as RGB, are V, U, I
        if (highest := render[..., 2].max()) >= PARTS:
            raise InputError(f"expected an IUV render with parts 0 to {PARTS - 1} in its blue channel, found {highest}")
        render = draw_labels(render[..., 2])
    if complaint := check_motion(render[None]).complaint:
        raise InputError(complaint)
    return image, read_labels(render)[0]


def stage(raw: Raw, path: Path) -> dict:
    """Write the zip, unless it is there, and return its `clip.json`: of the longest unbroken run of good frames number and name are `kept`, of all
    others name (None: the whole clip) and reason `left_out`. The zip holds renders and the frames of videos; pictures stay where they are."""
    files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (*raw.images.values(), *raw.renders.values())]
    fingerprint = hashlib.sha256(repr(files).encode()).hexdigest()
    with contextlib.suppress(FileNotFoundError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        staged = json.loads(archive.read("clip.json"))
        if staged["fingerprint"] == fingerprint:
            return staged
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")  # whole or not there
    with zipfile.ZipFile(part, "w") as archive:
        frames, left_out = [], []  # name and size of each, which is None where it is not good
        try:
            for i, (name, image, render) in enumerate(read_raw(raw)):
                try:
                    pixels, labels = check_frame(image, render, raw.kind)
                except InputError as error:
                    frames.append((name, None))
                    left_out.append((name, str(error)))
                    continue
                frames.append((name, labels.shape))
                with archive.open(f"{i}.png", "w") as file:
                    Image.fromarray(draw_labels(labels)).save(file, "PNG")
                if raw.kind == "videos":
                    with archive.open(f"{i}.jpg", "w") as file:
                        Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
        except InputError as error:
            frames, left_out = [], [(None, str(error))]
        runs = [
            [(i, name) for i, (name, _) in run]
            for size, run in itertools.groupby(enumerate(frames), lambda x: x[1][1])
            if size
        ]
        good = list(itertools.chain(*runs))
        kept = good if raw.kind == "images" else max(runs, key=len, default=[])
        left_out += [
            (name, "outside the longest unbroken run of good frames of one size")
            for _, name in sorted({*good} - {*kept})
        ]
        staged = {"fingerprint": fingerprint, "kept": kept, "left_out": left_out}
        archive.writestr("clip.json", json.dumps(staged))
    part.rename(path)
    return staged


def examples(raw: Raw, path: Path, kept: list[tuple[int, str]]) -> Iterator[tuple[int, dict]]:
    """The records of a staged clip. Open files, not bytes: tensorflow-datasets holds all examples of a shard until it is written."""
    with zipfile.ZipFile(path) as archive:
        for i, name in kept:
            clip, frame = (name, 0) if raw.kind == "images" else (raw.name, i)
            image = archive.open(f"{i}.jpg") if raw.kind == "videos" else raw.images[name]
            yield i, {"image": image, "motion": archive.open(f"{i}.png"), "clip": clip, "frame": frame}
