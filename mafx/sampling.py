"""The sampling loop as it runs on the device: one program for any number of steps, and of frames up to a limit.

The parameters that a function takes are those of the networks of its phase, see PHASES.

The device holds the latents and the embedded motion of all frames. A batch of windows, `p k` frame indices, goes
through the networks together. Steps and batches of windows are loops inside the program, which is told their lengths
when it runs: another video of the same size compiles nothing, and nothing waits for the host.

Letters: `p` windows of a batch, `k` frames of a window, `i` batches of windows, `s` steps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mafx.compiling import jit
from mafx.diffusion.samplers import guide, sampler_step
from mafx.models.animator import Animator, Half
from mafx.models.unet import Bank
from mafx.steps import StepKind, WindowBatches

MAX_BYTE = 255

# The phases of an animation in their order, and the networks that each uses, by their names in the tree of parameters.
PHASES = {
    "text": ("text",),
    "reference": ("autoencoder",),
    "motion": ("control",),
    "banks": ("appearance",),
    "steps": ("unet", "control"),
    "decoding": ("autoencoder",),
}


class Inputs(NamedTuple):
    """What is the same at every step.

    Attributes:
      motion: The embedded motion, `f h w c`.
      text: Text states `1 n c`.
      negative: Text states of the unconditional half, None where they equal `text`.
      guidance_scale: Of classifier-free guidance.
      control_scale: Factor on the residuals.
      key: Of fresh noise.
    """

    motion: jax.Array
    text: jax.Array
    negative: jax.Array | None
    guidance_scale: jax.Array | np.float32
    control_scale: jax.Array | np.float32
    key: jax.Array


class SamplerState(NamedTuple):
    """What steps change.

    Attributes:
      x: Latents `f h w c`.
      clean: x_0 of the step before, `f h w c`.
      deep: The input of the networks' last level at an earlier step, `i p k h w c` for each half, or None.
    """

    x: jax.Array
    clean: jax.Array
    deep: tuple[jax.Array, ...] | None = None


def _apply(networks: Animator, params: dict, *args: Any, method: str, **kwargs: Any) -> Any:
    return networks.apply({"params": params}, *args, method=method, **kwargs)


@functools.partial(jit, static_argnums=0)
def encode_text(networks: Animator, params: dict, ids: jax.Array) -> jax.Array:
    """Token ids `1 n` to text states `1 n c`."""
    return _apply(networks, params, ids, method="encode_text")


@functools.partial(jit, static_argnums=0)
def encode_image(networks: Animator, params: dict, image: jax.Array) -> jax.Array:
    """An image `1 H W 3` in [-1, 1] to scaled latents `1 h w c`."""
    return _apply(networks, params, image, method="encode_image")


@functools.partial(jit, static_argnums=(0, 1, 2))
def embed_motion(networks: Animator, dtype: jnp.dtype, at_once: int, params: dict, motion: jax.Array) -> jax.Array:
    """Renders uint8 `f H W 3` to what the ControlNet sees of them, `f h w c`: the same at every step.

    Some frames `at_once`, which divides their number, are embedded in a dtype.
    """

    def embed(frames: jax.Array) -> jax.Array:
        frames = frames.astype(dtype) / jnp.asarray(MAX_BYTE, dtype)
        return _apply(networks, params, frames, method="embed_motion")

    pieces = rearrange(motion, "(i k) H W c -> i 1 k H W c", k=at_once)
    return rearrange(jax.lax.map(embed, pieces), "i 1 k h w c -> (i k) h w c")


@functools.partial(jit, static_argnums=0)
def write_banks(networks: Animator, params: dict, reference: jax.Array, times: jax.Array, text: jax.Array) -> Bank:
    """The banks of a reference `1 h w c` at many times `s` at once, each leaf `s 1 m c`."""
    reference, text = (repeat(x, "1 ... -> s ...", s=len(times)) for x in (reference, text))
    bank = _apply(networks, params, reference, times, text, method="bank")
    return jax.tree.map(lambda tokens: tokens[:, None], bank)


@functools.partial(jit, static_argnums=(0, 1, 2))
def decode(
    networks: Animator, mesh: Mesh | None, dtype: jnp.dtype, params: dict, x: jax.Array, frames: jax.Array
) -> jax.Array:
    """Chosen `frames` of latents `f h w c` to float32 pictures `f H W 3` in [0, 1], computed in a dtype."""
    latents = _spread(mesh, x[frames].astype(dtype))
    image = _apply(networks, params, latents, method="decode_latents")
    return jnp.clip(image.astype(jnp.float32) / 2 + 0.5, 0, 1)


@functools.partial(jit, static_argnums=0, donate_argnums=2)
def run_steps(
    kind: StepKind,
    params: dict,
    state: SamplerState,
    inputs: Inputs,
    batches: WindowBatches,
    table: dict[str, jax.Array],
    banks: Bank,
    first: jax.Array,
    last: jax.Array,
) -> tuple[SamplerState, jax.Array]:
    """Run the steps of a sampler table from `first` to before `last`.

    Args:
      kind: Of all these steps.
      params: Parameters of the networks.
      state: Before the first step. Its memory is given to the result.
      inputs: What is the same at every step.
      batches: The windows.
      table: Columns of the sampler table, see `diffusion.samplers.SamplerTable.parts`.
      banks: The bank of each row of the table.
      first: First row.
      last: Row behind the last one.

    Returns: The state behind the steps, and a number to wait for. The state itself may have been given away by then.
    """
    if kind.keep_deep and not kind.shallow:
        state = state._replace(deep=_room_for_deep(kind, params, state, inputs, batches, banks))

    def run_step(number: jax.Array, state: SamplerState) -> SamplerState:
        row = {name: column[number] for name, column in table.items()}
        bank = jax.tree.map(lambda tokens: tokens[number], banks)
        predict = functools.partial(_predict_windows, kind, params, inputs, batches, row["time"], bank)
        output, deep = predict(state)
        fresh = jnp.zeros_like(state.x)
        if kind.fresh_noise:
            fresh = jax.random.normal(jax.random.fold_in(inputs.key, row["number"]), state.x.shape)
        x, clean = sampler_step(row, state.x, output, state.clean, fresh, kind.prediction)
        return SamplerState(x, clean, deep)

    state = jax.lax.fori_loop(first, last, run_step, state)
    return state, state.x[0, 0, 0, 0]


def _room_for_deep(
    kind: StepKind, params: dict, state: SamplerState, inputs: Inputs, batches: WindowBatches, banks: Bank
) -> tuple[jax.Array, ...]:
    """Zeros in the shapes of `SamplerState.deep`; the first step fills them."""

    def predict_deep():
        bank = jax.tree.map(lambda tokens: tokens[0], banks)
        _, deep = predict(kind, params, state.x, None, inputs, batches.indices[0], 0, bank)
        return deep

    shapes = jax.eval_shape(predict_deep)
    return tuple(jnp.zeros((len(batches.indices), *deep.shape), deep.dtype) for deep in shapes)


def _predict_windows(
    kind: StepKind,
    params: dict,
    inputs: Inputs,
    batches: WindowBatches,
    time: jax.Array,
    bank: Bank,
    state: SamplerState,
) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
    """The prediction for all frames, `f h w c`, fused over windows, and the inputs of the networks' last level."""

    def add_batch(i: jax.Array | int, carry):
        output, deep = carry
        earlier = jax.tree.map(lambda x: x[i], deep) if kind.shallow else None
        indices = batches.indices[i]
        predicted, new_deep = predict(kind, params, state.x, earlier, inputs, indices, time, bank)
        if kind.keep_deep and not kind.shallow:
            deep = jax.tree.map(lambda x, new: x.at[i].set(new), deep, new_deep)
        weights = batches.weights[i][..., None, None, None]
        return output.at[indices].add(weights * predicted), deep

    nothing = jnp.zeros_like(state.x), state.deep
    if len(batches.indices) == 1:  # XLA would move parts of a network out of a loop of one batch, and run them twice
        return add_batch(0, nothing)
    return jax.lax.fori_loop(0, batches.number, add_batch, nothing)


