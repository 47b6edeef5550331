"""Attention over tokens: one function that chooses the kernel, and the transformers over space built on it.

Tokens are `b f n c`: every frame has its own `n`. What all frames of an example share (text states, reference tokens) is `b m c`: it is projected
once and never repeated along `f`. In einsum strings `a` counts attention heads and `d` their width.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jax.sharding import PartitionSpec

from mafx.models.layers import GroupNorm, LayerNorm

KeysValues = tuple[jax.Array, jax.Array]


class PartialBank(NamedTuple):
    """A reference `b m c` that only the examples with `keep` (bool `b`) see: training drops it from some, for guidance."""

    tokens: jax.Array
    keep: jax.Array


KERNELS = ("auto", "plain", "blockwise", "cudnn", "splash")
# Both for one example: how many of them a device has cannot be seen here, for under jit the batch is that of all devices.
PLAIN_SCORE_BYTES = {"cpu": 16 << 20}, 256 << 20  # above this, by platform, "auto" stops materialising the score matrix
BLOCK_SCORE_BYTES = 8 << 20  # what a block of queries of one head may take in the blockwise kernel
SPLASH_LANES = 128  # numbers of queries and of keys are multiples of it
SPLASH_BLOCK = 512  # queries and keys that a TPU core takes at once
SPLASH_INTERPRETED = False  # for tests, where there is no TPU


def attention(
    q: jax.Array,
    own: KeysValues | None = None,
    shared: KeysValues | None = None,
    keep: jax.Array | None = None,
    *,
    kernel: str = "auto",
) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v, where the keys are a frame's own ones followed by those that all frames share.

    Args:
      q: queries, `b f n a d`.
      own: keys and values of each frame, both `b f k a d`.
      shared: keys and values for all frames, both `b m a d`. At least one of `own` and `shared` is given.
      keep: bool `b`, the examples that see `shared` at all; all of them if None. Needs `own`.
      kernel: one of KERNELS. "plain" holds all scores in memory, "blockwise" those of a few queries of one head, "cudnn" none (NVIDIA, 16 bit),
        nor does "splash" (TPU, queries and keys in multiples of 128).

    Returns: `b f n a d` in the dtype of q. Scores and softmax are float32.
    """
    if kernel == "auto":
        kernel = _choose_kernel(q, own, shared)
    if kernel not in KERNELS:
        raise ValueError(f"attention kernel {kernel!r} is unknown, expected one of {', '.join(KERNELS)}")
    return {"plain": _plain, "blockwise": _blockwise, "cudnn": _cudnn, "splash": _splash}[kernel](q, own, shared, keep)


def _choose_kernel(q: jax.Array, own: KeysValues | None, shared: KeysValues | None) -> str:
    if jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[2] > 128:
        return "cudnn"
    tokens = sum(kv[0].shape[-3] for kv in (own, shared) if kv is not None)
    # "splash" must know the mesh, which is in the types of what jit was given on one, but not of host arrays that it only then distributes
    placed = jax.device_count() == 1 or not jax.typeof(q).sharding.mesh.empty
    if jax.default_backend() == "tpu" and placed and q.shape[2] % SPLASH_LANES == tokens % SPLASH_LANES == 0:
        return "splash"
    special, usual = PLAIN_SCORE_BYTES
    return (
        "plain" if 4 * math.prod(q.shape[1:-1]) * tokens <= special.get(jax.default_backend(), usual) else "blockwise"
    )


def _plain(q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None = None) -> jax.Array:
    parts = []  # (scores' einsum, values' einsum, keys and values)
    if own is not None:
        parts.append(("bfnad,bfkad->bfank", "bfank,bfkad->bfnad", own))
    if shared is not None:
        parts.append(("bfnad,bkad->bfank", "bfank,bkad->bfnad", shared))
    scores = [jnp.einsum(pattern, q, k, preferred_element_type=jnp.float32) for pattern, _, (k, _) in parts]
    if keep is not None:
        scores[-1] = jnp.where(keep[:, None, None, None, None], scores[-1], -jnp.inf)
    # softmax over both parts without joining them: weights relative to the largest score of all, their sum divided out at the end
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in scores]))
    weights = [jnp.exp((x - top) * q.shape[-1] ** -0.5) for x in scores]
    total = rearrange(sum(x.sum(-1) for x in weights), "b f a n -> b f n a 1")
    out = sum(
        jnp.einsum(pattern, x.astype(q.dtype), v, preferred_element_type=jnp.float32)
        for x, (_, pattern, (_, v)) in zip(weights, parts, strict=True)
    )
    return (out / total).astype(q.dtype)


def _keep_per_key(keep: jax.Array | None, own: KeysValues | None, shared: KeysValues | None) -> jax.Array | None:
    """Bool `b k`: a frame's own keys are always seen."""
    if keep is None:
        return None
    return jnp.concatenate(
        [jnp.ones((len(keep), own[0].shape[-3]), bool), repeat(keep, "b -> b m", m=shared[0].shape[1])], axis=1
    )


