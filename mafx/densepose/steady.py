"""Labels that hold still: what a finder loses for a few frames is filled, and what flickers for one is undone.

Everything goes frame by frame, and a handful of frames is in memory.
"""

import collections
from collections.abc import Iterable, Iterator

import numpy as np
from scipy import ndimage

LONGEST_HOLE = 8  # frames without a person that are filled
WHOLE = 0.3  # share of a part's pixels from which on a change is a movement, not a flicker

# What kind of part a label is: torso, hand, foot, upper leg, lower leg, upper arm, lower arm, head. Sides do not count.
KINDS = np.array([0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 8, 8])


def fill_holes(labels: Iterable[np.ndarray], longest: int = LONGEST_HOLE) -> Iterator[np.ndarray]:
    """Show the nearest frame with a person where there is none for a short time.

    Args:
      labels: uint8 `H W` each. A frame without labels is a hole.
      longest: Number of frames of a hole that is filled. Longer ones stay, and so do those at the ends of the video.

    Yields:
      As many frames. At most `longest` are held back.
    """
    before: np.ndarray | None = None
    hole: list[np.ndarray] = []
    for frame in labels:
        if not frame.any() and before is not None and len(hole) <= longest:
            hole.append(frame)
            if len(hole) > longest:
                yield from hole
                before, hole = None, []
            continue
        for i, empty in enumerate(hole):
            nearest = before if 2 * i < len(hole) else frame
            yield empty if nearest is None else nearest
        hole = []
        before = frame if frame.any() else None
        yield frame
    yield from hole


def without_flicker(labels: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Undo what a single frame shows otherwise than both the frame before and the frame after.

    A limb that moves fast is on a place for one frame only, too. It stays: where a large share of a part comes and
    goes, and the part itself is there before or after, it has moved. Sides that are swapped, parts that are missing,
    spots, and parts that are there for one frame only are flicker.

    Args:
      labels: uint8 `H W` each, 0 to 24.

    Yields:
      As many frames, each one frame late.
    """
    window: collections.deque[np.ndarray] = collections.deque(maxlen=3)
    for frame in labels:
        window.append(frame)
        if len(window) == 2:
            yield window[0]
        elif len(window) == 3:
            yield _steadied(*window)
    if window:
        yield window[-1]


def _steadied(before: np.ndarray, now: np.ndarray, after: np.ndarray) -> np.ndarray:
    changed = (before == after) & (now != before)
    if not changed.any() or not (before.any() and after.any()):
        return now
    flicker = changed & ((KINDS[now] == KINDS[before]) | (now == 0))
    sizes, sizes_before, sizes_after = (np.bincount(x.ravel(), minlength=len(KINDS)) for x in (now, before, after))
    least = np.where((sizes_before > 0) | (sizes_after > 0), WHOLE * sizes, np.inf)  # pixels of a movement
    regions, _ = ndimage.label(changed & ~flicker)
    flicker |= (regions > 0) & (np.bincount(regions.ravel())[regions] < least[now])
    return np.where(flicker, before, now)
