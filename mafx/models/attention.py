"""Attention over tokens: one function that chooses the kernel, and the spatial transformers built on it.

Tokens are `b f n c`: every frame has `n` of its own. What all frames of an example share (text states, the bank) is
`b m c`: it is projected once and never repeated along `f`. In einsum strings `a` is attention heads, `d` their width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jax.sharding import PartitionSpec

from mafx.models import fused
from mafx.models.fused import KeysValues
from mafx.models.kernels import DEFAULT_KERNELS, Kernels, first_that_compiles
from mafx.models.layers import GroupNorm, LayerNorm

Grid = tuple[int, int]  # rows and columns

SPLASH_LANES = 128  # numbers of queries and keys must be multiples of this in splash attention
MIN_CUDNN_QUERIES = 64  # cuDNN was asked for plans of no fewer
SINUSOID_PERIODS = (4, 32)  # shortest and longest period of `grid_sinusoid`, in positions
SINUSOID_AMPLITUDE = 2


class PartialBank(NamedTuple):
    """A bank's tokens `b m c`, seen only by the examples with `keep` (bool `b`): training drops the reference."""

    tokens: jax.Array
    keep: jax.Array


def attention(
    q: jax.Array,
    own: KeysValues | None = None,
    shared: KeysValues | None = None,
    keep: jax.Array | None = None,
    *,
    kernels: Kernels = DEFAULT_KERNELS,
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v. The keys are those of the frame, followed by those that all frames share.

    Args:
      q: Queries `b f n a d`.
      own: Keys and values of each frame, both `b f k a d`.
      shared: Keys and values of all frames, both `b m a d`. At least one of `own` and `shared` is given.
      keep: bool `b`, the examples that see `shared`; all of them if None. It needs `own`.
      kernels: What the kernel is chosen for. `kernels.attention` names one of KERNELS instead: "plain" holds all scores
        in memory, "blockwise" those of a few queries of one head, "cudnn" (NVIDIA, 16 bits), "two_part" (the same,
        without gradient) and "splash" (TPU, multiples of 128 queries and keys) none.

    Returns: `b f n a d` in the dtype of q. Scores and softmax are float32.

    Raises:
      ValueError: For an unknown kernel.
    """
    names = kernel_order(q, own, shared, keep, kernels) if kernels.attention == "auto" else [kernels.attention]
    if names[0] not in KERNELS:
        raise ValueError(f"attention kernel {names[0]!r} is unknown, expected one of auto, {', '.join(KERNELS)}")
    candidates = [(name, functools.partial(KERNELS[name], kernels=kernels)) for name in names]
    return first_that_compiles(candidates, (q, own, shared, keep), kernels)(q, own, shared, keep)


def kernel_order(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None, kernels: Kernels
) -> list[str]:
    """The keys of KERNELS that fit these arguments of `attention`, the fastest first. The last one fits always.

    Limits are per example: under jit `b` is the global batch.
    """
    platform, n, order = kernels.traced_platform, q.shape[2], []
    tokens = sum(kv[0].shape[-3] for kv in (own, shared) if kv is not None)
    if platform == "gpu" and n >= MIN_CUDNN_QUERIES and kernels.cudnn_takes(q.dtype, q.shape[-1]):
        order.append("cudnn")
    if kernels.fuses(q.dtype) and keep is None and spreads(q, kernels):
        order.append("two_part")
    if platform == "tpu" and spreads(q, kernels) and n % SPLASH_LANES == tokens % SPLASH_LANES == 0:
        order.append("splash")
    score_bytes = 4 * math.prod(q.shape[1:-1]) * tokens
    return [*order, "plain" if score_bytes <= kernels.plain_score_limit else "blockwise"]


def spreads(x: jax.Array, kernels: Kernels) -> bool:
    """Whether `on_each_device` can compute on `x`.

    It must know the mesh. The types of traced arrays hold it only where jit was given arrays on one.
    """
    return kernels.device_count == 1 or not jax.typeof(x).sharding.mesh.empty


def on_each_device(function: Callable[..., jax.Array], x: jax.Array, *arguments: Any, whole: tuple = ()) -> jax.Array:
    """Call a kernel that XLA cannot split over devices: every device calls it with its examples.

    Where the devices do not divide the batch, each of them computes all of it.

    Args:
      function: Called with all the following arguments.
      x: An array with examples on the first axis.
      arguments: Trees of such arrays.
      whole: Arrays that every device needs all of.
    """
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty:
        return function(x, *arguments, *whole)
    examples = PartitionSpec(mesh.axis_names if len(x) % mesh.size == 0 else None)
    specs = (examples,) * (1 + len(arguments)) + (PartitionSpec(),) * len(whole)
    spread = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=examples, check_vma=False)
    return spread(x, *arguments, *whole)


def _plain(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None, kernels: Kernels
) -> jax.Array:
    parts = []  # einsum of scores, einsum of values, keys and values
    if own is not None:
        parts.append(("bfnad,bfkad->bfank", "bfank,bfkad->bfnad", own))
    if shared is not None:
        parts.append(("bfnad,bkad->bfank", "bfank,bkad->bfnad", shared))
    scores = [jnp.einsum(pattern, q, k, preferred_element_type=jnp.float32) for pattern, _, (k, _) in parts]
    if keep is not None:
        scores[-1] = jnp.where(keep[:, None, None, None, None], scores[-1], -jnp.inf)
    # One softmax over both parts without joining them: weights are relative to the largest score of both parts, and
    # their sum is divided out at the end.
    largest = functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in scores])
    largest = jax.lax.stop_gradient(largest)
    weights = [jnp.exp((x - largest) * q.shape[-1] ** -0.5) for x in scores]
    total = rearrange(sum(x.sum(-1) for x in weights), "b f a n -> b f n a 1")
    products = [
        jnp.einsum(pattern, x.astype(q.dtype), v, preferred_element_type=jnp.float32)
        for x, (_, pattern, (_, v)) in zip(weights, parts, strict=True)
    ]
    return (functools.reduce(jnp.add, products) / total).astype(q.dtype)


def _visible_keys(keep: jax.Array | None, own: KeysValues | None, shared: KeysValues | None) -> jax.Array | None:
    """Bool `b k`, which of a frame's own and shared keys an example sees. None means all."""
    if keep is None or own is None or shared is None:
        return None
    own_keys = jnp.ones((len(keep), own[0].shape[-3]), bool)
    return jnp.concatenate([own_keys, repeat(keep, "b -> b m", m=shared[0].shape[1])], axis=1)


def _join(own: KeysValues | None, shared: KeysValues | None) -> KeysValues:
    """The keys and values of one frame, own ones first, joined along tokens (axis 1)."""
    parts = [kv for kv in (own, shared) if kv is not None]
    if len(parts) == 1:
        return parts[0]
    keys, values = zip(*parts, strict=True)
    return jnp.concatenate(keys, 1), jnp.concatenate(values, 1)


def _frames_as_queries(q: jax.Array, own: KeysValues | None) -> jax.Array:
    """Where all keys are shared, frames are only more queries: `b f n a d` -> `b 1 (f n) a d`."""
    return rearrange(q, "b f n a d -> b 1 (f n) a d") if own is None else q


def _blockwise(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None, kernels: Kernels
) -> jax.Array:
    """One head, one frame and one block of queries after another. The backward pass computes the scores again."""
    b, f, n, _, d = q.shape
    q = _frames_as_queries(q, own)
    visible = _visible_keys(keep, own, shared)

    @jax.checkpoint
    def attend_block(q, k, v):  # b n d, b k d
        scores = jnp.einsum("bnd,bkd->bnk", q, k, preferred_element_type=jnp.float32)
        if visible is not None:
            scores = jnp.where(visible[:, None], scores, -jnp.inf)
        largest = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp((scores - largest) * d**-0.5)
        out = jnp.einsum("bnk,bkd->bnd", weights.astype(q.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)

    def attend_frame(q, own, shared):
        k, v = _join(own, shared)
        blocks = min(q.shape[1], math.ceil(4 * q.shape[1] * k.shape[1] / kernels.block_score_limit))
        size = math.ceil(q.shape[1] / blocks)
        if blocks == 1:
            return attend_block(q, k, v)
        padded = jnp.pad(q, ((0, 0), (0, blocks * size - q.shape[1]), (0, 0)))
        out = jax.lax.map(lambda q: attend_block(q, k, v), rearrange(padded, "b (i n) d -> i b n d", i=blocks))
        return rearrange(out, "i b n d -> b (i n) d")[:, : q.shape[1]]

    def attend_head(arguments):  # f b n d, f b k d, b m d
        q, own, shared = arguments
        return jax.lax.map(lambda frame: attend_frame(frame[0], frame[1], shared), (q, own))

    q, own = jax.tree.map(lambda x: rearrange(x, "b f n a d -> a f b n d"), (q, own))
    shared = jax.tree.map(lambda x: rearrange(x, "b m a d -> a b m d"), shared)
    out = jax.lax.map(attend_head, (q, own, shared))
    return rearrange(out, "a f b n d -> b f n a d").reshape(b, f, n, -1, d)


def _cudnn(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None, kernels: Kernels
) -> jax.Array:
    """cuDNN's kernel through JAX.

    Hidden keys are the last ones of a row, so that lengths say what a mask would: a mask takes 8 GiB of workspace at
    4096 x 8192. JAX's gradient takes an even number of keys only, so that odd ones get a key that nobody sees.
    """
    b, f, n = q.shape[:3]
    own_keys = 0 if own is None else own[0].shape[-3]
    if own is None:
        q = rearrange(q, "b f n a d -> b (f n) a d")
    else:  # the kernel takes one list of keys per row
        q, own = jax.tree.map(lambda x: rearrange(x, "b f n a d -> (b f) n a d"), (q, own))
        shared = jax.tree.map(lambda x: repeat(x, "b m a d -> (b f) m a d", f=f), shared)
    k, v = _join(own, shared)
    keys, lengths = k.shape[1], None
    if keep is not None:
        lengths = repeat(jnp.where(keep, keys, own_keys), "b -> (b f)", f=len(q) // b)
    if keys % 2 and kernels.gradient:
        k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (k, v))
        lengths = jnp.full(len(q), keys) if lengths is None else lengths
    if lengths is not None:
        lengths = lengths.astype(jnp.int32)
    # XLA's implementation of the same function stands in for cuDNN in tests
    implementation: Literal["xla", "cudnn"] = "xla" if kernels.interpret else "cudnn"
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation=implementation)
    return out.reshape(b, f, n, *out.shape[-2:])


def _two_part(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None, kernels: Kernels
) -> jax.Array:
    """A kernel of ours, see `fused.py`."""
    if keep is not None:
        raise NotImplementedError("attention kernel two_part hides no keys")
    return on_each_device(functools.partial(fused.two_part_attention, interpret=kernels.interpret), q, own, shared)


def _splash(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None, kernels: Kernels
) -> jax.Array:
    """JAX's kernel, `jax.experimental.pallas.ops.tpu.splash_attention`."""
    return on_each_device(functools.partial(_splash_on_one_device, kernels=kernels), q, own, shared, keep)


def _splash_on_one_device(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None, kernels: Kernels
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention  # noqa: PLC0415 (experimental, and only for TPUs)

    b, f, n, a, d = q.shape
    q = _frames_as_queries(q, own)
    visible = _visible_keys(keep, own, shared)

    # The kernel and its gradient pad the width of every head to 128 lanes. Doing one frame at a time keeps that small.
    @jax.checkpoint
    def attend_frame(q, own):
        k, v = _join(own, shared)
        q, k, v = (rearrange(x, "b n a d -> b a n d") for x in (q * d**-0.5, k, v))
        n, m = (math.gcd(x.shape[2], kernels.splash_block) for x in (q, k))
        # forward; gradient of keys and values; gradient of queries
        sizes = splash_attention.BlockSizes(n, m, m, n, m, m, n, m)
        mask = splash_attention.MultiHeadMask([splash_attention.FullMask((q.shape[2], k.shape[2]))] * a)
        kernel = splash_attention.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=kernels.interpret)
        segments = None
        if visible is not None:  # queries see the keys of their own segment: 1; dropped keys are in segment 0
            queries = jnp.ones((b, q.shape[2]), jnp.int32)
            segments = splash_attention.SegmentIds(queries, visible.astype(jnp.int32))
        return rearrange(jax.vmap(kernel)(q, k, v, segments), "b a n d -> b n a d")

    frames = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, own))
    out = jax.lax.map(lambda frame: attend_frame(*frame), frames)
    return jnp.moveaxis(out, 0, 1).reshape(b, f, n, a, d)


