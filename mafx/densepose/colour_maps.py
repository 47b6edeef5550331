"""Renders in other colours: which colour map drew the labels of a video, and what the labels are.

colour_maps.npz has the 25 colours of 60 maps of matplotlib 3.11 and OpenCV 5.0, at trunc(label * 255 / 24): those whose
colours lie at least 8 apart in a channel, so that compression does not mix them up. Grey ones are not among them: any
grey photograph looks as if it were drawn with them.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mafx.densepose import FITTING, PALETTE, PARTS, PERSON, TOLERANCE, read_labels
from mafx.errors import InputError

FILE = Path(__file__).with_name("colour_maps.npz")
OPACITIES = (1.0, 0.7)  # at which tools draw parts on their canvas; vid2densepose has both
SAMPLED = 2000  # pixels by which a map is recognised
FAR = 24.0  # larger distances to a palette count as this
NEAR = 4  # between colours that count as one
FLAT = 0.8  # least share of neighbouring pixels of one colour: a render has areas, a grey photograph has gradients
COLOURED = 24  # least difference of two channels of a colour that is not grey
LEAST_LABELS = 3  # that a video shows in colour, with the background

Reader = Callable[[np.ndarray], np.ndarray]  # a render uint8 `H W 3` to its labels uint8 `H W`


class Palette(NamedTuple):
    """The colours that a tool draws labels with.

    Attributes:
      name: For people to read.
      colours: uint8 `25 3`.
    """

    name: str
    colours: np.ndarray


@functools.cache
def known_palettes() -> tuple[Palette, ...]:
    """mafx's own palette, and all maps on their first colour or on black, opaque or not, in RGB and in BGR."""
    with np.load(FILE) as file:
        maps = dict(zip(map(str, file["names"]), file["colours"], strict=True))
    palettes = [Palette("viridis", PALETTE)]
    for name, colours in maps.items():
        canvases = {"": colours[0]} | ({" on black": np.zeros(3, np.uint8)} if colours[0].any() else {})
        for place, canvas in canvases.items():
            for opacity in OPACITIES:
                blended = (opacity * colours + (1 - opacity) * canvas + 1e-4).astype(np.uint8)  # truncated, as OpenCV's
                blended[0] = canvas
                title = f"{name}{place}" + ("" if opacity == 1 else f" at {opacity:.0%}")
                palettes += [
                    Palette(title, blended),
                    Palette(f"{title}, red and blue swapped", blended[:, ::-1]),
                ]
    return tuple(palettes)


def recognise(frames: np.ndarray) -> Palette | None:
    """The palette with which a video of labels was drawn, None where it is none of the known ones.

    Args:
      frames: uint8 `f H W 3`, some frames of the video.
    """
    flat = (np.abs(np.diff(frames.astype(np.int16), axis=2)).max(-1) < NEAR).mean()
    if flat < FLAT:
        return None
    pixels = frames.reshape(-1, 3)
    pixels = pixels[np.linspace(0, len(pixels) - 1, SAMPLED).astype(int)]
    palettes = known_palettes()
    distances = _distances(pixels, np.stack([palette.colours for palette in palettes]))
    best = palettes[np.minimum(distances, FAR).mean(1).argmin()]

    differences = np.abs(pixels[:, None].astype(np.int16) - best.colours.astype(np.int16)).max(-1)
    fits, labels = differences.min(-1) <= TOLERANCE, differences.argmin(-1)
    shown = np.ptp(best.colours[np.unique(labels[fits])].astype(int), axis=-1) >= COLOURED
    if fits.mean() < FITTING or (fits & (labels > 0)).mean() < PERSON or shown.sum() < LEAST_LABELS:
        return None
    return best


def _distances(pixels: np.ndarray, palettes: np.ndarray) -> np.ndarray:
    """The distance `n p` of each of `p` pixels to the nearest colour of each of `n` palettes, uint8 `n 25 3`."""
    x, colours = pixels.astype(np.float32), palettes.reshape(-1, 3).astype(np.float32)
    squares = np.square(colours).sum(-1)[:, None] - 2 * colours @ x.T  # by a matrix product, which is fast
    nearest = squares.reshape(*palettes.shape[:2], -1).min(1) + np.square(x).sum(-1)
    return np.sqrt(np.maximum(nearest, 0))


def read_drawn(frame: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The labels uint8 `H W` of a render `H W 3` that was drawn with colours `25 3`."""
    return read_labels(frame, colours)[0].astype(np.uint8)


def is_iuv(frames: np.ndarray) -> bool:
    """Whether pictures `f H W 3` are IUV images, as DensePose for Caffe2 writes them: BGR, part index, U and V.

    Read as RGB, the last channel is the index, and the first two are 0 where it is.
    """
    surface, index = frames[..., :2], frames[..., 2]
    person = index > 0
    return bool(
        index.max() < PARTS and PERSON <= person.mean() < 1 and not surface[~person].any() and surface[person].any()
    )


def read_iuv(frame: np.ndarray) -> np.ndarray:
    """The labels uint8 `H W` of an IUV image `H W 3`. Raises InputError where it is none."""
    parts = frame[..., 2]
    if parts.max() >= PARTS:
        raise InputError(f"expected an IUV render with parts 0 to {PARTS - 1} in its blue channel, found {parts.max()}")
    return parts


def find_reader(frames: np.ndarray) -> tuple[str, Reader] | None:
    """How to read the labels of a video of which some frames `f H W 3` are given, with its name in words.

    None where the video shows no labels, but people perhaps.
    """
    if is_iuv(frames):
        return "IUV images", read_iuv
    if palette := recognise(frames):
        return f"labels drawn with {palette.name}", functools.partial(read_drawn, colours=palette.colours)
    return None
