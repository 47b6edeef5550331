"""Whether a place of a frame looks at the same part of the body in the reference: the share of its attention, measured.

Renders say which of 14 parts each pixel shows, in the reference and in the frames. Attention to a token counts evenly
for the token's pixels. Only what falls on the person counts, so that chance is a part's share of the person's pixels.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from mafx.data.clips import Clip
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.densepose.agreement import PART_NAMES
from mafx.densepose.align import PARTS_OF
from mafx.errors import InputError
from mafx.evaluation.summary import Interval, mean_interval
from mafx.inspect import pictures
from mafx.inspect.pictures import Cell
from mafx.inspect.record import Places, token_grid, token_of
from mafx.inspect.recording import Recording, record
from mafx.models.attention import Grid
from mafx.program import Program
from mafx.tables import markdown_table

PART_COUNT = int(PARTS_OF.max()) + 1  # with the background
SIDED = range(2, 14)  # parts that come in pairs; the other one of a pair differs in the last bit
BACK = np.array([1, 7, 8, 11, 12, 15, 16, 19, 20])  # labels of what is seen from behind
PLACES = 256  # of a clip
MEASURES = ("part", "side", "behind")  # that have a chance

# What is measured of a place, and by which name.
FIGURES = {
    "reference": "of its attention, on the reference",
    "person": "of that, on the person",
    "person_chance": "by chance",
    "part": "of that, on the same part",
    "part_chance": "by chance",
    "part_still": "at the same place of the picture",
    "part_top": "at the place attended most",
    "side": "of what is on its part left and right, on the right side",
    "side_chance": "by chance",
    "side_still": "at the same place of the picture",
    "side_top": "at the place attended most",
    "behind": "the same, of what is seen from behind",
    "behind_chance": "by chance",
    "behind_still": "at the same place of the picture",
    "behind_top": "at the place attended most",
}
Shares = dict[str, float]  # by the names of FIGURES; nan where no place counts


class Measured(NamedTuple):
    """What is measured of the places of a clip, in one layer at one step.

    Attributes:
      shares: Means over places.
      by_part: Of places on one of 14 parts (rows), the shares of their attention on each part (columns), of what falls
        on the person, float64 `14 14`; nan where the clip has no such place.
    """

    shares: Shares
    by_part: np.ndarray


Layers = dict[str, Measured]  # by the names of the layers


@dataclasses.dataclass(frozen=True)
class Seen:
    """Places of frames whose part the reference shows too.

    Attributes:
      places: Their positions.
      parts: Their parts, int `p`, 1 to 14.
      behind: Whether they are seen from behind, bool `p`.
    """

    places: Places
    parts: np.ndarray
    behind: np.ndarray


def choose_places(reference: np.ndarray, motion: np.ndarray, seed: int, count: int = PLACES) -> Seen:
    """Choose places at random on the people of labels `f H W`, of parts that the labels `H W` of a reference show.

    There are always `count`; where too few pixels fit, some are chosen several times.

    Raises:
      InputError: No pixel fits.
    """
    parts = PARTS_OF[motion]
    visible = np.isin(parts, np.setdiff1d(PARTS_OF[reference], 0))
    if not visible.any():
        raise InputError("expected frames that show a body part which the reference shows too, found none")
    pixels = np.argwhere(visible)
    chosen = pixels[np.random.default_rng(seed).integers(len(pixels), size=count)]
    points = (chosen[:, 1:] + 0.5) / motion.shape[1:]
    where = tuple(chosen.T)
    return Seen(Places(chosen[:, 0], points), parts[where], np.isin(motion[where], BACK))


def part_shares(labels: np.ndarray, grid: Grid) -> np.ndarray:
    """The share of each part in the pixels of each token, `m 15`, for the labels `H W` of a reference."""
    H, W = labels.shape
    rows, columns = np.indices((H, W)).reshape(2, -1)
    points = np.stack([(rows + 0.5) / H, (columns + 0.5) / W], axis=1)
    counts = np.zeros((grid[0] * grid[1], PART_COUNT))
    np.add.at(counts, (token_of(points, grid), PARTS_OF[labels].ravel()), 1)
    return counts / counts.sum(1, keepdims=True)


def measure_attention(weights: np.ndarray, labels: np.ndarray, seen: Seen, grid: Grid) -> Measured:
    """Measure where places look.

    Args:
      weights: Attention of the places to the reference's tokens, `p m`.
      labels: Of the reference, `H W`.
      seen: The places.
      grid: Rows and columns of the tokens.
    """
    shares = part_shares(labels, grid)
    at = token_of(seen.places.points, grid)
    shown = shares[:, 1:].sum(1) > 0
    areas = np.bincount(PARTS_OF[labels].ravel(), minlength=PART_COUNT)
    chance = np.broadcast_to(areas / labels.size, (len(at), PART_COUNT))
    on_parts = {
        "": weights @ shares,
        "_chance": chance,
        # A place where the reference shows no person says no more than chance.
        "_still": np.where(shown[at, None], shares[at], chance),
        "_top": shares[np.where(shown, weights, -1).argmax(1)],
    }
    sided = np.isin(seen.parts, SIDED)
    behind = sided & seen.behind
    figures = {"reference": _mean(weights.sum(1))}
    for name, x in on_parts.items():
        figures[f"person{name}"] = _mean(x[:, 1:].sum(1) / x.sum(1))
        figures[f"part{name}"] = _mean(_own_part(x, seen.parts))
        figures[f"side{name}"] = _mean(_own_side(x[sided], seen.parts[sided]))
        figures[f"behind{name}"] = _mean(_own_side(x[behind], seen.parts[behind]))
    shares_of_person = on_parts[""][:, 1:] / on_parts[""][:, 1:].sum(1, keepdims=True)
    by_part = np.stack([_mean(shares_of_person[seen.parts == part]) for part in range(1, PART_COUNT)])
    return Measured({name: float(figures[name]) for name in FIGURES}, by_part)


def _own_part(on_parts: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The share of what falls on the person, `p 15` with the background, that falls on the place's own part."""
    return np.take_along_axis(on_parts, parts[:, None], 1)[:, 0] / on_parts[:, 1:].sum(1)


