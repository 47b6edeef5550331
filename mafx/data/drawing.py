"""Renders for clips that have none: people are found in their images, and drawn.

Every clip is drawn into a file or a folder of its own, which is complete or absent: an interrupted preparation goes on,
and several processes, on one machine or many, share a set of clips through a folder that all of them see.
"""

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from mafx import media
from mafx.data.raw import Raw, find_pictures
from mafx.densepose import draw_labels
from mafx.densepose.finders import FinderOptions, make_finder
from mafx.densepose.motions import MotionOptions, draw_motion, forget, kept_beside, label_picture, make_motion
from mafx.errors import InputError
from mafx.interrupts import partial_path

LANDMARKS = "landmarks"  # the value of --poses that takes no weights
POLL_SECONDS = 2.0
log = logging.getLogger("mafx")


@dataclasses.dataclass(frozen=True)
class Share:
    """Which of the clips a process draws: those whose number leaves the rest `index` when divided by `count`."""

    index: int
    count: int


WHOLE = Share(0, 1)


def finder_options(poses: str) -> FinderOptions:
    """How people are found: "landmarks", or a file of weights."""
    return FinderOptions(weights=None if poses == LANDMARKS else poses)


def draw_missing(
    raws: Sequence[tuple[Path, Raw]], options: FinderOptions, share: Share = WHOLE
) -> list[tuple[Raw, str | None]]:
    """Draw the renders of clips that have none.

    Args:
      raws: Each clip, and where its renders go, without a suffix.
      options: How people are found.
      share: The clips that this process draws. The first one waits for those that others draw.

    Returns:
      Each clip with its renders. Where they could not be drawn, the clip as it was, and the reason. In processes but
      the first, nothing.
    """
    missing = [(place, raw) for place, raw in raws if not raw.renders]
    own = missing[share.index :: share.count]
    for place, raw in tqdm(own, "drawing", unit="clip", disable=not own):
        if not _is_done(place, raw):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                _draw(place, raw, options)
            except InputError as error:
                _reason_file(place).write_text(str(error), "utf-8")
    if share.index:
        return []
    _wait(missing)
    return [(raw, None) if raw.renders else _with_renders(place, raw) for place, raw in raws]


def _wait(clips: list[tuple[Path, Raw]]) -> None:
    """Wait until other processes have drawn their share of these clips, or have said why they cannot."""
    for i in itertools.count():
        left = [place for place, raw in clips if not _is_done(place, raw)]
        if not left:
            return
        if i % 30 == 0:
            log.info("Waiting for %d clips that other processes draw.", len(left))
        time.sleep(POLL_SECONDS)


def _is_done(place: Path, raw: Raw) -> bool:
    return _drawn(place, raw).exists() or _reason_file(place).exists()


def _reason_file(place: Path) -> Path:
    """Why a clip cannot be drawn."""
    return place.with_name(f"{place.name}.txt")


def _drawn(place: Path, raw: Raw) -> Path:
    """The video, or the folder, of a clip's renders."""
    return place.with_name(f"{place.name}.mkv") if raw.kind == "videos" else place


def _with_renders(place: Path, raw: Raw) -> tuple[Raw, str | None]:
    """The clip with the renders that were drawn, or as it was, and the reason."""
    drawn = _drawn(place, raw)
    if not drawn.exists():
        return raw, _reason_file(place).read_text("utf-8")
    renders = {"": drawn} if raw.kind == "videos" else find_pictures(drawn)
    return dataclasses.replace(raw, renders=renders, kind="pictures" if raw.kind == "iuv" else raw.kind), None


def _draw(place: Path, raw: Raw, options: FinderOptions) -> None:
    """Draw one clip."""
    make, how = functools.partial(make_finder, options), MotionOptions(kind="people")
    if raw.kind == "images":
        _write_pictures(place, {name: _draw_picture(path, options) for name, path in raw.images.items()})
    elif raw.kind == "videos":
        draw_motion(raw.images[""], _drawn(place, raw), how, make)
    else:
        kept = kept_beside(place)
        motion = make_motion(next(iter(raw.images.values())).parent, how, make, kept)
        names = sorted(raw.images, key=media.natural_order)
        _write_pictures(place, dict(zip(names, map(draw_labels, motion), strict=True)))
        forget(kept)


def _draw_picture(path: Path, options: FinderOptions) -> np.ndarray | None:
    """The render of a photograph; None where it cannot be read."""
    try:
        picture = media.read_image(path)
    except InputError:
        return None  # checking it says why
    finder, _ = make_finder(options, media.DEFAULT_FPS, is_video=False)
    return draw_labels(label_picture(picture, finder))


def _write_pictures(folder: Path, renders: dict[str, np.ndarray | None]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    with partial_path(part):
        part.mkdir()
        for name, render in renders.items():
            if render is not None:
                Image.fromarray(render).save(part / f"{name}.png")
        part.rename(folder)
