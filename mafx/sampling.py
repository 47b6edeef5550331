"""The sampling loop as it runs on the device: one program for any number of steps and of frames up to a capacity.

The device has the latents and the motion of all frames; a turn takes some windows of them, `p k` frame indices, through the networks together. Steps
and turns are loops inside the program, whose lengths it is told when it runs: nothing is compiled anew for another video of the same size, and
nothing waits for the host.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mafx.compiling import jit
from mafx.diffusion.samplers import guide, sampler_step
from mafx.models.animator import Animator, Half
from mafx.models.unet import Bank


@dataclasses.dataclass(frozen=True)
class StepKind:
    """A kind of step: what its program depends on, beside shapes.

    Attributes:
      networks: sizes.
      prediction: what they answer, see `diffusion.Schedule`.
      guided: both halves of guidance, or the conditional one alone.
      fresh_noise: the sampler adds noise.
      shallow: only the first level of the networks is computed; what enters their last one is of an earlier step.
      keep_deep: hand that on to later steps.
      mesh: the windows of a turn are spread over its devices.
    """

    networks: Animator
    prediction: str
    guided: bool
    fresh_noise: bool = False
    shallow: bool = False
    keep_deep: bool = False
    mesh: Mesh | None = None


class WindowBatches(NamedTuple):
    """Frame indices and weights of the windows, `i p k`, of which the first `count` turns `i` are taken; the rest fills the capacity."""

    indices: np.ndarray
    weights: np.ndarray
    count: np.ndarray


class Inputs(NamedTuple):
    """What is the same at every step: motion `f H W 3` uint8, text states `1 n c` (`negative`: of the unconditional half, None where they are the
    same), scales of guidance and of the poses."""

    motion: jax.Array
    text: jax.Array
    negative: jax.Array | None
    guidance_scale: float
    control_scale: float
    key: jax.Array


class SamplerState(NamedTuple):
    """What steps change: latents `f h w c`, their clean part at the step before, and what entered the last level, `i p k h w c` of each half."""

    x: jax.Array
    clean: jax.Array
    deep: tuple[jax.Array, ...] | None = None


@functools.partial(jit, static_argnums=(0, 2))
def apply(networks: Animator, params: dict, method: str, *args: jax.Array):
    """A method of the networks."""
    return networks.apply({"params": params}, *args, method=method)


@functools.partial(jit, static_argnums=0)
def banks(networks: Animator, params: dict, reference: jax.Array, times: jax.Array, text: jax.Array) -> Bank:
    """The features of a reference `1 h w c` at many times at once, each `step 1 m c`."""
    reference, text = (repeat(x, "1 ... -> n ...", n=len(times)) for x in (reference, text))
    found = networks.apply({"params": params}, reference, times, text, method="bank")
    return jax.tree.map(lambda y: y[:, None], found)


@functools.partial(jit, static_argnums=(0, 1))
def decode(networks: Animator, mesh: Mesh | None, params: dict, x: jax.Array, frames: jax.Array) -> jax.Array:
    """Latents `f h w c` of chosen frames -> float32 `f H W 3` in [0, 1]."""
    latents = _spread(mesh, x[frames].astype(jax.tree.leaves(params)[0].dtype))
    image = networks.apply({"params": params}, latents, method="decode_latents")
    return jnp.clip(image.astype(jnp.float32) / 2 + 0.5, 0, 1)


@functools.partial(jit, static_argnums=0, donate_argnums=2)
def run_steps(
    kind: StepKind,
    params: dict,
    state: SamplerState,
    inputs: Inputs,
    turns: WindowBatches,
    table: dict[str, jax.Array],
    bank: Bank,
    first: jax.Array,
    last: jax.Array,
) -> tuple[SamplerState, jax.Array]:
    """Steps `first` to before `last` of a table (see `diffusion.samplers`), whose banks stand in the same order. Returns the state behind them, and a
    number to wait for: the state itself may have been given to the next steps by then."""
    if kind.keep_deep and not kind.shallow:  # filled by the first step
        of_turn = jax.eval_shape(
            lambda: _predict(
                kind, params, state.x, None, inputs, turns.indices[0], 0, jax.tree.map(lambda y: y[0], bank)
            )[1]
        )
        zeros = (jnp.zeros((len(turns.indices), *deep.shape), deep.dtype) for deep in of_turn)
        state = state._replace(deep=tuple(zeros))

    def step(i: jax.Array, state: SamplerState) -> SamplerState:
        row = {name: column[i] for name, column in table.items()}
        its_bank = jax.tree.map(lambda y: y[i], bank)

        def turn(j: jax.Array, carry):
            output, deep = carry
            before = jax.tree.map(lambda x: x[j], deep) if kind.shallow else None
            indices = turns.indices[j]
            predicted, after = _predict(kind, params, state.x, before, inputs, indices, row["time"], its_bank)
            if kind.keep_deep and not kind.shallow:
                deep = jax.tree.map(lambda x, new: x.at[j].set(new), deep, after)
            return output.at[indices].add(turns.weights[j][..., None, None, None] * predicted), deep

        output, deep = jax.lax.fori_loop(0, turns.count, turn, (jnp.zeros_like(state.x), state.deep))
        fresh = (
            jax.random.normal(jax.random.fold_in(inputs.key, row["number"]), state.x.shape)
            if kind.fresh_noise
            else jnp.zeros_like(state.x)
        )
        return SamplerState(*sampler_step(row, state.x, output, state.clean, fresh, kind.prediction), deep)

    state = jax.lax.fori_loop(first, last, step, state)
    return state, state.x[0, 0, 0, 0]


def _predict(
    kind: StepKind, params: dict, x: jax.Array, deep, inputs: Inputs, indices: jax.Array, time: jax.Array, bank: Bank
):
    """The guided prediction for the frames `p k` of a turn, float32 `p k h w c`; and what entered the last level, of each half."""
    call = functools.partial(kind.networks.apply, {"params": params})
    p = len(indices)

    def same(y: jax.Array) -> jax.Array:
        return _spread(kind.mesh, repeat(y, "1 ... -> p ...", p=p))

    noisy, motion = (_spread(kind.mesh, y[indices].astype(inputs.text.dtype)) for y in (x, inputs.motion))
    t, text, bank = jnp.full((p,), time), same(inputs.text), jax.tree.map(same, bank)
    residuals = call(
        noisy, t, text, motion / jnp.asarray(255, motion.dtype), inputs.control_scale, kind.shallow, method="residuals"
    )
    halves = [Half(text, bank)]
    if kind.guided:
        halves.insert(0, Half(text if inputs.negative is None else same(inputs.negative), {}))
    found = call(noisy, t, halves, residuals, deep, method="denoise")
    outputs = [half.output for half in found]
    return guide(*outputs, inputs.guidance_scale) if kind.guided else outputs[0], tuple(half.deep for half in found)


def _spread(mesh: Mesh | None, x: jax.Array) -> jax.Array:
    """The first axis over all devices of a mesh."""
    return (
        x if mesh is None else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    )
