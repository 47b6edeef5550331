"""One training step: the objective, the split into trainable and frozen parameters, the update.

Parameters are flat dicts here (see `mafx.trees`). Rules of freezing, sharding and checkpoints are
simplest with that.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from einops import rearrange, repeat
from flax.training.dynamic_scale import DynamicScale
from jax.sharding import Mesh

from mafx.compiling import STEP_OPTIONS, known_options
from mafx.densepose import BACKGROUND
from mafx.diffusion.losses import (
    CLEAN,
    Corruption,
    anchored_shares,
    corrupt,
    earlier_times,
    guided_target,
    loss_weights,
    pseudo_huber,
    scales_at,
)
from mafx.diffusion.schedule import Schedule, add_noise, answer_for, signal_and_noise
from mafx.errors import InputError
from mafx.low_rank import add_update, update_shapes
from mafx.models.animator import Animator, AnimatorConfig, parameter_shapes
from mafx.models.attention import PartialBank
from mafx.training.averages import average, in_main_memory
from mafx.training.optimiser import make_optimiser
from mafx.training.sharding import MIN_ELEMENTS, batch_sharding, parameter_sharding, replicated
from mafx.trees import Flat, flatten, unflatten

Batch = dict[str, jax.Array]
Loss = Callable[[Flat, Batch, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]

FIRST_LOSS_SCALE = (
    2.0**16
)  # it halves with each gradient that leaves float16's range, and doubles after 2000 that do not
TIME_BUCKETS = 4  # the loss is reported for each quarter of the diffusion times


def split(flat: Flat, rules: Sequence[tuple[str, bool]]) -> tuple[Flat, Flat]:
    """Split parameters into trainable and frozen ones.

    Args:
      flat: All parameters.
      rules: Patterns, and whether to train a parameter in whose name the pattern is found. The first such rule decides.

    Raises:
      InputError: Where no rule applies to a parameter, or a rule to none: either would train the wrong model.
    """
    decisions, used = {}, set()
    for name in flat:
        rule = next((i for i, (pattern, _) in enumerate(rules) if re.search(pattern, name)), None)
        if rule is None:
            raise InputError(f"config.train_only: no rule says whether {name} is trained; end with ('.*', False)")
        decisions[name] = bool(rules[rule][1])
        used.add(rule)
    if idle := [pattern for i, (pattern, _) in enumerate(rules) if i not in used]:
        raise InputError(f"config.train_only: rules that apply to no parameter: {', '.join(idle)}")
    trainable, frozen = ({name: x for name, x in flat.items() if decisions[name] == wanted} for wanted in (True, False))
    if not trainable:
        raise InputError("config.train_only: the rules freeze everything")
    return trainable, frozen


class TrainState(NamedTuple):
    """Everything that a run continues from.

    Attributes:
      step: Number of steps that are done.
      trainable: float32 masters.
      frozen: In the compute dtype.
      optimiser: Optax's state.
      ema: Averages of the trainable parameters, float32. The step is given none where `config.ema_on` is "host".
      loss_scale: What the loss is multiplied by where the gradient is computed, in float16 only.
    """

    step: jax.Array
    trainable: Flat
    frozen: Flat
    optimiser: optax.OptState
    ema: Flat
    loss_scale: DynamicScale | None = None


def run_shapes(config: ml_collections.ConfigDict, sizes: AnimatorConfig) -> dict:
    """The shapes of a run's parameters, nested: those of its networks, and of an update where it trains one."""
    shapes = flatten(parameter_shapes(sizes))
    if config.low_rank.rank:
        shapes |= update_shapes(shapes, config.low_rank.kernels, config.low_rank.rank)
    return unflatten(shapes)


