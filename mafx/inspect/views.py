"""What is shown of a recorded animation: four sheets of pictures, and the figures behind them.

1. Attention: where a place of a frame looks in the reference, by layer and step.
2. Frames: how much frames attend one another, by layer.
3. Control: what the motion changes in what the networks predict, and how large the residuals are.
4. Path: the clean picture that the networks predict at every step.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from mafx import media
from mafx.densepose import read_labels
from mafx.errors import InputError
from mafx.inspect import pictures
from mafx.inspect.pictures import Cell, shown
from mafx.inspect.record import Attended, Observation, Places, token_grid
from mafx.inspect.recording import Point, Recording, point_at

WITHOUT = 0.0  # control_scale of an animation that knows no motion


class Look(NamedTuple):
    """What is shown of one step.

    Attributes:
      step: Its number.
      seen: The step as it was.
      clean: The clean picture that it predicts of the frame, uint8 `H W 3`.
      uncontrolled: The same without residuals.
      change: Root mean square of the difference that residuals make to the clean latents, over that of these latents.
    """

    step: int
    seen: Observation
    clean: np.ndarray
    uncontrolled: np.ndarray
    change: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inside:
    """A place of a frame, looked into at some steps. Made by `look_inside`.

    Attributes:
      recording: The animation.
      frame: Number of the frame.
      place: Row and column in pixels.
      window: The frames that went through the networks with it, int `k`.
      looks: One per step.
    """

    recording: Recording
    frame: int
    place: Point
    window: np.ndarray
    looks: Sequence[Look]

    @property
    def point(self) -> tuple[float, float]:
        return point_at(self.place, self.recording.program.size)

    @property
    def columns(self) -> list[str]:
        """Names of the steps."""
        return [f"step {look.step}, time {self.recording.time(look.step)}" for look in self.looks]

    # -- Figures

    def figures(self) -> dict[str, Any]:
        """Everything that the sheets show, in numbers that JSON has words for."""
        steps = [
            {
                "step": look.step,
                "time": self.recording.time(look.step),
                "attention": {layer: self._attention(x) for layer, x in look.seen.mixed.items()},
                "residuals": {
                    name: dict(zip(x._fields, map(float, x), strict=True)) for name, x in look.seen.residuals.items()
                },
                "change_by_residuals": look.change,
            }
            for look in self.looks
        ]
        frames = {name: np.round(x, 5).tolist() for name, x in self.frame_weights().items()}
        return {
            "frame": self.frame,
            "place": list(self.place),
            "steps": steps,
            "window": self.window.tolist(),
            "frames": frames,
        }

    def _attention(self, attended: Attended) -> dict[str, Any]:
        weights = attended.reference[0]
        h, w = self._grid(weights)
        (H, W), (y, x) = self.recording.program.size, divmod(int(weights.argmax()), w)
        most = [int((y + 0.5) * H / h), int((x + 0.5) * W / w)]
        return {"reference": float(weights.sum()), "grid": [h, w], "most_at": most, "most": float(weights.max())}

    def _grid(self, weights: np.ndarray) -> tuple[int, int]:
        return token_grid(len(weights), self.recording.latent_size)

    # -- Sheets

    def attention_sheet(self) -> np.ndarray:
        """Heat maps on the reference, a row per layer and a column per step."""
        rows = {"the frame as predicted,\nand the place": [Cell(self._marked(look.clean)) for look in self.looks]}
        for layer, attended in self.looks[0].seen.mixed.items():
            h, w = self._grid(attended.reference[0])
            name = f"{layer.replace('/', chr(10))}\n{h}x{w} tokens"
            rows[name] = [self.heat_cell(look, layer) for look in self.looks]
        title = f"Where place {self.place[0]},{self.place[1]} of frame {self.frame} looks in the reference"
        return pictures.sheet(title, self.columns, rows)

    def heat_cell(self, look: Look, layer: str) -> Cell:
        """The heat map of a layer at a step, and the share of attention that it is of."""
        return heat_cell(self.recording, look.seen.mixed[layer])

    def _marked(self, picture: np.ndarray) -> np.ndarray:
        return pictures.mark(shown(picture), self.point)

    def frame_weights(self) -> dict[str, np.ndarray]:
        """How much frames attend one another, `k k` for each temporal attention, means over the steps."""
        names = self.looks[0].seen.temporal
        return {name: np.mean([look.seen.temporal[name] for look in self.looks], axis=0) for name in names}

    def frames_sheet(self) -> np.ndarray:
        """A matrix per temporal attention, both of each layer side by side."""
        rows: dict[str, list[Cell]] = {}
        for name, weights in self.frame_weights().items():
            layer, _ = name.rsplit("/", 1)
            caption = f"{weights.min():.0%} to {weights.max():.0%}, itself {np.trace(weights) / len(weights):.0%}"
            cell = Cell(pictures.frame_matrix(weights, self.window.tolist()), caption)
            rows.setdefault(layer.replace("/", "\n"), []).append(cell)
        alike = 1 / len(self.window)
        title = f"How much each frame (row) attends each of its window (column); alike would be {alike:.0%}"
        return pictures.sheet(title, ["first attention", "second attention"], rows)

    def control_sheet(self) -> np.ndarray:
        """What the networks predict with and without the residuals, and the difference."""
        rows = {
            "with the motion": [Cell(shown(look.clean)) for look in self.looks],
            "without": [Cell(shown(look.uncontrolled)) for look in self.looks],
            "difference": [
                Cell(shown(pictures.difference(look.clean, look.uncontrolled)), f"latents {look.change:.0%}")
                for look in self.looks
            ],
        }
        return pictures.sheet(f"What the ControlNet changes in frame {self.frame}", self.columns, rows)

    def residuals_sheet(self) -> np.ndarray:
        """Sizes of the residuals, as multiples of the sizes of what they are added to."""
        names = list(self.looks[0].seen.residuals)
        sizes = np.array([[x.added / x.base for x in look.seen.residuals.values()] for look in self.looks]).T
        steps = [f"step {look.step}" for look in self.looks]
        cell = Cell(pictures.matrix(sizes, names, steps, side=48, numbers=True))
        return pictures.sheet(
            "Size of each residual, in multiples of what it is added to", (), {"root mean squares": [cell]}
        )

    def path_sheet(self) -> np.ndarray:
        """The reference and the render, the clean picture that is predicted at each step, and the result."""
        recording = self.recording
        result = media.to_uint8(recording.animation.video[self.frame])
        path = [recording.reference, recording.motion[self.frame], *(look.clean for look in self.looks), result]
        names = ["reference", "motion", *self.columns, "result"]
        title = f"The clean picture of frame {self.frame} that the networks predict at each step"
        return pictures.sheet(title, names, {"": [Cell(shown(x)) for x in path]})

    def sheets(self) -> dict[str, np.ndarray]:
        """All sheets by their names; those of layers that the model lacks are left out."""
        made = {"path": self.path_sheet(), "attention": self.attention_sheet(), "control": self.control_sheet()}
        made["residuals"] = self.residuals_sheet()
        return made | ({"frames": self.frames_sheet()} if self.looks[0].seen.temporal else {})


def heat_cell(recording: Recording, attended: Attended) -> Cell:
    """Where the first of the observed places looks in the reference, with the share of its attention that this is."""
    weights = attended.reference[0]
    grid = token_grid(len(weights), recording.latent_size)
    return Cell(pictures.heat_map(shown(recording.reference), weights, grid), f"{weights.sum():.0%} of its attention")


def look_inside(recording: Recording, frame: int, place: Point, steps: Sequence[int], progress: bool = True) -> Inside:
    """Look into some steps of an animation.

    Args:
      recording: The animation.
      frame: Number of a frame.
      place: Row and column in pixels of the frame.
      steps: Numbers of steps.
      progress: Whether a bar is shown.

    Raises:
      InputError: There is no such frame, place or step.
    """
    window = recording.window(frame)
    position = int(np.flatnonzero(window == frame)[0])
    places = Places([position], [point_at(place, recording.program.size)])
    looks = [
        _look(recording, step, window, position, places) for step in tqdm(steps, unit="step", disable=not progress)
    ]
    return Inside(recording=recording, frame=frame, place=place, window=window, looks=looks)


def _look(recording: Recording, step: int, window: np.ndarray, position: int, places: Places) -> Look:
    seen = recording.observe(step, window, places)
    free = recording.observe(step, window, places, control_scale=WITHOUT)
    clean, uncontrolled = (recording.clean(step, window, x.prediction)[position] for x in (seen, free))
    change = float(np.linalg.norm(clean - uncontrolled) / np.linalg.norm(clean))
    return Look(step, seen, recording.picture(clean), recording.picture(uncontrolled), change)


def middle_of_person(render: np.ndarray) -> Point:
    """The pixel of the person in a render, uint8 `H W 3`, that is nearest to the middle of all of them.

    Raises:
      InputError: The render shows nobody.
    """
    pixels = np.argwhere(read_labels(render)[0] > 0)
    if not len(pixels):
        raise InputError("expected a person in the frame, found nobody; give a --place or another --frame")
    y, x = pixels[np.square(pixels - pixels.mean(0)).sum(1).argmin()].tolist()
    return y, x


def chosen_steps(steps: int, shown: int) -> list[int]:
    """Evenly spaced numbers of steps, the first and the last among them."""
    return np.unique(np.linspace(0, steps - 1, min(steps, shown)).round().astype(int)).tolist()
