"""What the steps of an animation are, before anything is computed: which kind each is, which windows go together."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from mafx.diffusion.windows import fusion_weights, window_plan
from mafx.models.animator import Animator
from mafx.settings import Settings


@dataclasses.dataclass(frozen=True)
class StepKind:
    """What the program of a step depends on, beside shapes.

    Attributes:
      networks: The networks.
      prediction: What the UNet's answer means, see `diffusion.schedule.Schedule`.
      guided: Whether both halves of guidance are computed, or the conditional one alone.
      fresh_noise: Whether the sampler adds noise.
      shallow: Whether only the first level of the networks is computed, with the input of its last level taken from an
        earlier step (*DeepCache*, arXiv 2312.00858).
      keep_deep: Whether the input of the last level is kept for later steps.
      mesh: The mesh over whose devices the windows of a batch are spread, or None.
    """

    networks: Animator
    prediction: str
    guided: bool
    fresh_noise: bool = False
    shallow: bool = False
    keep_deep: bool = False
    mesh: Mesh | None = None

    def __str__(self) -> str:
        """What distinguishes it from a guided step that computes everything."""
        return ("" if self.guided else ", conditional only") + (", shallow" if self.shallow else "")


class WindowBatches(NamedTuple):
    """Frame indices and fusion weights of all windows, `i p k`. Only the first `number` batches are computed."""

    indices: np.ndarray
    weights: np.ndarray
    number: np.int32


def batch_windows(windows: np.ndarray, s: Settings, capacity: int, devices: int) -> WindowBatches:
    """Windows in batches, with room for those of `capacity` frames. Windows that fill a batch up weigh nothing."""
    max_windows = len(window_plan(capacity, s.window, s.overlap, s.plan))
    at_once = devices * min(s.windows_at_once, math.ceil(max_windows / devices))
    room = math.ceil(max_windows / at_once) * at_once
    filling = ((0, room - len(windows)), (0, 0))
    indices = np.pad(windows.astype(np.int32), filling)
    weights = np.pad(fusion_weights(windows, s.overlap, s.weights), filling)
    indices, weights = (rearrange(x, "(i p) k -> i p k", p=at_once) for x in (indices, weights))
    return WindowBatches(indices, weights, np.int32(math.ceil(len(windows) / at_once)))


def step_kinds(plain: StepKind, times: np.ndarray, s: Settings) -> list[StepKind]:
    """The kind of every step: guided or not, whole or shallow."""
    low, high = s.guidance_interval
    guided = [plain.guided and low <= time < high for time in times]
    kinds, whole = [], 0  # `whole` is the last step that computed everything
    for i, now in enumerate(guided):
        if i - whole >= s.reuse or now != guided[i - 1]:
            whole = i
        kinds.append(dataclasses.replace(plain, guided=now, shallow=i > whole))
    return kinds


def runs_of_one_kind(kinds: list[StepKind], start: int, stop: int, singly: bool) -> Iterator[tuple[StepKind, int, int]]:
    """The steps from `start` to before `stop`, as far as there are so many, in runs of one kind.

    Yields: The kind, the first step, and the one behind the last; runs of one step where they are taken `singly`.
    """
    steps = range(start, min(stop, len(kinds)))
    for (kind, _), run in itertools.groupby(steps, lambda i: (kinds[i], i if singly else None)):
        first, *others = run
        yield kind, first, first + len(others) + 1
