"""How far two motions agree: the same video drawn by two ways, or a motion before and after compression.

    python -m mafx.densepose.agreement A.mp4 B.mkv

Both are read frame by frame. A frame or a pixel counts where either of them shows a person.
"""

import itertools
import sys
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mafx.commands import Parser, parse_count, run_command
from mafx.densepose import PARTS, read_labels
from mafx.densepose.align import PARTS_OF
from mafx.errors import InputError
from mafx.limits import add_limit_flags, set_limits
from mafx.media import stream_video
from mafx.tables import markdown_table

NAME = "python -m mafx.densepose.agreement"
PART_NAMES = (
    *("background", "torso", "right hand", "left hand", "left foot", "right foot", "right upper leg", "left upper leg"),
    *("right lower leg", "left lower leg", "left upper arm", "right upper arm", "left lower arm", "right lower arm"),
    "head",
)


class Agreement(NamedTuple):
    """How far label maps agree; nan where nobody is shown.

    Attributes:
      frames: Number of frames.
      equal: Share of all pixels whose labels are equal.
      person: Intersection over union of the people.
      labels: Share of the union's pixels whose 24 labels are equal.
      parts: Share of the union's pixels whose 14 parts are equal.
      of_parts: Intersection over union of each part, `15`; the first is the background's.
      changing: Share of the union's pixels that change from frame to frame, of each of both.
    """

    frames: int
    equal: float
    person: float
    labels: float
    parts: float
    of_parts: np.ndarray
    changing: tuple[float, float]


def agree(first: Iterable[np.ndarray], second: Iterable[np.ndarray]) -> Agreement:
    """Compare two videos of labels, `H W` each, of one size and length, frame by frame.

    Raises:
      InputError: They differ in size or in length.
    """
    counts = np.zeros((PARTS, PARTS), np.int64)
    frames, changed, shown = 0, np.zeros(2), np.zeros(2)
    before: tuple[np.ndarray, np.ndarray] | None = None
    for a, b in itertools.zip_longest(first, second):
        if a is None or b is None or a.shape != b.shape:
            sizes = " and ".join("nothing" if x is None else "x".join(map(str, x.shape)) for x in (a, b))
            raise InputError(f"expected two motions of one length and size, found {sizes} at frame {frames}")
        frames += 1
        counts += np.bincount(a.astype(int).ravel() * PARTS + b.ravel(), minlength=PARTS**2).reshape(PARTS, PARTS)
        for i, (x, x_before) in enumerate(zip((a, b), before or (a, b), strict=True)):
            changed[i] += np.count_nonzero(x != x_before)
            shown[i] += np.count_nonzero(x | x_before) if before else 0
        before = a, b
    return _summary(counts, frames, changed, shown)


def _summary(counts: np.ndarray, frames: int, changed: np.ndarray, shown: np.ndarray) -> Agreement:
    """The figures of how often label `i` of one video meets label `j` of the other, `25 25`."""
    coarse = np.zeros((len(PART_NAMES), len(PART_NAMES)))
    np.add.at(coarse, np.ix_(PARTS_OF, PARTS_OF), counts)
    union = counts.sum() - counts[0, 0]
    either = coarse.sum(0) + coarse.sum(1) - coarse.diagonal()
    with np.errstate(invalid="ignore"):
        return Agreement(
            frames,
            float(np.divide(np.trace(counts), counts.sum())),
            float(np.divide(counts[1:, 1:].sum(), union)),
            float(np.divide(np.trace(counts[1:, 1:]), union)),
            float(np.divide(np.trace(coarse[1:, 1:]), union)),
            coarse.diagonal() / either,
            tuple((changed / shown).tolist()),
        )


def report(found: Agreement) -> str:
    """A table of all figures."""
    rows = [
        ("pixels with equal labels", found.equal),
        ("person, intersection over union", found.person),
        ("24 labels equal, of the person's pixels", found.labels),
        ("14 parts equal, of the person's pixels", found.parts),
        *((f"{name}, intersection over union", x) for name, x in zip(PART_NAMES, found.of_parts, strict=True)),
        ("pixels that change a frame, in the first", found.changing[0]),
        ("pixels that change a frame, in the second", found.changing[1]),
    ]
    shown = [(name, f"{x:.3f}") for name, x in rows if not np.isnan(x)]
    return markdown_table((f"{found.frames} frames", "share"), shown)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(NAME, __doc__)
    parser.usage = f"{NAME} FIRST SECOND [FLAGS]"
    parser.add_argument("first", metavar="FIRST", help="A motion: a video or a folder of renders.")
    parser.add_argument("second", metavar="SECOND", help="Another one of the same frames.")
    parser.add_argument("--frames", type=parse_count, help="Compare at most so many frames.")
    add_limit_flags(parser)
    args = parser.parse_args(arguments)
    set_limits(args)
    videos = (stream_video(path, limit=args.frames).frames for path in (args.first, args.second))
    print(report(agree(*((read_labels(frame)[0] for frame in video) for video in videos))))


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