def _blockwise(q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None) -> jax.Array:
    """Head after head, frame after frame and block after block of queries; the backward pass computes the scores again."""
    b, f, n, _, d = q.shape
    if own is None:  # frames are only more queries
        q = rearrange(q, "b f n a d -> b 1 (f n) a d")
    seen = _keep_per_key(keep, own, shared)

    @jax.checkpoint
    def block(q, k, v):  # b n d, b k d
        scores = jnp.einsum("bnd,bkd->bnk", q, k, preferred_element_type=jnp.float32)
        if seen is not None:
            scores = jnp.where(seen[:, None], scores, -jnp.inf)
        top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp((scores - top) * d**-0.5)
        out = jnp.einsum("bnk,bkd->bnd", weights.astype(q.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(q.dtype)

    def frame(q, own, shared):
        k, v = (
            own
            if shared is None
            else shared
            if own is None
            else jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), own, shared)
        )
        blocks = min(q.shape[1], math.ceil(4 * q.shape[1] * k.shape[1] / BLOCK_SCORE_BYTES))
        size = math.ceil(q.shape[1] / blocks)
        if blocks == 1:
            return block(q, k, v)
        padded = jnp.pad(q, ((0, 0), (0, blocks * size - q.shape[1]), (0, 0)))
        out = jax.lax.map(lambda q: block(q, k, v), rearrange(padded, "b (i n) d -> i b n d", i=blocks))
        return rearrange(out, "i b n d -> b (i n) d")[:, : q.shape[1]]

    def head(of_head):  # f b n d, f b k d, b m d
        q, own, shared = of_head
        return jax.lax.map(lambda of_frame: frame(*of_frame, shared), (q, own))

    q, own = jax.tree.map(lambda x: rearrange(x, "b f n a d -> a f b n d"), (q, own))
    out = jax.lax.map(head, (q, own, jax.tree.map(lambda x: rearrange(x, "b m a d -> a b m d"), shared)))
    return rearrange(out, "a f b n d -> b f n a d").reshape(b, f, n, -1, d)


def _cudnn(q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None) -> jax.Array:
    b, f, n = q.shape[:3]
    keep = _keep_per_key(keep, own, shared)
    mask = None if keep is None else repeat(keep, "b k -> (b f) 1 n k", f=f, n=n)
    if own is None:  # frames are only more queries
        q, (k, v) = rearrange(q, "b f n a d -> b (f n) a d"), shared
    else:  # the kernel wants one list of keys per row
        q, k, v = (rearrange(x, "b f n a d -> (b f) n a d") for x in (q, *own))
        if shared is not None:
            k, v = (
                jnp.concatenate([x, repeat(y, "b m a d -> (b f) m a d", f=f)], 1)
                for x, y in zip((k, v), shared, strict=True)
            )
    out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
    return out.reshape(b, f, n, *out.shape[-2:])


def _splash(q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None) -> jax.Array:
    """JAX's kernel, jax.experimental.pallas.ops.tpu.splash_attention. XLA cannot split it over devices, so each is given its examples here."""
    mesh = jax.typeof(q).sharding.mesh  # where jit found its arguments
    if mesh.empty:
        return _splash_frames(q, own, shared, keep)
    examples = PartitionSpec(mesh.axis_names if len(q) % mesh.size == 0 else None)  # else all to everyone
    return jax.shard_map(_splash_frames, mesh=mesh, in_specs=examples, out_specs=examples, check_vma=False)(
        q, own, shared, keep
    )


def _splash_frames(
    q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention  # noqa: PLC0415 (experimental: whoever has no TPU does without it)

    b, f, n, a, d = q.shape
    if own is None:  # frames are only more queries
        q = rearrange(q, "b f n a d -> b 1 (f n) a d")
    seen = _keep_per_key(keep, own, shared)

    @jax.checkpoint  # the kernel and its gradient lay out every head at the width of 128 lanes: for one frame at a time, then
    def frame(q, own):
        k, v = (
            own
            if shared is None
            else shared
            if own is None
            else jax.tree.map(lambda x, y: jnp.concatenate([x, y], 1), own, shared)
        )
        q, k, v = (rearrange(x, "b n a d -> b a n d") for x in (q * d**-0.5, k, v))
        n, m = (math.gcd(x.shape[2], SPLASH_BLOCK) for x in (q, k))
        sizes = splash_attention.BlockSizes(
            n, m, m, n, m, m, n, m
        )  # forward, gradient of keys and values, gradient of queries
        mask = splash_attention.MultiHeadMask([splash_attention.FullMask((q.shape[2], k.shape[2]))] * a)
        kernel = splash_attention.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=SPLASH_INTERPRETED)
        # queries see the keys of their segment: they are all in 1, dropped keys in 0
        segments = (
            None
            if seen is None
            else splash_attention.SegmentIds(jnp.ones((b, q.shape[2]), jnp.int32), seen.astype(jnp.int32))
        )
        return rearrange(jax.vmap(kernel)(q, k, v, segments), "b a n d -> b n a d")

    out = jax.lax.map(lambda of_frame: frame(*of_frame), jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, own)))
    return jnp.moveaxis(out, 0, 1).reshape(b, f, n, a, d)


