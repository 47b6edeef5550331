"""The training objective: noise a clean latent, and weigh how far the network's answer is from what was asked."""

import dataclasses

import jax
import jax.numpy as jnp

from mafx.diffusion.schedule import Schedule, add_noise, velocity


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Noisy latents, what was done to them, and what the network is to answer. Times are `b`; all else has the latents' shape."""

    noisy: jax.Array
    times: jax.Array
    target: jax.Array


def corrupt(
    key: jax.Array, latents: jax.Array, schedule: Schedule, noise_offset: float = 0.0, time_shift: float = 1.0
) -> Corruption:
    """Noise `b f h w c` at one random time per example, the same for all its frames.

    `time_shift` above 1 draws late times more often: u in [0, 1) becomes s u / (1 + (s - 1) u) (*Scaling Rectified Flow Transformers*,
    arXiv 2403.03206, equation 23). `noise_offset` adds noise that is constant over a frame, so that brightness is learnt too ("Diffusion with Offset
    Noise", CrossLabs, 2023).
    """
    time_key, noise_key, offset_key = jax.random.split(key, 3)
    u = jax.random.uniform(time_key, latents.shape[:1])
    times = (schedule.steps * time_shift * u / (1 + (time_shift - 1) * u)).astype(jnp.int32)
    noise = jax.random.normal(noise_key, latents.shape)
    if noise_offset:
        b, f, _, _, c = latents.shape
        noise = noise + noise_offset * jax.random.normal(offset_key, (b, f, 1, 1, c))
    alpha, sigma = (
        jnp.asarray(x, jnp.float32)[times][:, None, None, None, None] for x in (schedule.alphas, schedule.sigmas)
    )
    targets = {"epsilon": noise, "v": velocity(latents, noise, alpha, sigma), "sample": latents}
    return Corruption(add_noise(latents, noise, alpha, sigma), times, targets[schedule.prediction])


def loss_weights(times: jax.Array, schedule: Schedule, min_snr_gamma: float | None = None) -> jax.Array:
    """Weight of each example, float32 `b`: 1, or min(SNR, gamma) in units of the prediction (*Min-SNR*, arXiv 2303.09556)."""
    if min_snr_gamma is None:
        return jnp.ones(times.shape)
    snr = jnp.asarray(schedule.abar / (1 - schedule.abar), jnp.float32)[times]
    clipped = jnp.minimum(snr, min_snr_gamma)
    return clipped / {"epsilon": jnp.maximum(snr, 1e-8), "v": snr + 1, "sample": 1.0}[schedule.prediction]