KERNELS = {"plain": _plain, "blockwise": _blockwise, "cudnn": _cudnn, "two_part": _two_part, "splash": _splash}


def grid_sinusoid(h: int, w: int, width: int) -> jax.Array:
    """Encoding of the positions on a grid, for networks that learn from nothing.

    The first half of the channels holds sinusoids of the row, the second half those of the column. Added to queries and
    keys (not to values), they favour the same position, in the picture itself and in the reference, from the start.

    Returns: float32 `n width`, with n = h w.
    """
    first, last = (math.log2(period / 2) for period in SINUSOID_PERIODS)

    def encode(n: int) -> jax.Array:
        half_turns = 2 ** jnp.linspace(first, last, width // 4)  # positions to the next half turn
        angles = jnp.arange(n, dtype=jnp.float32)[:, None] * jnp.pi / half_turns[None]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    rows = repeat(encode(h), "h d -> (h w) d", w=w)
    columns = repeat(encode(w), "w d -> (h w) d", h=h)
    return SINUSOID_AMPLITUDE * jnp.concatenate([rows, columns], axis=-1)


class Attention(nn.Module):
    """Multi-head attention of tokens `b f n c`: to themselves, to themselves and a bank, or to a context.

    Mixed self-attention (MagicAnimate, section 3.2, "Appearance Encoder"):
    Q = W_Q z, K' = W_K [z ; y_a], V' = W_V [z ; y_a]. Both parts go through the same projections.
    """

    heads: int
    kernels: Kernels = DEFAULT_KERNELS

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        bank: jax.Array | PartialBank | None = None,
        context: jax.Array | None = None,
        grid: Grid | None = None,
    ) -> jax.Array:
        """Attend.

        Args:
          x: Tokens z, `b f n c`.
          bank: y_a, tokens `b m c` that are attended besides x.
          context: Tokens `b m c'` that are attended instead of x.
          grid: Rows and columns of x and of the bank, where positions count (see `grid_sinusoid`).

        Returns: `b f n c`.
        """
        bank, keep = bank if isinstance(bank, PartialBank) else (bank, None)
        width = x.shape[-1]
        to_q = nn.Dense(width, use_bias=False, name="to_q")
        to_k = nn.Dense(width, use_bias=False, name="to_k")
        to_v = nn.Dense(width, use_bias=False, name="to_v")

        def split_heads(y: jax.Array) -> jax.Array:
            return rearrange(y, "... (a d) -> ... a d", a=self.heads)

        def add_positions(y: jax.Array) -> jax.Array:
            if grid is None:
                return y
            positions = rearrange(grid_sinusoid(*grid, y.shape[-1]).astype(y.dtype), "n d -> n 1 d")
            return y + jnp.expand_dims(positions, range(y.ndim - positions.ndim))

        def keys_values(y: jax.Array) -> KeysValues:
            return add_positions(split_heads(to_k(y))), split_heads(to_v(y))

        own = keys_values(x) if context is None else None
        common = bank if context is None else context
        shared = None if common is None else keys_values(common)
        out = self.attend(add_positions(split_heads(to_q(x))), own, shared, keep)
        return nn.Dense(width, name="to_out")(rearrange(out, "... a d -> ... (a d)"))

    def attend(
        self, q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None
    ) -> jax.Array:
        """Which tokens attend which, see `attention`."""
        return attention(q, own, shared, keep, kernels=self.kernels)