def grid_sinusoid(h: int, w: int, width: int) -> jax.Array:
    """Places on a grid, `n width`, float32: sinusoids of the row in the first half of the channels, of the column in the second.

    Added to queries and keys (not to values), they favour the same place, in oneself and in the reference, from the start: what a network that
    learns from nothing would need long to find out.
    """

    def along(n: int) -> jax.Array:
        angles = (
            jnp.arange(n, dtype=jnp.float32)[:, None] * jnp.pi / 2 ** jnp.linspace(1.0, 4.0, width // 4)[None]
        )  # a turn of 4 to 32 places
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    rows, columns = repeat(along(h), "h d -> (h w) d", w=w), repeat(along(w), "w d -> (h w) d", h=h)
    return 2 * jnp.concatenate([rows, columns], axis=-1)


class Attention(nn.Module):
    """Multi-head attention of tokens `b f n c`: to themselves, to themselves and a reference, or to a context.

    Mixed self-attention (MagicAnimate's appearance encoder): Q = W_Q z, K' = W_K [z ; y_a], V' = W_V [z ; y_a], with the same projections for
    both parts.
    """

    heads: int
    kernel: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        reference: jax.Array | PartialBank | None = None,
        context: jax.Array | None = None,
        place: tuple[int, int] | None = None,
    ) -> jax.Array:
        """`x`: `b f n c`; `reference`: `b m c`, attended besides x itself; `context`: `b m c'`, attended instead of x; `place`: rows and columns of
        the grid that x and reference are, where their places count."""
        reference, keep = reference if isinstance(reference, PartialBank) else (reference, None)
        width = x.shape[-1]
        to_q, to_k, to_v = (nn.Dense(width, use_bias=False, name=name) for name in ("to_q", "to_k", "to_v"))

        def heads(y: jax.Array) -> jax.Array:
            return rearrange(y, "... (a d) -> ... a d", a=self.heads)

        def placed(y: jax.Array) -> jax.Array:
            if place is None:
                return y
            places = rearrange(grid_sinusoid(*place, y.shape[-1]).astype(y.dtype), "n d -> n 1 d")
            return y + jnp.expand_dims(places, range(y.ndim - places.ndim))

        def keys_values(y: jax.Array) -> KeysValues:
            return placed(heads(to_k(y))), heads(to_v(y))

        own = keys_values(x) if context is None else None
        common = reference if context is None else context
        shared = None if common is None else keys_values(common)
        out = attention(placed(heads(to_q(x))), own, shared, keep, kernel=self.kernel)
        return nn.Dense(width, name="to_out")(rearrange(out, "... a d -> ... (a d)"))


class FeedForward(nn.Module):
    """GEGLU: width -> 4 width, gated by an exact (not tanh) GELU -> width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, gate = jnp.split(nn.Dense(8 * x.shape[-1], name="proj_in")(x), 2, axis=-1)
        return nn.Dense(x.shape[-1], name="proj_out")(y * nn.gelu(gate, approximate=False))


class TransformerBlock(nn.Module):
    """Self-attention (mixed with the reference where one is given), cross-attention to the text, feed-forward.

    Returns the tokens and the normalised tokens that entered self-attention: what an appearance encoder hands to the denoiser. With
    `bank_only` the block ends there, as the last block of the published appearance encoder does, and the tokens are None.
    """

    heads: int
    kernel: str = "auto"
    bank_only: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, reference: jax.Array | None = None, place: tuple[int, int] | None = None
    ) -> tuple[jax.Array | None, jax.Array]:
        feature = LayerNorm(name="norm1")(x)
        if self.bank_only:
            return None, feature
        x = x + Attention(self.heads, self.kernel, name="attn1")(feature, reference=reference, place=place)
        x = x + Attention(self.heads, self.kernel, name="attn2")(LayerNorm(name="norm2")(x), context=text)
        x = x + FeedForward(name="ff")(LayerNorm(name="norm3")(x))
        return x, feature


class SpatialTransformer(nn.Module):
    """A transformer over the positions of each frame, `b f h w c` -> `b f h w c`, and its feature `b f n c` (see TransformerBlock)."""

    heads: int
    groups: int = 32
    kernel: str = "auto"
    bank_only: bool = False
    positions: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array, reference: jax.Array | None = None
    ) -> tuple[jax.Array | None, jax.Array]:
        h, w, c = x.shape[-3:]
        y = GroupNorm(self.groups, 1e-6, batch_axes=2, name="norm")(x)
        y = rearrange(nn.Dense(c, name="proj_in")(y), "b f h w c -> b f (h w) c")
        place = (h, w) if self.positions else None
        y, feature = TransformerBlock(self.heads, self.kernel, self.bank_only, name="transformer_blocks_0")(
            y, text, reference, place
        )
        if self.bank_only:
            return None, feature
        y = nn.Dense(c, name="proj_out")(rearrange(y, "b f (h w) c -> b f h w c", h=h, w=w))
        return x + y, feature
