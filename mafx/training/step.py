"""One training step: the losses of the stages, the split into trainable and frozen parameters, the update.

Parameters are flat dicts here, "unet/encoder/conv_in/kernel" -> array: what freezing rules, sharding and checkpoints want.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from einops import rearrange, repeat
from jax.sharding import Mesh

from mafx.densepose import BACKGROUND
from mafx.diffusion.losses import corrupt, loss_weights
from mafx.diffusion.schedule import Schedule
from mafx.models.animator import Animator, AnimatorConfig
from mafx.models.attention import PartialBank
from mafx.training.sharding import batch_sharding, parameter_sharding, replicated

Flat = dict[str, jax.Array]
Batch = dict[str, jax.Array]
Loss = Callable[[Flat, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def flatten(params: dict) -> Flat:
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Flat) -> dict:
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def split(flat: Flat, rules: Sequence[tuple[str, bool]]) -> tuple[Flat, Flat]:
    """Trainable and frozen parameters. The first rule whose pattern is found in a name decides.

    Raises ValueError where a parameter is met by no rule, or a rule by no parameter: either is a mistake that would train the wrong model.
    """
    decisions, used = {}, set()
    for name in flat:
        rule = next((i for i, (pattern, _) in enumerate(rules) if re.search(pattern, name)), None)
        if rule is None:
            raise ValueError(f"no rule says whether {name} is trained; end the rules with ('.*', False)")
        decisions[name] = bool(rules[rule][1])
        used.add(rule)
    if idle := [pattern for i, (pattern, _) in enumerate(rules) if i not in used]:
        raise ValueError(f"rules that meet no parameter: {', '.join(idle)}")
    trainable, frozen = ({name: x for name, x in flat.items() if decisions[name] == wanted} for wanted in (True, False))
    if not trainable:
        raise ValueError("the rules freeze everything")
    return trainable, frozen


class TrainState(NamedTuple):
    """Everything a run continues from."""

    step: jax.Array
    trainable: Flat  # float32 masters
    frozen: Flat  # in the compute dtype
    optimiser: optax.OptState
    ema: Flat  # of the trainable ones


def make_optimiser(config: ml_collections.ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW behind gradient clipping and accumulation; the learning rate warms up, then stays or decays ("constant", "cosine")."""
    decays = {
        "constant": optax.constant_schedule(config.lr),
        "cosine": optax.cosine_decay_schedule(config.lr, max(1, config.steps - config.warmup), alpha=0.05),
    }
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, config.lr, max(1, config.warmup)), decays[config.decay]], [config.warmup]
    )
    optimiser = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(rate, *config.betas, weight_decay=config.weight_decay),
    )
    return (optax.MultiSteps(optimiser, config.accumulate) if config.accumulate > 1 else optimiser), rate


def init_state(
    params: dict, rules: Sequence[tuple[str, bool]], optimiser: optax.GradientTransformation, dtype: jnp.dtype
) -> TrainState:
    trainable, frozen = split(flatten(params), rules)
    trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32), trainable)
    frozen = jax.tree.map(lambda x: jnp.asarray(x, dtype), frozen)
    return TrainState(
        jnp.zeros((), jnp.int32), trainable, frozen, optimiser.init(trainable), jax.tree.map(jnp.copy, trainable)
    )


