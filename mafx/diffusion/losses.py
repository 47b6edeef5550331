"""The training objective: noise a clean latent, and weigh how far the network's answer is from its target."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mafx.diffusion.schedule import Schedule, add_noise, velocity

CLEAN = -1  # the time of clean latents, before the first one
HUBER = 0.1  # errors below it count by their squares, others by themselves
MIN_SNR = 1e-8  # a time without signal must not divide by zero
MOST = 20.0  # the largest weight of errors that count as those of v


@dataclasses.dataclass(frozen=True)
class Corruption:
    """Latents with noise.

    Attributes:
      latents: Clean latents, float32 `b f h w c`, as all that follow but for the times.
      noisy: With noise.
      times: The diffusion times `b` that they are at.
      noise: Their noise.
      target: What the network is to answer.
    """

    latents: jax.Array
    noisy: jax.Array
    times: jax.Array
    noise: jax.Array
    target: jax.Array


def corrupt(
    key: jax.Array,
    latents: jax.Array,
    schedule: Schedule,
    noise_offset: float = 0.0,
    time_shift: float = 1.0,
    share: jax.Array | float = 1.0,
) -> Corruption:
    """Noise latents at one random time per example, the same for all its frames.

    Args:
      key: Random key.
      latents: float32 `b f h w c`.
      schedule: The noise schedule.
      noise_offset: Scale of additional noise that is constant over a frame, so that brightness is learnt too
        ("Diffusion with Offset Noise", CrossLabs, 2023).
      time_shift: Above 1, late times are drawn more often: u in [0, 1) becomes s u / (1 + (s - 1) u) (*Scaling
        Rectified Flow Transformers*, arXiv 2403.03206, equation 23).
      share: The time is drawn from this share of the times, the earliest ones; a number, or float32 `b`.
    """
    time_key, noise_key, offset_key = jax.random.split(key, 3)
    u = jax.random.uniform(time_key, latents.shape[:1])
    times = (schedule.steps * share * time_shift * u / (1 + (time_shift - 1) * u)).astype(jnp.int32)
    noise = jax.random.normal(noise_key, latents.shape)
    if noise_offset:
        b, f, _, _, c = latents.shape
        noise = noise + noise_offset * jax.random.normal(offset_key, (b, f, 1, 1, c))
    alpha, sigma = scales_at(times, schedule)
    targets = {"epsilon": noise, "v": velocity(latents, noise, alpha, sigma), "sample": latents}
    return Corruption(latents, add_noise(latents, noise, alpha, sigma), times, noise, targets[schedule.prediction])


def guided_target(target: jax.Array, unconditional: jax.Array, conditional: jax.Array, scale: float) -> jax.Array:
    """The target of a network that is to answer by itself what guidance of a scale makes of two answers.

    Source: *Diffusion Models without Classifier-free Guidance* (arXiv 2502.12154), where the target moves by w times
    the difference of the network's own two answers. With w = 1 - 1/scale the conditional answer comes to rest at
    u + scale (e - u): u is the unconditional answer, and e the one that would be learnt without guidance.

    In consistency tuning only targets of the truth are moved. The network's own answers are guided already; to guide
    them again when they are targets multiplies guidance from time to time, and has ended in noise.

    Args:
      target: What the network is to answer without guidance.
      unconditional: Its answer now without the reference, which has to be trained as well; no gradient is taken of it.
      conditional: Its answer now.
      scale: Of guidance, at least 1.
    """
    return target + (1 - 1 / scale) * (conditional - unconditional)


def scales_at(times: jax.Array, schedule: Schedule) -> tuple[jax.Array, jax.Array]:
    """alpha and sigma at times `b`, float32 `b 1 1 1 1`; the time before the first one is `CLEAN`."""
    with_clean = np.append(schedule.alphas, 1.0), np.append(schedule.sigmas, 0.0)  # the last entry is number -1
    alpha, sigma = (jnp.asarray(scale, jnp.float32)[times][:, None, None, None, None] for scale in with_clean)
    return alpha, sigma


def earlier_times(times: jax.Array, done: jax.Array, halvings: int, steps: int) -> jax.Array:
    """The times r < t whose answer consistency tuning takes as the truth about t.

    Source: *Consistency Models Made Easy* (arXiv 2406.14548), where r begins at the clean latents, which is plain
    diffusion training, and comes closer to t again and again. There t - r is a share of t. Here it is a share of all
    times: nothing in our networks makes the answer about clean latents those latents, and only the times whose r is
    `CLEAN` keep them from answering the same about everything. Such times need weight, see `anchored_shares` and
    `loss_weights(as_v=True)`: tunings without that have failed.

    Args:
      times: t, integers `b`.
      done: Share of the steps that are done, float32.
      halvings: How often t - r is halved, at equal intervals of the training.
      steps: Number of diffusion times.

    Returns: r, integers `b`, from `CLEAN` to t - 1.
    """
    gap = jnp.ceil(steps * _gap_share(done, halvings)).astype(times.dtype)
    return jnp.maximum(times - gap, CLEAN)


def anchored_shares(count: int, done: jax.Array, halvings: int) -> jax.Array:
    """The `share` of `corrupt` for each of `count` examples: every other one gets a time whose r is `CLEAN`."""
    return jnp.where(jnp.arange(count) % 2 == 1, _gap_share(done, halvings), 1.0)


def _gap_share(done: jax.Array, halvings: int) -> jax.Array:
    return 2.0 ** -jnp.floor(done * (halvings + 1))


def pseudo_huber(error: jax.Array) -> jax.Array:
    """The root of mean squares, but smooth at 0 (arXiv 2310.14189, equation 7)."""
    return jnp.sqrt(error + HUBER**2) - HUBER


def loss_weights(
    times: jax.Array, schedule: Schedule, min_snr_gamma: float | None = None, as_v: bool = False
) -> jax.Array:
    """The weight of each example: 1, or one of two others.

    Args:
      times: Diffusion times `b`.
      schedule: The noise schedule.
      min_snr_gamma: gamma of min(SNR, gamma), in units of the prediction (*Min-SNR*, arXiv 2303.09556), or None.
      as_v: Whether an error counts as that of v which it would be. A network that answers with the clean picture then
        learns details, which are decided where little noise is left (*JiT*, arXiv 2511.13720).

    Returns: float32 `b`.
    """
    if as_v:
        v_units = {"sample": 1 - schedule.abar, "epsilon": schedule.abar, "v": np.ones(schedule.steps)}
        return jnp.asarray(1 / np.maximum(v_units[schedule.prediction], 1 / MOST), jnp.float32)[times]
    if min_snr_gamma is None:
        return jnp.ones(times.shape)
    snr = jnp.asarray(schedule.abar / (1 - schedule.abar), jnp.float32)[times]
    clipped = jnp.minimum(snr, min_snr_gamma)
    units = {"epsilon": jnp.maximum(snr, MIN_SNR), "v": snr + 1, "sample": jnp.ones(())}
    return clipped / units[schedule.prediction]
