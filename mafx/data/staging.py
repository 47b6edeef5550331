"""Checked clips between download and records.

Each clip that has been checked is kept in a zip, so that an interrupted preparation continues where it stopped. The
zip holds the redrawn renders, the frames of videos as JPEG, and `clip.json`: what is kept, what is left out and why.
Pictures stay where they were downloaded.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mafx.data.raw import Raw, check_frame, read_raw
from mafx.densepose import draw_labels
from mafx.errors import InputError, refusals
from mafx.files import check_regular, parse_json
from mafx.interrupts import partial_path
from mafx.limits import JSON_BYTES

INDEX = "clip.json"
JPEG = {"quality": 95, "subsampling": 0}  # 4:4:4: colours at full resolution

Kept = list[tuple[int, str]]
LeftOut = list[tuple[str | None, str]]


@dataclasses.dataclass(frozen=True)
class Staged:
    """A clip that has been checked.

    Attributes:
      raw: The clip as it was downloaded.
      archive: Its zip.
      kept: Number and name of each frame that is used. They follow one another without a gap, except in "images".
      left_out: Name (None is the whole clip) and reason of everything that is not used.
    """

    raw: Raw
    archive: Path
    kept: Kept
    left_out: LeftOut

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Key and features of each record.

        Pictures are open files rather than bytes, because tensorflow-datasets holds all records of a shard in memory
        until the shard is written.
        """
        with zipfile.ZipFile(self.archive) as archive:
            for i, name in self.kept:
                clip, frame = (name, 0) if self.raw.kind == "images" else (self.raw.name, i)
                image = archive.open(f"{i}.jpg") if self.raw.kind == "videos" else self.raw.images[name]
                yield i, {"image": image, "motion": archive.open(f"{i}.png"), "clip": clip, "frame": frame}


def stage(raw: Raw, archive: Path) -> Staged:
    """Check a clip, unless its zip is there and its files have not changed since.

    Args:
      raw: The clip.
      archive: The zip, which is written under a temporary name first, so that it is complete or absent.

    Returns:
      The longest unbroken run of good frames of one size; of "images", all good ones.
    """
    fingerprint = _fingerprint(raw)
    with contextlib.suppress(InputError):  # of a zip that is not there or not whole: it is made anew
        index = _read_index(archive)
        if index.fingerprint == fingerprint:
            return Staged(raw, archive, index.kept, index.left_out)
    archive.parent.mkdir(parents=True, exist_ok=True)
    partial = archive.with_name(f"{archive.name}.part")
    with partial_path(partial):
        with zipfile.ZipFile(partial, "w") as file:
            kept, left_out = _check_clip(raw, file)
            file.writestr(INDEX, json.dumps({"fingerprint": fingerprint, "kept": kept, "left_out": left_out}))
        partial.rename(archive)
    return Staged(raw, archive, kept, left_out)


@dataclasses.dataclass(frozen=True)
class Index:
    """What `clip.json` holds."""

    fingerprint: str
    kept: Kept
    left_out: LeftOut


def _read_index(archive: Path) -> Index:
    check_regular(archive)
    with refusals(f"{archive} is no whole zip of a checked clip"), zipfile.ZipFile(archive) as file:
        JSON_BYTES.check(archive, file.getinfo(INDEX).file_size)
        return parse_json(file.read(INDEX), archive, Index)


def _fingerprint(raw: Raw) -> str:
    """Changes with the names, sizes and times of a clip's files."""
    files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (*raw.images.values(), *raw.renders.values())]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def _check_clip(raw: Raw, archive: zipfile.ZipFile) -> tuple[Kept, LeftOut]:
    """Write the good frames of a clip, and decide which of them are kept."""
    frames: list[tuple[str, tuple[int, ...] | None]] = []  # name, and size where the frame is good
    left_out: LeftOut = []
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
                    Image.fromarray(pixels).save(file, "JPEG", **JPEG)
    except InputError as error:  # of the whole clip
        return [], [(None, str(error))]
    runs = _unbroken_runs(frames)
    good = list(itertools.chain(*runs))
    kept = good if raw.kind == "images" else max(runs, key=len, default=[])
    outside = sorted({*good} - {*kept})
    left_out += [(name, "outside the longest unbroken run of good frames of one size") for _, name in outside]
    return kept, left_out


def _unbroken_runs(frames: list[tuple[str, tuple[int, ...] | None]]) -> list[Kept]:
    """Numbers and names of consecutive frames of one size; frames without a size separate runs."""
    runs = []
    for size, run in itertools.groupby(enumerate(frames), lambda numbered: numbered[1][1]):
        if size is not None:
            runs.append([(i, name) for i, (name, _) in run])
    return runs
