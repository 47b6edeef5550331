"""People who were found are kept on disk piece by piece, so that an interrupted search of a long video goes on."""

import io
import itertools
import json
import logging
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from mafx.densepose.people import Person
from mafx.errors import InputError
from mafx.stamps import STAMP_FILE, Facts, read_stamp, write_stamp, write_whole

FRAMES = 64  # of a piece
log = logging.getLogger("mafx")


class Finder(Protocol):
    """Whatever finds people.

    Attributes:
      warm_up: Frames before the first one that it wants to see, because it follows people.
    """

    warm_up: int

    def find(self, frames: Iterator[np.ndarray]) -> Iterator[list[Person]]:
        """The people of each frame, uint8 `H W 3`, in the order of time."""


def find_and_keep(frames: Iterator[np.ndarray], finder: Finder, folder: Path, facts: Facts) -> Iterator[list[Person]]:
    """The people of each frame: those of earlier starts from `folder`, and the others as they are found.

    Args:
      frames: All frames of the video, uint8 `H W 3`.
      finder: Finds people.
      folder: Where they are kept. What was kept for another video or another finder is thrown away.
      facts: What the people depend on.

    Yields:
      The people of each frame. The caller removes the folder once it has no more use for it.
    """
    _claim(folder, facts)
    done = 0
    recent: deque[np.ndarray] = deque(maxlen=finder.warm_up)
    for path in sorted(folder.glob("[0-9]*.npz")):
        piece = _read_piece(path)
        if piece is None:
            break
        yield from piece
        done += len(piece)
    if done:
        log.info("The people of %d frames were found before.", done)
    for frame in itertools.islice(frames, done):
        recent.append(frame)
    found = finder.find(itertools.chain(recent, frames))
    for _ in range(len(recent)):
        next(found)
    while piece := list(itertools.islice(found, FRAMES)):
        _write_piece(folder / f"{done:08d}.npz", piece)
        done += len(piece)
        yield from piece


def _claim(folder: Path, facts: Facts) -> None:
    """Make the folder one of these facts."""
    try:
        kept = read_stamp(folder / STAMP_FILE)
    except InputError:
        kept = None
    if kept != json.loads(json.dumps(facts)) and folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_stamp(folder / STAMP_FILE, facts)


def _write_piece(path: Path, piece: list[list[Person]]) -> None:
    everybody = [person for people in piece for person in people]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        counts=np.array([len(people) for people in piece]),
        boxes=np.array([person.box for person in everybody], np.int64).reshape(-1, 4),
        shapes=np.array([person.labels.shape for person in everybody], np.int64).reshape(-1, 2),
        scores=np.array([person.score for person in everybody], np.float64),
        labels=np.concatenate([np.zeros(0, np.uint8), *(person.labels.ravel() for person in everybody)]),
    )
    write_whole(path, content.getvalue())


def _read_piece(path: Path) -> list[list[Person]] | None:
    """The people of some frames, None where the file is damaged: they are found once more then."""
    try:
        with np.load(path) as kept:
            counts, boxes, shapes, scores = (kept[name].tolist() for name in ("counts", "boxes", "shapes", "scores"))
            ends = np.cumsum([0, *(h * w for h, w in shapes)])
            labels = kept["labels"]
            pictures = [labels[a:b].reshape(shape) for a, b, shape in zip(ends, ends[1:], shapes, strict=False)]
        everybody = map(Person, map(tuple, boxes), pictures, scores)
        return [list(itertools.islice(everybody, count)) for count in counts]
    except Exception as error:  # whatever NumPy raises at a damaged archive
        log.info("%s cannot be read (%s). Its frames are searched once more.", path, error)
        return None