def predict(
    kind: StepKind,
    params: dict,
    x: jax.Array,
    deep: tuple[jax.Array, ...] | None,
    inputs: Inputs,
    indices: jax.Array,
    time: jax.Array | int,
    bank: Bank,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The guided prediction for a batch of windows, float32 `p k h w c`, and each half's input of the last level."""
    call = functools.partial(_apply, kind.networks, params)
    p = len(indices)

    def for_windows(y: jax.Array) -> jax.Array:
        return _spread(kind.mesh, repeat(y, "1 ... -> p ...", p=p))

    noisy, motion = (_spread(kind.mesh, y[indices].astype(inputs.text.dtype)) for y in (x, inputs.motion))
    t, text, bank = jnp.full((p,), time), for_windows(inputs.text), jax.tree.map(for_windows, bank)
    scale = inputs.control_scale
    residuals = call(noisy, t, text, motion, scale, kind.shallow, method="residuals_from_embedded")
    halves = [Half(text, bank)]
    if kind.guided:
        halves.insert(0, Half(text if inputs.negative is None else for_windows(inputs.negative), {}))
    same_text = inputs.negative is None
    decoded = call(noisy, t, halves, residuals, same_text=same_text, deep=deep, method="denoise")
    prediction = decoded[-1].output
    if kind.guided:
        prediction = guide(decoded[0].output, prediction, inputs.guidance_scale)
    return prediction, tuple(half.deep for half in decoded)


def _spread(mesh: Mesh | None, x: jax.Array) -> jax.Array:
    """Spread the first axis over all devices of a mesh."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
