"""Noise schedules: how much signal and noise a latent holds at each diffusion time.

A noisy latent is z_t = alpha_t x_0 + sigma_t eps, with alpha_t = sqrt(abar_t) and sigma_t = sqrt(1 - abar_t).
"""

import dataclasses

import jax
import numpy as np

KINDS = ("linear", "scaled_linear")
PREDICTIONS = ("epsilon", "v", "sample")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A discrete noise schedule; the defaults are MagicAnimate's.

    Stable Diffusion's own file says scaled_linear. MagicAnimate's configs/prompts/animation.yaml overrides it.

    Attributes:
      kind: "linear" betas, or "scaled_linear" ones, which are linear in their square roots.
      beta_start: First beta.
      beta_end: Last beta.
      steps: Number of diffusion times.
      prediction: What the network gives: "epsilon", "v" (*Progressive Distillation*, arXiv 2202.00512), or the clean
        "sample" itself.
      zero_terminal_snr: Whether the betas are rescaled so that the last time holds no signal (*Common Diffusion Noise
        Schedules*, arXiv 2305.08891, algorithm 1).

    Raises:
      ValueError: For unknown or contradicting values.
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
        if not (0 < self.beta_start <= self.beta_end < 1 and self.steps >= 1):
            raise ValueError(
                f"expected betas that grow between 0 and 1, found {self.beta_start} to {self.beta_end} in {self.steps}"
            )
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError(
                "with zero_terminal_snr the last time is pure noise, from which epsilon says nothing: "
                "use prediction 'v' or 'sample'"
            )

    @property
    def abar(self) -> np.ndarray:
        """Cumulative products of 1 - beta, float64 `steps`. Betas are rounded to float32 first, as in PyTorch."""
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
    """Split a noisy latent x by the network's output: its clean part x_0 and its noise eps, both shaped as x."""
    if prediction == "v":
        return alpha * x - sigma * output, alpha * output + sigma * x
    if prediction == "sample":
        return output, (x - alpha * output) / sigma
    return (x - sigma * output) / alpha, output


def answer_for(x: jax.Array, clean: jax.Array, alpha: jax.Array, sigma: jax.Array, prediction: str) -> jax.Array:
    """What the network has to say of a noisy latent x, for its clean part to be `clean`: see `signal_and_noise`.

    It is finite at every time, since no time is without noise.
    """
    if prediction == "v":
        return (alpha * x - clean) / sigma
    if prediction == "sample":
        return clean
    return (x - alpha * clean) / sigma


def add_noise(x: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """z_t of clean latents x. alpha and sigma broadcast to x."""
    return alpha * x + sigma * noise


def velocity(x: jax.Array, noise: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """The target of v prediction: alpha eps - sigma x_0."""
    return alpha * noise - sigma * x


def sampling_times(steps: int, spacing: str, total: int = 1000) -> np.ndarray:
    """The diffusion times of a sampler in descending order.

    Source: *Common Diffusion Noise Schedules* (arXiv 2305.08891), table 2; "leading" has the offset of 1 that Stable
    Diffusion uses.

    Args:
      steps: Number of times.
      spacing: "leading" counts up from 1 in equal whole strides (as published), "trailing" counts down from the last
        time, "linspace" goes from the last time towards 0 in equal steps, without 0 itself.
      total: Number of times of the schedule.

    Returns: int `steps`.

    Raises:
      ValueError: For an unknown spacing, or a number of steps that it does not allow.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"expected between 1 and {total} sampling steps, found {steps}")
    if spacing == "leading":
        return np.minimum(np.arange(steps)[::-1] * (total // steps) + 1, total - 1 - np.arange(steps))
    if spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps)).astype(int)[:steps] - 1
    if spacing != "linspace":
        raise ValueError(f"spacing {spacing!r} is unknown, expected leading, trailing or linspace")
    if steps == total:
        raise ValueError(f"expected at most {total - 1} evenly spaced sampling steps, found {steps}")
    return np.round(np.linspace(0, total - 1, steps + 1)).astype(int)[:0:-1]
