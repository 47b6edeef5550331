"""Pictures with words: heat maps, matrices, and sheets that set many of them side by side. All are uint8 `H W 3`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mafx import media
from mafx.densepose import PALETTE
from mafx.models.attention import Grid

SIDE = 144  # pixels of the longer side of a cell's picture
GAP = 6  # between cells
TEXT = 13  # pixels of a line's letters
LINE = TEXT + 4
MARGIN = 150  # at the left of a sheet, for the names of its rows
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (230, 30, 30)
FAINT = 0.25  # how much of a heat map's colour lies over the picture where the weight is 0


class Cell(NamedTuple):
    """A picture of a sheet, and a line below it."""

    picture: np.ndarray
    caption: str = ""


# -- One picture


def viridis(values: np.ndarray) -> np.ndarray:
    """Colours of numbers in [0, 1], uint8 `... 3`. The palette of renders has 25 of viridis' colours."""
    places = np.clip(values, 0, 1) * (len(PALETTE) - 1)
    channels = [np.interp(places, np.arange(len(PALETTE)), PALETTE[:, c]) for c in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def shown(picture: np.ndarray, side: int = SIDE) -> np.ndarray:
    """A picture for a cell: repeated pixels where it is small, reduced where it is large."""
    H, W = picture.shape[:2]
    if max(H, W) <= side:
        return media.enlarge(picture, side // max(H, W))
    scale = side / max(H, W)
    return media.resize(picture, (max(1, round(H * scale)), max(1, round(W * scale))))


def heat_map(picture: np.ndarray, weights: np.ndarray, grid: Grid) -> np.ndarray:
    """Lay weights over a picture in grey: yellow where they are largest, dark blue where there are none.

    Args:
      picture: uint8 `H W 3`.
      weights: At least 0, of `m` tokens.
      grid: Rows and columns of the tokens. They show as they are, unsmoothed.
    """
    H, W = picture.shape[:2]
    h, w = grid
    share = weights.reshape(h, w) / max(weights.max(), np.finfo(np.float32).tiny)
    share = share[np.arange(H)[:, None] * h // H, np.arange(W) * w // W]
    grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None]
    part = FAINT + (0.8 - FAINT) * share[..., None]
    return ((1 - part) * grey + part * viridis(share)).round().astype(np.uint8)


def mark(picture: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """Draw a ring around a point, given as shares of height and width."""
    H, W = picture.shape[:2]
    image = Image.fromarray(picture)
    y, x = point[0] * H, point[1] * W
    draw = ImageDraw.Draw(image)
    for radius, colour in ((7, WHITE), (5, RED)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    return np.asarray(image)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far two pictures differ at each pixel, in its largest channel: yellow from 128 of 255 on."""
    return viridis(np.abs(a.astype(int) - b).max(-1) / 128)


# -- Matrices


def matrix(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, side: int, numbers: bool = False
) -> np.ndarray:
    """A matrix `r c` of numbers from 0 on as colours, yellow for the largest, with names at its left and below it.

    Args:
      values: The numbers.
      rows: Names of the rows; an empty one shows nothing.
      columns: Names of the columns.
      side: Pixels of the side of an element.
      numbers: Whether each number is written into its element.
    """
    r, c = values.shape
    left = int(max(_width(name) for name in rows)) + GAP
    image = Image.new("RGB", (left + c * side + GAP, r * side + LINE), WHITE)
    draw = ImageDraw.Draw(image)
    share = values / max(values.max(), np.finfo(np.float32).tiny)
    image.paste(Image.fromarray(media.enlarge(viridis(share), side)), (left, 0))
    for i, name in enumerate(rows):
        draw.text((left - GAP / 2, (i + 0.5) * side), name, BLACK, _font(), anchor="rm")
    for j, name in enumerate(columns):
        draw.text((left + (j + 0.5) * side, r * side + 2), name, BLACK, _font(), anchor="mt")
    for i, j in np.ndindex(values.shape) if numbers else ():
        colour = BLACK if share[i, j] > 0.6 else WHITE
        draw.text((left + (j + 0.5) * side, (i + 0.5) * side), f"{values[i, j]:.2f}", colour, _font(), anchor="mm")
    return np.asarray(image)


def frame_matrix(weights: np.ndarray, frames: Sequence[int], side: int = SIDE) -> np.ndarray:
    """How much each frame (rows) attends each frame (columns), with the numbers of the first, middle and last one."""
    last = len(frames) - 1
    names = [str(x) if i in (0, last // 2, last) else "" for i, x in enumerate(frames)]
    return matrix(weights, names, names, side=max(1, side // len(frames)))


# -- Sheets


def sheet(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> np.ndarray:
    """Set pictures side by side, with a title, names of the columns and of the rows, and lines below the pictures.

    Args:
      title: One line.
      columns: Names; none where there are fewer than cells.
      rows: Cells by the name of their row, which may have several lines.
    """
    cells = [cell for row in rows.values() for cell in row]
    width = max(max(cell.picture.shape[1], int(_width(cell.caption))) for cell in cells) + GAP
    width = max([width, *(int(_width(name)) + GAP for name in columns)])
    heights = [max(cell.picture.shape[0] for cell in row) + LINE + GAP for row in rows.values()]
    total = MARGIN + width * max(len(row) for row in rows.values())
    top = 2 * LINE if any(columns) else LINE
    image = Image.new("RGB", (max(total, int(_width(title)) + 2 * GAP), GAP + top + sum(heights)), WHITE)
    draw = ImageDraw.Draw(image)
    draw.text((GAP, GAP), title, BLACK, _font())
    for j, name in enumerate(columns):
        draw.text((MARGIN + j * width, GAP + LINE), name, BLACK, _font())
    y = GAP + top
    for height, (name, row) in zip(heights, rows.items(), strict=True):
        draw.multiline_text((GAP, y), name, BLACK, _font())
        for j, cell in enumerate(row):
            image.paste(Image.fromarray(cell.picture), (MARGIN + j * width, y))
            draw.text((MARGIN + j * width, y + cell.picture.shape[0] + 1), cell.caption, BLACK, _font())
        y += height
    return np.asarray(image)


def stack(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Set sheets below one another on white."""
    width = max(x.shape[1] for x in sheets)
    return np.concatenate(
        [np.pad(x, ((0, 2 * GAP), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in sheets]
    )


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(TEXT)


def _width(text: str) -> float:
    return _font().getlength(text)
