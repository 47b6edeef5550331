"""Samplers as tables: each is a list of times and, for every step, the coefficients of one linear update.

All samplers here map the current latents x, split by the network's output into x_0 and eps, to

    x' = a x_0 + s eps + m (x_0 - previous x_0) + e noise,

and differ only in the numbers a, s, m, e. So one compiled step serves them all.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from mafx.diffusion.schedule import Schedule, sampling_times, signal_and_noise

SAMPLERS = ("ddim", "dpmpp_2m", "euler")


@dataclasses.dataclass(frozen=True)
class SamplerTable:
    """One row per step, noisy to clean. `times` are what the network is told; the rest is float32."""

    times: np.ndarray  # int
    alpha: np.ndarray  # of the latents that enter the step
    sigma: np.ndarray
    clean: np.ndarray  # a
    noise: np.ndarray  # s
    momentum: np.ndarray  # m
    fresh_noise: np.ndarray  # e

    def parts(self, most: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """The table cut into parts of equal length, at most `most` steps, each with the number of its first step; the last is filled up with its end.

        Columns: all that `sampler_step` takes of a step, its "time" and its "number".
        """
        steps = len(self.times)
        length = -(-steps // -(-steps // most))
        for start in range(0, steps, length):
            number = np.minimum(np.arange(start, start + length), steps - 1)
            columns = {
                name: getattr(self, name)[number]
                for name in ("alpha", "sigma", "clean", "noise", "momentum", "fresh_noise")
            }
            yield columns | {"time": self.times[number].astype(np.int32), "number": number.astype(np.int32)}, start


def make_sampler(name: str, steps: int, schedule: Schedule, eta: float = 0.0) -> SamplerTable:
    """The table of a sampler.

    Args:
      name: "ddim" (arXiv 2010.02502; "leading" times as published, but "trailing" ones with zero terminal SNR, whose last time pure noise belongs
        to; ends at the clean latents), "dpmpp_2m" (DPM-Solver++ of second order, multistep, arXiv 2211.01095; first order in its first and last
        step) or "euler" (explicit Euler on the probability-flow ODE in sigma/alpha, arXiv 2206.00364: DDIM's update, but on evenly spaced times
        from the very last one).
      steps: network evaluations per frame, 1 to 1000.
      eta: fresh noise of DDIM, 0 (none) to 1 (as much as DDPM).
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler {name!r} is unknown, expected one of {', '.join(SAMPLERS)}")
    if eta and name != "ddim":
        raise ValueError(f"eta {eta} belongs to the ddim sampler, {name} is deterministic")
    spacing = "linspace" if name != "ddim" else "trailing" if schedule.zero_terminal_snr else "leading"
    times = sampling_times(steps, spacing, schedule.steps)
    if spacing == "leading":  # its stride reaches back from each time, over the table's beginning to the clean latents
        before = times - schedule.steps // steps
        abar_to = np.where(before >= 0, schedule.abar[before], 1.0)
    else:
        abar_to = np.append(schedule.abar[times[1:]], 1.0)
    abar = schedule.abar[times]
    alpha, sigma, alpha_to, sigma_to = np.sqrt(abar), np.sqrt(1 - abar), np.sqrt(abar_to), np.sqrt(1 - abar_to)

    fresh = eta * np.sqrt((1 - abar_to) / (1 - abar) * (1 - abar / abar_to))
    momentum = np.zeros(steps)
    if name == "dpmpp_2m":
        half_log_snr = np.log(np.maximum(alpha, 2**-12) / sigma)  # lambda; the floor makes a time without signal finite
        h = np.diff(half_log_snr)
        inner = slice(1, steps - 1)  # steps with a previous x_0 and a finite h of their own
        momentum[inner] = (alpha_to - sigma_to * alpha / sigma)[inner] * h[1:] / (2 * h[:-1])
    columns = alpha, sigma, alpha_to, np.sqrt(sigma_to**2 - fresh**2), momentum, fresh
    return SamplerTable(times, *(column.astype(np.float32) for column in columns))


def sampler_step(
    row: dict[str, jax.Array], x: jax.Array, output: jax.Array, previous: jax.Array, noise: jax.Array, prediction: str
) -> tuple[jax.Array, jax.Array]:
    """One update of latents of any shape: the next latents and this step's x_0, to be given as `previous` to the next step."""
    clean, eps = signal_and_noise(x, output, row["alpha"], row["sigma"], prediction)
    update = (
        row["clean"] * clean + row["noise"] * eps + row["momentum"] * (clean - previous) + row["fresh_noise"] * noise
    )
    return update, clean


def guide(unconditional: jax.Array, conditional: jax.Array, scale: jax.Array | float) -> jax.Array:
    """Classifier-free guidance (arXiv 2207.12598): 1 gives the conditional prediction, more goes beyond it."""
    return unconditional + scale * (conditional - unconditional)
