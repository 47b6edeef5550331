"""Animate: parameters, a picture and a motion in, frames out. The whole sampling loop, to be read from top to bottom."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from mafx.diffusion.samplers import guide, make_sampler, sampler_step
from mafx.diffusion.windows import fusion_weights, pad_frames, window_borders, window_plan
from mafx.errors import InputError
from mafx.media import resize
from mafx.model import Model
from mafx.models.animator import Animator
from mafx.models.unet import Features


@dataclasses.dataclass(frozen=True)
class Animation:
    """`video`: float32 `f H W 3` in [0, 1]; `latents`: float32 `f h w c`, as the diffusion left them; `borders`: see `diffusion.windows`, `f - 1`."""

    video: np.ndarray
    latents: np.ndarray
    borders: np.ndarray


def animate(
    model: Model,
    reference: np.ndarray,
    motion: np.ndarray,
    *,
    steps: int = 25,
    guidance_scale: float = 7.5,
    seed: int = 0,
    noise: np.ndarray | None = None,
    shared_noise: bool = True,
    prompt: str = "",
    negative_prompt: str = "",
    control_scale: float = 1.0,
    window: int = 16,
    overlap: int = 4,
    sampler: str = "ddim",
    eta: float = 0.0,
    plan: str = "closed",
    weights: str = "uniform",
    fusion: str | None = None,
    progress: bool = True,
    callback: Callable[[int, np.ndarray], None] | None = None,
) -> Animation:
    """Animate a reference image by a motion sequence.

    The defaults are MagicAnimate's (its demo/animate.py and configs/prompts/animation.yaml) and reproduce it.

    Args:
      model: from `load_pretrained`; the networks compute in the dtype of its parameters, the diffusion in float32.
      reference: uint8 `H W 3`, both sides divisible by 8. Its size is the size of the video.
      motion: uint8 `f H W 3`, DensePose renders, at least one; resized to the reference's size where they differ.
      steps: of the sampler, each one evaluation of the networks per window.
      guidance_scale: of the reference against none; at 1 and below only the conditional half is computed.
      seed: of the starting noise.
      noise: float32 `window h w c`, instead of the seed.
      shared_noise: every `window` frames start from the same noise, as published; else every frame has its own.
      prompt, negative_prompt: texts of the two halves; equal ones share the encoder.
      control_scale: factor on the pose ControlNet's residuals.
      window, overlap: frames that go through the networks together, and how many of them two neighbours share.
      sampler, eta: see `diffusion.samplers.make_sampler`.
      plan, weights: see `diffusion.windows`.
      fusion: "midup" or "full", where the reference is mixed in; None is as the model was trained.
      progress: show a bar.
      callback: called after every step with its index and the latents, float32 `f h w c`.

    Raises: InputError for arguments that do not fit; nothing has been computed then.
    """
    reference, motion = _check_images(model, reference, motion)
    if not 1 <= window <= model.config.unet.motion.max_frames:
        raise InputError(f"expected a window of 1 to {model.config.unet.motion.max_frames} frames, found {window}")
    if not guidance_scale >= 0:
        raise InputError(f"expected a guidance scale of at least 0, found {guidance_scale}")
    frames = len(motion)
    h, w = (side // model.config.autoencoder.factor for side in reference.shape[:2])
    try:
        table = make_sampler(sampler, steps, model.schedule, eta)
        padded = pad_frames(frames, window, plan)
        windows = window_plan(padded, window, overlap, plan)
        window_weights = fusion_weights(windows, overlap, weights)
        networks = Animator(dataclasses.replace(model.config, fusion=fusion or model.config.fusion))
    except ValueError as error:
        raise InputError(str(error)) from error
    motion = np.concatenate([motion, np.repeat(motion[-1:], padded - frames, axis=0)])

    # float32 means float32, also where the hardware would rather round the factors of a matrix product
    with jax.default_matmul_precision("highest" if model.dtype == jnp.float32 else "default"):
        run = functools.partial(_apply, networks, model.params)
        text = run("encode_text", model.tokenizer(prompt)[None])
        negative = run("encode_text", model.tokenizer(negative_prompt)[None]) if negative_prompt != prompt else None
        image = jnp.asarray(reference[None] / 127.5 - 1, model.dtype)
        reference_latents = run("encode_image", image)

        key = jax.random.key(seed)
        x = _starting_noise(key, noise, (window if shared_noise else padded, h, w, model.config.unet.channels))
        x = jnp.resize(x, (padded, *x.shape[1:]))
        previous = jnp.zeros_like(x)
        bar = tqdm(total=steps * len(windows), disable=not progress, unit="window")
        for i, time in enumerate(table.times):
            bar.set_description(f"step {i + 1}/{steps}")
            t = jnp.asarray([time], jnp.int32)
            bank = run("bank", reference_latents, t, text)
            output = jnp.zeros_like(x)
            for indices, weight in zip(windows, window_weights, strict=True):
                pose = jnp.asarray(motion[indices][None])
                predicted = _predict(
                    networks, model.params, x[indices], pose, t, text, negative, bank, guidance_scale, control_scale, guidance_scale > 1
                )
                output = output.at[indices].add(weight[:, None, None, None] * predicted)
                output.block_until_ready()  # for an honest bar
                bar.update()
            fresh = jax.random.normal(jax.random.fold_in(key, i), x.shape) if eta else previous
            x, previous = _step(table.row(i), x, output, previous, fresh, model.schedule.prediction)
            if callback is not None:
                callback(i, np.asarray(x[:frames]))
        bar.close()

        decode = tqdm(range(frames), disable=not progress, desc="decoding", unit="frame")
        video = np.empty((frames, *reference.shape), np.float32)
        for i in decode:
            video[i] = _decode(networks, model.params, x[i])
    return Animation(video, np.asarray(x[:frames]), window_borders(windows)[: frames - 1])


def _check_images(model: Model, reference: np.ndarray, motion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, motion = np.asarray(reference), np.asarray(motion)
    for name, x, shape in (("reference", reference, "[H, W, 3]"), ("motion", motion, "[frames, H, W, 3]")):
        if x.dtype != np.uint8 or x.ndim != shape.count(",") + 1 or x.shape[-1] != 3:
            raise InputError(f"expected the {name} as uint8 {shape}, found {x.dtype} {list(x.shape)}")
        if 0 in x.shape:
            raise InputError(f"the {name} is empty: {list(x.shape)}")
    factor = model.config.autoencoder.factor
    if any(side % factor for side in reference.shape[:2]):
        H, W = reference.shape[:2]
        near = "x".join(str(max(factor, round(side / factor) * factor)) for side in (H, W))
        raise InputError(f"expected a reference whose sides are divisible by {factor}, found {H}x{W}; the nearest such size is {near}")
    return reference, np.stack([resize(frame, reference.shape[:2]) for frame in motion])


def _starting_noise(key: jax.Array, noise: np.ndarray | None, shape: tuple[int, ...]) -> jax.Array:
    if noise is None:
        return jax.random.normal(key, shape)
    if np.shape(noise) != shape:
        raise InputError(f"expected noise of the shape {list(shape)} (window, rows, columns, channels), found {list(np.shape(noise))}")
    return jnp.asarray(noise, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _apply(networks: Animator, params: dict, method: str, *args: jax.Array):
    return networks.apply({"params": params}, *args, method=method)


@functools.partial(jax.jit, static_argnums=(0, 10))
def _predict(
    networks: Animator,
    params: dict,
    noisy: jax.Array,
    motion: jax.Array,
    t: jax.Array,
    text: jax.Array,
    negative: jax.Array | None,
    bank: Features,
    guidance_scale: jax.Array,
    control_scale: jax.Array,
    guided: bool,
) -> jax.Array:
    """The guided prediction for one window: latents `f h w c`, motion `1 f H W 3` uint8 -> float32 `f h w c`."""
    apply = functools.partial(networks.apply, {"params": params})
    noisy = noisy[None].astype(text.dtype)
    pose = motion.astype(text.dtype) / jnp.asarray(255, text.dtype)
    residuals = apply(noisy, t, text, pose, control_scale, method="pose")
    if not guided:
        return apply(noisy, t, text, bank, residuals, method="predict")[0]
    halves = apply(noisy, t, text, negative, bank, residuals, method="predict_both")
    return guide(*(half[0] for half in halves), guidance_scale)


_step = functools.partial(jax.jit, static_argnums=5)(sampler_step)


@functools.partial(jax.jit, static_argnums=0)
def _decode(networks: Animator, params: dict, latents: jax.Array) -> jax.Array:
    """One frame's latents `h w c` -> float32 `H W 3` in [0, 1]."""
    dtype = jax.tree.leaves(params)[0].dtype
    image = networks.apply({"params": params}, latents[None].astype(dtype), method="decode_latents")[0]
    return jnp.clip(image.astype(jnp.float32) / 2 + 0.5, 0, 1)