def _own_side(on_parts: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The share of what falls on both parts of a pair that falls on the place's own; nan where neither has any."""
    own, other = (np.take_along_axis(on_parts, x[:, None], 1)[:, 0] for x in (parts, parts ^ 1))
    with np.errstate(invalid="ignore"):
        return own / (own + other)


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean along the first axis of what is finite; nan where nothing is."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0).sum(0) / finite.sum(0)


# -- Measuring clips


def measure_recording(recording: Recording, labels: np.ndarray, seed: int, steps: Iterable[int]) -> list[Layers]:
    """Measure places of the first window, by layer, for each of some steps. `labels` are the reference's, `H W`."""
    window = recording.window(0)
    position = np.flatnonzero(window < recording.frames)  # frames that only fill the window up do not count
    seen = choose_places(labels, read_labels(recording.motion[window[position]])[0], seed)
    places = seen.places._replace(frames=position[seen.places.frames])
    found = []
    for step in steps:
        mixed = recording.observe(step, window, places).mixed
        grids = {layer: token_grid(x.reference.shape[1], recording.latent_size) for layer, x in mixed.items()}
        found.append({layer: measure_attention(mixed[layer].reference, labels, seen, grids[layer]) for layer in mixed})
    return found


def measure_clips(program: Program, clips: Sequence[Clip], steps: Sequence[int], stride: int = 1) -> list[list[Layers]]:
    """Measure clips, each at some steps. The reference of a clip is its first frame.

    Args:
      program: For as many frames as are animated of each clip.
      clips: Of one person each.
      steps: Numbers of steps.
      stride: Between the frames, which begin behind the reference. Of a clip that is too short, the last frame stands.
    """
    found = []
    for seed, clip in enumerate(tqdm(clips, unit="clip")):
        frames = np.minimum(stride * np.arange(program.frames + 1), clip.frames - 1)
        example = read_example(clip, 0, frames, ExampleOptions(size=program.size))
        labels, _ = read_labels(example["motion"][0])
        recording = record(program, example["reference"], example["motion"][1:], progress=False)
        found.append(measure_recording(recording, labels, seed, steps))
    return found


def summarise(found: Sequence[Sequence[Layers]]) -> dict[str, dict[str, Interval]]:
    """Means of each figure by layer: over steps, then over clips with 95 % intervals.

    What exceeds chance, or the same place of the picture, has names like "part - part_chance".
    """
    summary = {}
    for layer in found[0][0]:
        by_name = {name: _over_steps(found, layer, name) for name in FIGURES}
        for name in MEASURES:
            for other in ("chance", "still"):
                by_name[f"{name} - {name}_{other}"] = by_name[name] - by_name[f"{name}_{other}"]
        summary[layer] = {name: mean_interval(values.tolist()) for name, values in by_name.items()}
    return summary


def _over_steps(found: Sequence[Sequence[Layers]], layer: str, name: str) -> np.ndarray:
    """A figure of each clip, float64 `clips`, the mean over its steps."""
    return _mean(np.array([[step[layer].shares[name] for step in clip] for clip in found]).T)


def part_matrix(found: Sequence[Sequence[Layers]], layer: str) -> np.ndarray:
    """`Measured.by_part` of a layer, means over clips and steps."""
    return _mean(np.array([step[layer].by_part for clip in found for step in clip]))


def matrix_sheet(found: Sequence[Sequence[Layers]]) -> np.ndarray:
    """A picture of `part_matrix` for every layer, uint8 `H W 3`."""
    rows = {}
    for layer in found[0][0]:
        numbers = [str(i) for i in range(1, PART_COUNT)]
        names = [f"{name} {i}" for i, name in zip(numbers, PART_NAMES[1:], strict=True)]
        values = np.nan_to_num(part_matrix(found, layer))
        rows[layer.replace("/", "\n")] = [Cell(pictures.matrix(values, names, numbers, side=32, numbers=True))]
    title = "Where places on a body part (row) look on the person of the reference (column): shares of their attention"
    return pictures.sheet(title, (), rows)


def report(summary: dict[str, dict[str, Interval]]) -> str:
    """A Markdown table, a row for each figure and a column for each layer."""
    layers = list(summary)
    rows = [[text, *(_cell(summary[layer][name]) for layer in layers)] for name, text in FIGURES.items()]
    return markdown_table(("share", *layers), rows)


def _cell(interval: Interval) -> str:
    mean, low, high = interval
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if np.isfinite(low) else f"{mean:.3f}"
