"""Samplers as tables: a list of times and, for every step, the coefficients of one linear update.

The network's output splits the current latents x into a clean part x_0 and noise eps. All samplers then map x to

    x' = a x_0 + s eps + m (x_0 - previous x_0) + e noise,

and differ only in the numbers a, s, m, e. So one compiled step serves them all. To add a sampler, write a function like
`ddim` below and put it into SAMPLERS.
"""

import dataclasses
import math
from collections.abc import Iterator

import jax
import numpy as np

from mafx.diffusion.schedule import Schedule, sampling_times, signal_and_noise

MIN_ALPHA = 2**-12  # keeps the log-SNR of a time without signal finite


@dataclasses.dataclass(frozen=True)
class SamplerTable:
    """One row per step, from noisy to clean; all columns have the length `steps`.

    Attributes:
      times: int, the diffusion times that the network is told.
      alpha: float32 like all that follow, scale of the signal in the latents that enter the step.
      sigma: Scale of their noise.
      clean: a of the update.
      noise: s of the update.
      momentum: m of the update.
      fresh_noise: e of the update.
    """

    times: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    clean: np.ndarray
    noise: np.ndarray
    momentum: np.ndarray
    fresh_noise: np.ndarray

    def parts(self, max_steps: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """Cut the table into parts of equal length, at most `max_steps`. The last step fills up the last part.

        Yields: The columns that `sampler_step` takes together with "time" and "number" of each step (int32), and the
          number of the part's first step.
        """
        steps = len(self.times)
        length = math.ceil(steps / math.ceil(steps / max_steps))
        for start in range(0, steps, length):
            number = np.minimum(np.arange(start, start + length), steps - 1)
            names = ("alpha", "sigma", "clean", "noise", "momentum", "fresh_noise")
            columns = {name: getattr(self, name)[number] for name in names}
            yield columns | {"time": self.times[number].astype(np.int32), "number": number.astype(np.int32)}, start


def ddim(schedule: Schedule, steps: int, eta: float) -> SamplerTable:
    """DDIM (arXiv 2010.02502), which ends at the clean latents.

    Its times are "leading" as published, but "trailing" with zero terminal SNR: pure noise belongs to the last time.
    """
    if schedule.zero_terminal_snr:
        times = sampling_times(steps, "trailing", schedule.steps)
        return _table(schedule, times, _abar_of_next(schedule, times), eta)
    times = sampling_times(steps, "leading", schedule.steps)
    # The published stride reaches back from each time, from the first one beyond the table to the clean latents.
    before = times - schedule.steps // steps
    return _table(schedule, times, np.where(before >= 0, schedule.abar[before], 1.0), eta)


def euler(schedule: Schedule, steps: int, eta: float) -> SamplerTable:
    """Explicit Euler on the probability-flow ODE in sigma/alpha (arXiv 2206.00364).

    The update is DDIM's, on times that are evenly spaced from the very last one.
    """
    times = sampling_times(steps, "linspace", schedule.steps)
    return _table(schedule, times, _abar_of_next(schedule, times), eta)


def dpmpp_2m(schedule: Schedule, steps: int, eta: float) -> SamplerTable:
    """DPM-Solver++ of second order, multistep (arXiv 2211.01095); of first order in its first and last step."""
    times = sampling_times(steps, "linspace", schedule.steps)
    first_order = _table(schedule, times, _abar_of_next(schedule, times), eta)
    alpha, sigma = schedule.alphas[times], schedule.sigmas[times]
    alpha_to, sigma_to = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    h = np.diff(np.log(np.maximum(alpha, MIN_ALPHA) / sigma))  # steps in lambda, half the log-SNR
    momentum = np.zeros(steps)
    inner = slice(1, steps - 1)  # steps with a previous x_0 and a finite h of their own
    momentum[inner] = (alpha_to - sigma_to * alpha / sigma)[inner] * h[1:] / (2 * h[:-1])
    return dataclasses.replace(first_order, momentum=momentum.astype(np.float32))


def consistency(schedule: Schedule, steps: int, eta: float) -> SamplerTable:
    """Multistep consistency sampling (arXiv 2303.01469, algorithm 1): every clean answer is noised anew.

    It is for networks that were tuned for it. Times as DDIM's.
    """
    table = ddim(schedule, steps, 0.0)
    return dataclasses.replace(table, noise=np.zeros_like(table.noise), fresh_noise=table.noise)


SAMPLERS = {"consistency": consistency, "ddim": ddim, "dpmpp_2m": dpmpp_2m, "euler": euler}
STOCHASTIC = ("ddim",)  # samplers that take eta


def make_sampler(name: str, steps: int, schedule: Schedule, eta: float = 0.0) -> SamplerTable:
    """The table of a sampler.

    Args:
      name: A key of SAMPLERS.
      steps: Number of steps, each one evaluation of the networks per frame: 1 to 1000, or to 999 with evenly spaced
        times.
      schedule: The model's noise schedule.
      eta: Fresh noise of DDIM, from 0 (none) to 1 (as much as DDPM).

    Raises:
      ValueError: For an unknown name, a number of steps out of range, or eta with a deterministic sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown, expected one of {', '.join(SAMPLERS)}")
    if eta and name not in STOCHASTIC:
        raise ValueError(f"eta {eta} belongs to the {' and '.join(STOCHASTIC)} sampler, {name} is deterministic")
    return SAMPLERS[name](schedule, steps, eta)


def _abar_of_next(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """abar after each step: that of the next time, and 1 (clean) after the last step."""
    return np.append(schedule.abar[times[1:]], 1.0)


def _table(schedule: Schedule, times: np.ndarray, abar_to: np.ndarray, eta: float) -> SamplerTable:
    """The table of DDIM's update (arXiv 2010.02502, equation 12) from `times` to the signals `abar_to`."""
    abar = schedule.abar[times]
    alpha, sigma, alpha_to, sigma_to = np.sqrt(abar), np.sqrt(1 - abar), np.sqrt(abar_to), np.sqrt(1 - abar_to)
    fresh = eta * np.sqrt((1 - abar_to) / (1 - abar) * (1 - abar / abar_to))
    columns = alpha, sigma, alpha_to, np.sqrt(sigma_to**2 - fresh**2), np.zeros(len(times)), fresh
    return SamplerTable(times, *(column.astype(np.float32) for column in columns))


def sampler_step(
    row: dict[str, jax.Array],
    x: jax.Array,
    output: jax.Array,
    previous: jax.Array,
    noise: jax.Array,
    prediction: str,
) -> tuple[jax.Array, jax.Array]:
    """One update of latents.

    Args:
      row: The columns of one step, see `SamplerTable.parts`.
      x: Latents of any shape.
      output: The network's output for them.
      previous: x_0 of the step before; anything in the first step.
      noise: Fresh standard normal noise; anything where the sampler adds none.
      prediction: What the network's output means, see `Schedule`.

    Returns: The next latents, and this step's x_0.
    """
    clean, eps = signal_and_noise(x, output, row["alpha"], row["sigma"], prediction)
    update = row["clean"] * clean + row["noise"] * eps
    update = update + row["momentum"] * (clean - previous) + row["fresh_noise"] * noise
    return update, clean


def guide(unconditional: jax.Array, conditional: jax.Array, scale: jax.Array | np.floating | float) -> jax.Array:
    """Classifier-free guidance (arXiv 2207.12598). Scale 1 gives the conditional prediction, more goes beyond it."""
    return unconditional + scale * (conditional - unconditional)