def geglu(x: jax.Array, kernel: jax.Array, bias: jax.Array, kernels: Kernels = DEFAULT_KERNELS) -> jax.Array:
    """y gelu(gate) for the two halves y and gate of x kernel + bias, with the exact GELU (not the tanh approximation).

    Args:
      x: Tokens `b f n c`.
      kernel: `c 2o`.
      bias: `2o`.
      kernels: What the kernel is chosen for.

    Returns: `b f n o`.
    """

    def in_steps(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        y, gate = jnp.split(jnp.dot(x, kernel) + jnp.expand_dims(bias, range(x.ndim - 1)), 2, axis=-1)
        return y * nn.gelu(gate, approximate=False)

    candidates = [("in_steps", in_steps)]
    if kernels.fuses(x.dtype) and spreads(x, kernels) and kernel.shape[-1] % (2 * fused.GEGLU_COLUMNS) == 0:

        def at_once(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
            return on_each_device(functools.partial(fused.geglu, interpret=kernels.interpret), x, whole=(kernel, bias))

        candidates.insert(0, ("geglu", at_once))
    return first_that_compiles(candidates, (x, kernel, bias), kernels)(x, kernel, bias)


class GatedDense(nn.Module):
    """A dense layer whose outputs are half values, half gates of those, see `geglu`."""

    width: int
    kernels: Kernels = DEFAULT_KERNELS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 2 * self.width))
        bias = self.param("bias", nn.initializers.zeros_init(), (2 * self.width,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias)
        return geglu(x, kernel, bias, self.kernels)


class FeedForward(nn.Module):
    """Tokens of any width to 4 times as many channels, gated, and back."""

    kernels: Kernels = DEFAULT_KERNELS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        return nn.Dense(width, name="proj_out")(GatedDense(4 * width, self.kernels, name="proj_in")(x))


class TransformerBlock(nn.Module):
    """Self-attention (mixed with the bank, if there is one), cross-attention to the text, feed-forward.

    It returns the tokens, and the normalised tokens that entered self-attention: what an appearance encoder writes into
    the bank. With `bank_only` the block ends there, as the last block of the published appearance encoder does, and the
    tokens are None.
    """

    heads: int
    kernels: Kernels = DEFAULT_KERNELS
    bank_only: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, bank: jax.Array | PartialBank | None = None, grid: Grid | None = None
    ) -> tuple[jax.Array | None, jax.Array]:
        written = LayerNorm(name="norm1")(x)
        if self.bank_only:
            return None, written
        x = x + Attention(self.heads, self.kernels, name="attn1")(written, bank=bank, grid=grid)
        x = x + Attention(self.heads, self.kernels, name="attn2")(LayerNorm(name="norm2")(x), context=text)
        x = x + FeedForward(self.kernels, name="ff")(LayerNorm(name="norm3")(x))
        return x, written


class SpatialTransformer(nn.Module):
    """A transformer over the positions of each frame.

    It maps `b f h w c` to `b f h w c`, and returns what its block writes into the bank, `b f n c`.
    """

    heads: int
    groups: int = 32
    kernels: Kernels = DEFAULT_KERNELS
    bank_only: bool = False
    positions: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, bank: jax.Array | PartialBank | None = None
    ) -> tuple[jax.Array | None, jax.Array]:
        h, w, c = x.shape[-3:]
        y = GroupNorm(self.groups, 1e-6, batch_axes=2, name="norm")(x)
        y = rearrange(nn.Dense(c, name="proj_in")(y), "b f h w c -> b f (h w) c")
        block = TransformerBlock(self.heads, self.kernels, self.bank_only, name="transformer_blocks_0")
        tokens, written = block(y, text, bank, (h, w) if self.positions else None)
        if tokens is None:
            return None, written
        y = nn.Dense(c, name="proj_out")(rearrange(tokens, "b f (h w) c -> b f h w c", h=h, w=w))
        return x + y, written