def init_state(
    params: dict, rules: Sequence[tuple[str, bool]], optimiser: optax.GradientTransformation, dtype: jnp.dtype
) -> TrainState:
    """The state before the first step. `dtype` is that of computation and of frozen parameters."""
    trainable, frozen = split(flatten(params), rules)
    trainable = jax.tree.map(lambda x: jnp.array(x, jnp.float32), trainable)
    frozen = jax.tree.map(lambda x: jnp.asarray(x, dtype), frozen)
    ema = jax.tree.map(jnp.copy, trainable)
    loss_scale = None
    if dtype == jnp.float16:
        count, scale = jnp.zeros((), jnp.int32), jnp.asarray(FIRST_LOSS_SCALE, jnp.float32)
        loss_scale = DynamicScale(fin_steps=count, scale=scale)  # type: ignore[arg-type]  # arrays, to be checkpointed
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, optimiser.init(trainable), ema, loss_scale)


def state_maker(config: ml_collections.ConfigDict) -> Callable[[dict], TrainState]:
    """The function that makes the first state of a run from a nested dict of parameters."""
    optimiser, _ = make_optimiser(config)
    return functools.partial(init_state, rules=config.train_only, optimiser=optimiser, dtype=jnp.dtype(config.dtype))


def state_sharding(
    config: ml_collections.ConfigDict, mesh: Mesh, state: TrainState, min_elements: int = MIN_ELEMENTS
) -> TrainState:
    """A sharding for every array of a run's state, or of its shapes."""
    sharding = parameter_sharding(mesh, state, min_elements)
    return sharding._replace(ema=in_main_memory(sharding.ema)) if config.ema_on == "host" else sharding


def step_state(config: ml_collections.ConfigDict, state: TrainState) -> TrainState:
    """What the step is given of a run's state: all of it, or all but the averages."""
    return state._replace(ema={}) if config.ema_on == "host" else state