def diffusion_loss(networks: Animator, schedule: Schedule, ids: np.ndarray, options: ml_collections.ConfigDict) -> Loss:
    """E || target - network(z_t, t, y_a, y_p) ||^2 over a batch (MagicAnimate's objective; one frame or a clip, as the batch has it)."""

    def loss(flat: Flat, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        params = {"params": unflatten(flat)}
        apply = lambda method, *args: networks.apply(params, *args, method=method)  # noqa: E731
        dtype = next(iter(flat.values())).dtype
        b = len(batch["video"])
        noise_key, reference_key, pose_key = jax.random.split(key, 3)

        latents, reference = batch["video"], batch["reference"]
        if latents.dtype == jnp.uint8:  # pixels, else latents from a cache
            latents = apply("encode_image", _pixels(rearrange(latents, "b f H W c -> (b f) H W c"), dtype))
            latents = rearrange(latents, "(b f) h w c -> b f h w c", b=b)
            reference = apply("encode_image", _pixels(reference, dtype))
        latents, reference = jax.lax.stop_gradient((latents.astype(jnp.float32), reference.astype(dtype)))
        corrupted = corrupt(noise_key, latents, schedule, options.noise_offset, options.time_shift)

        motion = batch["motion"]
        if options.motion_dropout:
            drop = jax.random.bernoulli(pose_key, options.motion_dropout, (b, 1, 1, 1, 1))
            motion = jnp.where(drop, jnp.asarray(BACKGROUND, jnp.uint8).reshape(1, 1, 1, 1, 3), motion)
        text = repeat(apply("encode_text", ids[None]), "1 n c -> b n c", b=b)
        noisy, t = corrupted.noisy.astype(dtype), corrupted.times
        bank = apply("bank", reference, t, text)
        if options.reference_dropout:
            keep = ~jax.random.bernoulli(reference_key, options.reference_dropout, (b,))
            bank = jax.tree.map(lambda y: PartialBank(y, keep), bank)
        residuals = apply("residuals", noisy, t, text, motion.astype(dtype) / jnp.asarray(255, dtype))
        error = jnp.square(apply("predict", noisy, t, text, bank, residuals) - corrupted.target).mean(-1)
        if options.person != 1:
            weight = jnp.where(shows_person(motion, error.shape), options.person, 1.0)
            error = error * weight / weight.mean((1, 2, 3), keepdims=True)
        error = error.mean((1, 2, 3))
        weighted = (loss_weights(t, schedule, options.min_snr_gamma) * error).mean()
        quarter = t // (schedule.steps // 4)
        buckets = {
            f"loss_t{i}": jnp.where(quarter == i, error, 0).sum() / (quarter == i).sum().astype(jnp.float32)
            for i in range(4)
        }  # nan: none
        return weighted, buckets

    return loss


def shows_person(motion: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bool `b f h w`: latents with a pixel of the person, by the renders `b f H W 3`."""
    seen = (motion != jnp.asarray(BACKGROUND, jnp.uint8).reshape(1, 1, 1, 1, 3)).any(-1)
    return rearrange(seen, "b f (h p) (w q) -> b f h w (p q)", h=shape[2], w=shape[3]).any(-1)


def _pixels(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return x.astype(dtype) / jnp.asarray(127.5, dtype) - 1


def make_step(
    loss: Loss, optimiser: optax.GradientTransformation, rate: optax.Schedule, config: ml_collections.ConfigDict
):
    """(state, batch, number of the step) -> (state, metrics). Only the trainable parameters are differentiated; frozen ones pass untouched.

    Where the loss or the gradient is not finite the state stays as it was, so that it can be looked into; it then refuses all that follows, whose
    numbers no longer fit, and nobody has to look after every step.
    """
    dtype = jnp.dtype(config.dtype)

    def step(state: TrainState, batch: Batch, number: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def of_trainable(trainable: Flat):
            return loss(jax.tree.map(lambda x: x.astype(dtype), trainable) | state.frozen, batch, key)

        (value, extra), gradient = jax.value_and_grad(of_trainable, has_aux=True)(state.trainable)
        with jax.numpy_dtype_promotion("standard"):  # optax leaves promotions to JAX
            update, optimiser_state = optimiser.update(gradient, state.optimiser, state.trainable)
            learning_rate = jnp.asarray(rate(state.step // config.accumulate))
        trainable = optax.apply_updates(state.trainable, update)
        done = state.step.astype(jnp.float32) + 1
        decay = jnp.minimum(config.ema, done / (done + 10))  # follows closely at first
        ema = jax.tree.map(lambda a, x: a + (1 - decay) * (x - a), state.ema, trainable)
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        metrics = {
            "finite": finite,
            "loss": value,
            "gradient_norm": norm,
            "parameter_norm": optax.global_norm(trainable),
            "learning_rate": learning_rate,
            **extra,
        }
        after = (state.step + 1, trainable, optimiser_state, ema)
        before = (state.step, state.trainable, state.optimiser, state.ema)
        fits = finite & (state.step + 1 == number)
        count, trainable, optimiser_state, ema = jax.tree.map(lambda new, old: jnp.where(fits, new, old), after, before)
        return TrainState(count, trainable, state.frozen, optimiser_state, ema), metrics

    return step


def jit_step(config: ml_collections.ConfigDict, sizes: AnimatorConfig, ids: np.ndarray, mesh: Mesh, state: TrainState):
    """The jitted step of a run on a mesh; `state` may be shapes. The old state's memory is given to the new one."""
    if not any(
        "motion_modules" in name for name in state.trainable
    ):  # the appearance stage sees single frames, as published
        sizes = dataclasses.replace(sizes, unet=dataclasses.replace(sizes.unet, temporal=None))
    loss = diffusion_loss(Animator(sizes), Schedule(**config.schedule), ids, config.loss)
    sharding, whole = parameter_sharding(mesh, state), replicated(mesh)
    return jax.jit(
        make_step(loss, *make_optimiser(config), config),
        in_shardings=(sharding, batch_sharding(mesh), whole),
        out_shardings=(sharding, whole),
        donate_argnums=0,
    )
