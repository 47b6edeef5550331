"""Noise schedules: how much signal and noise a latent holds at each diffusion time.

A noisy latent is `z_t = alpha_t x_0 + sigma_t eps` with `alpha_t = sqrt(abar_t)`, `sigma_t = sqrt(1 - abar_t)`.
"""

import dataclasses

import jax
import numpy as np

KINDS = ("linear", "scaled_linear")
PREDICTIONS = ("epsilon", "v", "sample")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete schedule; the defaults are MagicAnimate's (Stable Diffusion's own file says scaled_linear, the animation config overrides it).

    Attributes:
      kind: "linear" betas, or "scaled_linear": linear in their square roots.
      prediction: what the network gives: "epsilon", "v" (*Progressive Distillation*, arXiv 2202.00512), or the clean "sample" itself.
      zero_terminal_snr: rescale so that the last time holds no signal (*Common Diffusion Noise Schedules*, arXiv 2305.08891, algorithm 1).
    """

    kind: str = "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    prediction: str = "epsilon"
    zero_terminal_snr: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"schedule {self.kind!r} is unknown, expected one of {', '.join(KINDS)}")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction {self.prediction!r} is unknown, expected one of {', '.join(PREDICTIONS)}")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "with zero_terminal_snr the last time is pure noise, from which epsilon says nothing: use prediction 'v' or 'sample'"
            )

    @property
    def abar(self) -> np.ndarray:
        """Cumulative products of 1 - beta, float64 `steps`; betas are rounded to float32 first, as PyTorch holds them."""
        if self.kind == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.steps)
        else:
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
        abar = np.cumprod(1 - betas.astype(np.float32).astype(np.float64))
        if self.zero_terminal_snr:
            alpha = np.sqrt(abar)
            abar = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        return abar

    @property
    def alphas(self) -> np.ndarray:
        """Signal scale at each time, float64 `steps`."""
        return np.sqrt(self.abar)

    @property
    def sigmas(self) -> np.ndarray:
        """Noise scale at each time, float64 `steps`."""
        return np.sqrt(1 - self.abar)


def signal_and_noise(
    x: jax.Array, output: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction: str
) -> tuple[jax.Array, jax.Array]:
    """What a network's output says of a noisy latent: its clean part x_0 and its noise eps, shapes as x."""
    if prediction == "v":
        return alpha * x - sigma * output, alpha * output + sigma * x
    if prediction == "sample":
        return output, (x - alpha * output) / sigma
    return (x - sigma * output) / alpha, output


def add_noise(x: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """z_t of clean latents; alpha and sigma broadcast to x."""
    return alpha * x + sigma * noise


def velocity(x: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The target of v prediction, alpha eps - sigma x_0."""
    return alpha * noise - sigma * x


def sampling_times(steps: int, spacing: str, total: int = 1000) -> np.ndarray:
    """Descending diffusion times of a sampler, int `steps`.

    `spacing`: "leading" counts up from 1 in equal whole strides (published), "trailing" counts down from the last time, "linspace" includes both
    ends. Source: *Common Diffusion Noise Schedules*, table 2; "leading" with the offset of 1 that Stable Diffusion uses.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"expected between 1 and {total} sampling steps, found {steps}")
    if spacing == "leading":
        return np.minimum(np.arange(steps)[::-1] * (total // steps) + 1, total - 1 - np.arange(steps))
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps)).astype(int)[:steps] - 1
    if spacing == "linspace" and steps < total:
        return np.round(np.linspace(0, total - 1, steps + 1)).astype(int)[:0:-1]
    if spacing == "linspace":
        raise ValueError(f"expected at most {total - 1} evenly spaced sampling steps, found {steps}")
    raise ValueError(f"spacing {spacing!r} is unknown, expected leading, trailing or linspace")
