"""The optimiser: AdamW or Muon behind gradient clipping, and the dtypes in which it keeps its arrays."""

import collections
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from optax import contrib

from mafx.trees import Flat

OPTIMISERS = ("adamw", "muon")
MUON_MOMENTUM = 0.95
MUON_RMS = 0.2  # of an update of a kernel at a learning rate of 1, about that of AdamW's
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5  # optax's own; one for each iteration, so that one is compiled
GROUPED_ELEMENTS = 2**18  # arrays with more elements are updated alone: there is nothing to gain
COSINE_FLOOR = 0.05  # the cosine ends at this share of the learning rate: the last steps still learn
ROUNDING_SEED = 24  # apart from the seeds of noise, which runs count from 0
DROPPED_BITS = 16  # of float32's bits, those that bfloat16 does not have


def make_optimiser(config: ml_collections.ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW or Muon behind gradient clipping, and the learning rate of each step.

    The learning rate warms up, then stays or decays, as `config.decay` says.
    """
    decays = {
        "constant": optax.constant_schedule(config.lr),
        "cosine": optax.cosine_decay_schedule(config.lr, max(1, config.steps - config.warmup), alpha=COSINE_FLOOR),
    }
    warmup = optax.linear_schedule(0.0, config.lr, max(1, config.warmup))
    rate = optax.join_schedules([warmup, decays[config.decay]], [config.warmup])
    b1, b2 = config.betas
    if config.optimiser == "muon":
        inner = muon(rate, b1, b2, config.weight_decay)
    else:
        inner = optax.adamw(rate, b1, b2, weight_decay=config.weight_decay)
    if config.moments_dtype == "bfloat16":
        inner = with_bfloat16_state(inner)
    return optax.chain(optax.clip_by_global_norm(config.clip), inner), rate


def muon(rate: optax.Schedule, b1: float, b2: float, weight_decay: float) -> optax.GradientTransformation:
    """Muon for kernels, and AdamW with Nesterov's momentum for everything else.

    The momentum of a kernel, as a matrix of inputs and outputs, is replaced by the nearest orthogonal matrix. Updates
    are scaled to the size of AdamW's (*Muon is Scalable for LLM Training*, arXiv 2502.16982), so that both share a
    learning rate. Kernels of one shape are orthogonalised together.
    """

    def as_matrices(groups: Flat) -> dict[str, contrib.MuonDimensionNumbers | None]:
        return {name: _as_matrices(x) if name.startswith("kernel") else None for name, x in groups.items()}

    inner = contrib.muon(
        rate,
        ns_coeffs=NEWTON_SCHULZ,
        beta=MUON_MOMENTUM,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_weight_decay=weight_decay,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=as_matrices,
    )
    return in_groups(inner)


def _as_matrices(kernels: jax.Array) -> contrib.MuonDimensionNumbers:
    """The first axis counts the kernels of a group; the last holds their outputs, all others inputs."""
    return contrib.MuonDimensionNumbers(tuple(range(1, kernels.ndim - 1)), kernels.ndim - 1)


def in_groups(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that is given stacks of arrays that share kind and shape, instead of each of them.

    A small network has hundreds of small arrays, and what is done to them costs more than the arithmetic. The name of a
    stack begins with the kind of its arrays, the last word of their names.
    """

    def init(params: Flat) -> optax.OptState:
        return inner.init(_stack(params))

    def update(updates: Flat, state: optax.OptState, params: Flat | None = None) -> tuple[Flat, optax.OptState]:
        stacks, state = inner.update(_stack(updates), state, None if params is None else _stack(params))
        groups = _groups(updates)
        return {name: stacks[group][i] for group, names in groups.items() for i, name in enumerate(names)}, state

    return optax.GradientTransformation(init, update)


def _stack(arrays: Flat) -> Flat:
    return {group: jnp.stack([arrays[name] for name in names]) for group, names in _groups(arrays).items()}


def _groups(arrays: Flat) -> dict[str, list[str]]:
    """The names of the arrays of each group."""
    groups = collections.defaultdict(list)
    for name, x in sorted(arrays.items()):
        kind = name.rsplit("/", 1)[-1]
        share = name if x.size > GROUPED_ELEMENTS else "x".join(map(str, x.shape))
        groups[f"{kind} of {share}"].append(name)
    return groups


class RoundedState(NamedTuple):
    """State of `with_bfloat16_state`.

    Attributes:
      updates: Number of updates that are done.
      inner: The transformation's own state, its float32 arrays in bfloat16.
    """

    updates: jax.Array
    inner: optax.OptState


def with_bfloat16_state(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that computes in float32, and keeps the float32 arrays of its state in bfloat16.

    They are rounded stochastically. Rounded to the nearest, a second moment that decays by 0.001 would stay as it is,
    because neighbouring numbers of bfloat16 are 0.004 to 0.008 of their size apart. The random numbers depend on the
    number of the update only, so that a run is the same on any mesh and after a stop.
    """

    def init(params: Any) -> RoundedState:
        state = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, inner.init(params))
        return RoundedState(jnp.zeros((), jnp.int32), state)

    def update(updates: Any, state: RoundedState, params: Any = None) -> tuple[Any, RoundedState]:
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state.inner)
        updates, wide = inner.update(updates, wide, params)
        leaves, tree = jax.tree.flatten(wide)
        key = jax.random.fold_in(jax.random.key(ROUNDING_SEED), state.updates)
        salts = jax.random.bits(key, (len(leaves),), jnp.uint32)
        rounded = [
            round_stochastically(x, hashed_positions(x.shape, salts[i])) if x.dtype == jnp.float32 else x
            for i, x in enumerate(leaves)
        ]
        return updates, RoundedState(state.updates + 1, jax.tree.unflatten(tree, rounded))

    return optax.GradientTransformation(init, update)


def round_stochastically(x: jax.Array, random: jax.Array) -> jax.Array:
    """Float32 to one of the two nearest bfloat16, so that the mean over random numbers is the number itself.

    Args:
      x: Float32.
      random: Uint32 of the same shape, all of whose bits are random.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = bits + (random >> DROPPED_BITS)  # carries over the more often the larger what is dropped is
    rounded = jax.lax.bitcast_convert_type((bits >> DROPPED_BITS).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def hashed_positions(shape: tuple[int, ...], salt: jax.Array) -> jax.Array:
    """A random-looking uint32 for each element of an array: its position and a salt, mixed as MurmurHash3 ends.

    JAX's own generator is many more operations. In the update of every parameter of Stable Diffusion's size, XLA needed
    more than 15 GiB to compile them for a GPU, instead of 4.
    """
    position = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    mixed = position ^ salt
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return mixed ^ (mixed >> 16)