def diffusion_loss(networks: Animator, schedule: Schedule, ids: np.ndarray, options: ml_collections.ConfigDict) -> Loss:
    """MagicAnimate's objective, E || target - network(z_t, t, y_a, y_p) ||^2, for single frames and for clips.

    With `options.halvings` the target is the network's own answer at an earlier time, for the same noise: it learns to
    answer in few steps what it says in many (`losses.earlier_times`). With `options.guidance` it learns the answers of
    guidance of that scale (`losses.guided_target`).

    Args:
      networks: The networks.
      schedule: The noise schedule.
      ids: Token ids `n` of the empty prompt.
      options: `config.loss`.

    Returns: A function of all parameters, a batch, a random key, and the share of the steps that are done. It gives the
      loss, and the mean error at each quarter of the diffusion times (nan where no example has one).
    """

    def loss(flat: Flat, batch: Batch, key: jax.Array, done: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        dtype = next(iter(flat.values())).dtype
        apply = _applied(networks, flat)

        noise_key, reference_key, motion_key = jax.random.split(key, 3)
        latents, reference = _encode(apply, batch, dtype)
        shares = anchored_shares(len(latents), done, options.halvings) if options.halvings else 1.0
        corrupted = corrupt(noise_key, latents, schedule, options.noise_offset, options.time_shift, shares)
        motion = drop_motion(motion_key, batch["motion"], options.motion_dropout)
        text = repeat(apply("encode_text", ids[None]), "1 n c -> b n c", b=len(latents))

        def inputs(apply: Callable, noisy: jax.Array, t: jax.Array) -> tuple:
            noisy = noisy.astype(dtype)
            bank = drop_bank(reference_key, apply("bank", reference, t, text), options.reference_dropout, len(latents))
            residuals = apply("residuals", noisy, t, text, motion.astype(dtype) / jnp.asarray(255, dtype))
            return noisy, t, text, bank, residuals

        def answer(apply: Callable, noisy: jax.Array, t: jax.Array) -> jax.Array:
            return apply("predict", *inputs(apply, noisy, t))

        t = corrupted.times
        *seen, bank, residuals = inputs(apply, corrupted.noisy, t)
        output = apply("predict", *seen, bank, residuals)
        if options.guidance != 1:
            without = apply("predict", *seen, {}, residuals)
            unconditional, conditional = jax.lax.stop_gradient((without, output))
            target = guided_target(corrupted.target, unconditional, conditional, options.guidance)
            corrupted = dataclasses.replace(corrupted, target=target)
        target = corrupted.target
        if options.halvings:
            teach = functools.partial(answer, _applied(networks, jax.lax.stop_gradient(flat)))
            earlier = earlier_times(t, done, options.halvings, schedule.steps)
            target = consistent_target(teach, corrupted, earlier, schedule)
        error = jnp.square(output - target).mean(-1)
        error = weigh_person(error, batch["motion"], options.person).mean((1, 2, 3))  # also where it is not shown
        weighted = loss_weights(t, schedule, options.min_snr_gamma, options.as_v) * error
        weighted = pseudo_huber(weighted) if options.halvings else weighted
        return weighted.mean(), _by_time(error, t, schedule)

    return loss


def _applied(networks: Animator, flat: Flat) -> Callable:
    """The networks' methods, by name, with parameters."""
    params = {"params": unflatten(add_update(flat))}
    return lambda method, *args: networks.apply(params, *args, method=method)


def consistent_target(
    teach: Callable[[jax.Array, jax.Array], jax.Array], corrupted: Corruption, earlier: jax.Array, schedule: Schedule
) -> jax.Array:
    """What the network would have to answer to agree with its answer at an earlier time, for the same noise.

    Args:
      teach: The network's answer for noisy latents at times `b`.
      corrupted: The noisy latents that the target is for. Their own target is taken where the earlier time is
        `losses.CLEAN`.
      earlier: Times `b`.
      schedule: The noise schedule.
    """
    alpha, sigma = scales_at(earlier, schedule)
    noisy = add_noise(corrupted.latents, corrupted.noise, alpha, sigma)
    output = teach(noisy, jnp.maximum(earlier, 0))
    is_clean = (earlier == CLEAN)[:, None, None, None, None]
    clean, _ = signal_and_noise(noisy, output, alpha, jnp.where(is_clean, 1, sigma), schedule.prediction)
    answer = answer_for(corrupted.noisy, clean, *scales_at(corrupted.times, schedule), schedule.prediction)
    return jnp.where(is_clean, corrupted.target, answer)


def _encode(apply: Callable, batch: Batch, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Clean latents, float32 `b f h w c`, and the reference's, `b h w c`: encoded, or from a cache of latents."""
    latents, reference = batch["video"], batch["reference"]
    if latents.dtype == jnp.uint8:  # pixels
        b = len(latents)
        latents = apply("encode_image", _to_unit_range(rearrange(latents, "b f H W c -> (b f) H W c"), dtype))
        latents = rearrange(latents, "(b f) h w c -> b f h w c", b=b)
        reference = apply("encode_image", _to_unit_range(reference, dtype))
    return jax.lax.stop_gradient((latents.astype(jnp.float32), reference.astype(dtype)))


def _to_unit_range(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Bytes to [-1, 1]."""
    return x.astype(dtype) / jnp.asarray(127.5, dtype) - 1


def drop_motion(key: jax.Array, motion: jax.Array, share: float) -> jax.Array:
    """Replace the motion uint8 `b f H W 3` of a share of the examples by the background."""
    if not share:
        return motion
    drop = jax.random.bernoulli(key, share, (len(motion), 1, 1, 1, 1))
    return jnp.where(drop, _background(), motion)


def drop_bank(key: jax.Array, bank: dict, share: float, examples: int) -> dict:
    """Hide the bank from a share of the examples."""
    if not share:
        return bank
    keep = ~jax.random.bernoulli(key, share, (examples,))
    return jax.tree.map(lambda tokens: PartialBank(tokens, keep), bank)


def weigh_person(error: jax.Array, motion: jax.Array, weight: float) -> jax.Array:
    """Multiply the error `b f h w` by `weight` within the person of each example, and keep its scale."""
    if weight == 1:
        return error
    weights = jnp.where(shows_person(motion, error.shape), weight, 1.0)
    return error * weights / weights.mean((1, 2, 3), keepdims=True)


def shows_person(motion: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bool `b f h w`, of the given shape: which latents have a pixel of the person in the renders `b f H W 3`."""
    seen = (motion != _background()).any(-1)
    return rearrange(seen, "b f (h p) (w q) -> b f h w (p q)", h=shape[2], w=shape[3]).any(-1)


def _background() -> jax.Array:
    return jnp.asarray(BACKGROUND, jnp.uint8).reshape(1, 1, 1, 1, 3)


def _by_time(error: jax.Array, t: jax.Array, schedule: Schedule) -> dict[str, jax.Array]:
    """The mean error of each quarter of the diffusion times; nan where no example has one."""
    bucket = t // (schedule.steps // TIME_BUCKETS)
    means = {}
    for i in range(TIME_BUCKETS):
        inside = bucket == i
        means[f"loss_t{i}"] = jnp.where(inside, error, 0).sum() / inside.sum().astype(jnp.float32)
    return means


def make_step(
    loss: Loss, optimiser: optax.GradientTransformation, rate: optax.Schedule, config: ml_collections.ConfigDict
):
    """The function (state, batch, number of the step, seed) -> (state, metrics).

    The seed is an argument, so that runs that differ in it alone share a compiled program.

    Only trainable parameters are differentiated. Where the loss or the gradient is not finite, the state stays as it
    was, so that it can be inspected. It also refuses all later steps, because their numbers do not follow its own: the
    loop need not check every step before it starts the next one.

    In float16 the loss is scaled (*Mixed Precision Training*, arXiv 1710.03740). A gradient that is not finite then
    means that the scale was too large: the step teaches nothing, and the scale halves. Only at a scale of 1 or less is
    such a step refused.

    A step is one update. Where batches are accumulated, it is given `config.accumulate` of them, stacked.
    """
    differentiate = _accumulate if config.accumulate > 1 else _differentiate

    def step(
        state: TrainState, batch: Batch, number: jax.Array, seed: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        value, errors_by_time, gradient, loss_scale = differentiate(loss, state, batch, key, config)
        with jax.numpy_dtype_promotion("standard"):  # optax leaves promotions to JAX
            update, optimiser_state = optimiser.update(gradient, state.optimiser, state.trainable)
            learning_rate = jnp.asarray(rate(state.step))
        trainable = optax.apply_updates(state.trainable, update)
        ema = average(state.ema, trainable, state.step, config.ema)
        norm = optax.tree.norm(gradient)
        learns = jnp.isfinite(norm)
        finite = jnp.isfinite(value) & learns
        if state.loss_scale is not None:
            finite = jnp.isfinite(value) & (learns | (state.loss_scale.scale > 1))
        metrics = {
            "finite": finite,
            "loss": value,
            "gradient_norm": norm,
            "parameter_norm": optax.tree.norm(trainable),
            "learning_rate": learning_rate,
            **errors_by_time,
        }
        if state.loss_scale is not None:
            metrics["loss_scale"] = state.loss_scale.scale
        accepted = finite & (state.step + 1 == number)

        def keep(chosen: jax.Array, new: Any, old: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(chosen, x, y), new, old)

        count, loss_scale = keep(accepted, (state.step + 1, loss_scale), (state.step, state.loss_scale))
        before = (state.trainable, state.optimiser, state.ema)
        trainable, optimiser_state, ema = keep(accepted & learns, (trainable, optimiser_state, ema), before)
        return TrainState(count, trainable, state.frozen, optimiser_state, ema, loss_scale), metrics

    return step


def _differentiate(
    loss: Loss, state: TrainState, batch: Batch, key: jax.Array, config: ml_collections.ConfigDict
) -> tuple[jax.Array, dict[str, jax.Array], Flat, DynamicScale | None]:
    """The loss, what comes with it, the gradient of the trainable parameters, and the next scale of the loss."""
    dtype = jnp.dtype(config.dtype)

    def loss_of_trainable(trainable: Flat):
        done = state.step.astype(jnp.float32) / config.steps
        return loss(jax.tree.map(lambda x: x.astype(dtype), trainable) | state.frozen, batch, key, done)

    if state.loss_scale is None:
        (value, others), gradient = jax.value_and_grad(loss_of_trainable, has_aux=True)(state.trainable)
        return value, others, gradient, None
    scaled = state.loss_scale.value_and_grad(loss_of_trainable, has_aux=True)(state.trainable)
    return *scaled.aux, scaled.grad, scaled.dynamic_scale


def _accumulate(
    loss: Loss, state: TrainState, batches: Batch, key: jax.Array, config: ml_collections.ConfigDict
) -> tuple[jax.Array, dict[str, jax.Array], Flat, DynamicScale | None]:
    """The same of stacked batches, one after the other: means, of which the gradient's is in `config.accumulate_dtype`.

    The scale of the loss is too large where it is too large for one of them.
    """
    kept = jnp.dtype(config.accumulate_dtype)

    def add(mean: Flat, numbered: tuple[jax.Array, Batch]) -> tuple[Flat, tuple]:
        number, batch = numbered
        *rest, gradient, loss_scale = _differentiate(loss, state, batch, jax.random.fold_in(key, number), config)
        share = 1 / (number + 1).astype(jnp.float32)
        mean = jax.tree.map(functools.partial(_move_mean, share=share), mean, gradient)
        return mean, (*rest, loss_scale)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, kept), state.trainable)
    numbers = jnp.arange(config.accumulate, dtype=jnp.int32)
    mean, (values, others, loss_scales) = jax.lax.scan(add, nothing, (numbers, batches))
    gradient = jax.tree.map(lambda x: x.astype(jnp.float32), mean)
    lowest = jax.tree.map(lambda x: x.min(0), loss_scales)
    return values.mean(), jax.tree.map(functools.partial(jnp.nanmean, axis=0), others), gradient, lowest


def _move_mean(mean: jax.Array, x: jax.Array, share: jax.Array) -> jax.Array:
    before = mean.astype(jnp.float32)
    return (before + (x - before) * share).astype(mean.dtype)


def jit_step(
    config: ml_collections.ConfigDict,
    sizes: AnimatorConfig,
    ids: np.ndarray,
    mesh: Mesh,
    state: TrainState,
    min_elements: int = MIN_ELEMENTS,
):
    """The jitted step of a run on a mesh. The memory of the old state is given to the new one.

    Args:
      config: Of the run.
      sizes: Of the networks.
      ids: Token ids `n` of the empty prompt.
      mesh: Where the run's arrays live.
      state: The state that the step is given, or its shapes.
      min_elements: Of arrays that are split over devices, see `parameter_sharding`.
    """
    trains_temporal = any("motion_modules" in name for name in state.trainable)
    if config.data.frames == 1 and not trains_temporal:  # the appearance stage sees single frames, as published
        sizes = sizes.without_temporal_layers()
    sizes = sizes.with_kernels(dataclasses.replace(sizes.unet.kernels, gradient=True))
    loss = diffusion_loss(Animator(sizes), Schedule(**config.schedule), ids, config.loss)
    sharding, whole = parameter_sharding(mesh, state, min_elements), replicated(mesh)
    return jax.jit(
        make_step(loss, *make_optimiser(config), config),
        in_shardings=(sharding, batch_sharding(mesh, config.accumulate > 1), whole, whole),
        out_shardings=(sharding, whole),
        donate_argnums=0,
        compiler_options=known_options(STEP_OPTIONS, mesh.devices.flat[0].platform),
    )


def trace_step(config: ml_collections.ConfigDict, sizes: AnimatorConfig, mesh: Mesh, batch: int) -> jax.stages.Traced:
    """The training step of a run on shapes alone, with `batch` examples per device at once."""
    state = step_state(config, jax.eval_shape(state_maker(config), run_shapes(config, sizes)))
    b, f, (H, W) = batch * mesh.size, config.data.frames, config.data.size
    shape, dtype = (H, W, 3), jnp.uint8
    if config.data.latent_cache:
        factor = sizes.autoencoder.factor
        shape, dtype = (H // factor, W // factor, sizes.unet.channels), jnp.float16
    stack = (config.accumulate,) if config.accumulate > 1 else ()
    examples = {
        "video": jax.ShapeDtypeStruct((*stack, b, f, *shape), dtype),
        "motion": jax.ShapeDtypeStruct((*stack, b, f, H, W, 3), jnp.uint8),
        "reference": jax.ShapeDtypeStruct((*stack, b, *shape), dtype),
    }
    step = jit_step(config, sizes, np.zeros(sizes.text.positions, np.int32), mesh, state)
    number, seed = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)
    return step.trace(state, examples, number, seed)
