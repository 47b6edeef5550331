"""The temporal transformer: attention along the frames of a clip, at every position by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from mafx.models import fused
from mafx.models.attention import Attention, FeedForward, attention, on_each_device, spreads
from mafx.models.fused import KeysValues
from mafx.models.kernels import DEFAULT_KERNELS, Kernels, first_that_compiles
from mafx.models.layers import GroupNorm, LayerNorm

PLAIN = Kernels(attention="plain")  # a clip has few frames, so scores are small


@dataclasses.dataclass(frozen=True)
class TemporalConfig:
    """Sizes of the temporal transformers (AnimateDiff's "Vanilla" motion module, as MagicAnimate configures it).

    Attributes:
      heads: Number of attention heads.
      max_frames: Number of positions, and thus of frames in a window, that the transformer knows.
      groups: Of the norm at its entry; 32 in the published model, whatever the UNet around it has.
      ordered: Whether frames are told their numbers. The published model's are; without, a clip is a set of frames.
    """

    heads: int = 8
    max_frames: int = 24
    groups: int = 32
    ordered: bool = True


def frame_sinusoid(frames: int, width: int) -> np.ndarray:
    """Encoding of frame numbers, float32 `frames width`: sines in the even channels, cosines in the odd ones."""
    angles = np.arange(frames)[:, None] * np.exp(np.arange(0, width, 2) * (-np.log(10000.0) / width))
    return rearrange(np.stack([np.sin(angles), np.cos(angles)]), "s f c -> f (c s)").astype(np.float32)


def frame_attention(q: jax.Array, k: jax.Array, v: jax.Array, kernels: Kernels = DEFAULT_KERNELS) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v along the frames, at every position by itself; all are `b f n a d`."""

    def by_position(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        q, k, v = (rearrange(x, "b f n a d -> b n f a d") for x in (q, k, v))
        return rearrange(attention(q, (k, v), kernels=PLAIN), "b n f a d -> b f n a d")

    candidates = [("by_position", by_position)]
    if kernels.fuses(q.dtype) and spreads(q, kernels):
        attend = functools.partial(fused.frame_attention, interpret=kernels.interpret)
        candidates.insert(0, ("frame_attention", functools.partial(on_each_device, attend)))
    return first_that_compiles(candidates, (q, k, v), kernels)(q, k, v)


class FrameAttention(Attention):
    """Self-attention among frames, after their positions are added.

    The sinusoid `pe` is a parameter because published files store it. It is constant, and no gradient reaches it.
    """

    max_frames: int = 24
    ordered: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]  # neither bank nor text
        """Attend along frames: `b f n c` -> `b f n c`. Raises ValueError for more than `max_frames` frames."""
        _, f, _, c = x.shape
        if f > self.max_frames:
            known = f"the temporal transformer knows {self.max_frames} positions"
            raise ValueError(f"{known}, {f} frames were given; use a shorter window")
        pe = self.param("pe", lambda _, shape: jnp.asarray(frame_sinusoid(*shape)), (self.max_frames, c))
        if self.ordered:
            x = x + jax.lax.stop_gradient(pe)[None, :f, None]
        return super().__call__(x)

    def attend(
        self, q: jax.Array, own: KeysValues | None, shared: KeysValues | None, keep: jax.Array | None
    ) -> jax.Array:
        assert own is not None
        k, v = own
        return frame_attention(q, k, v, self.kernels)


class TemporalBlock(nn.Module):
    """Two frame attentions and a feed-forward over `b f n c`."""

    config: TemporalConfig
    kernels: Kernels = DEFAULT_KERNELS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        for i in range(2):
            y = LayerNorm(name=f"norms_{i}")(x)
            x = x + FrameAttention(c.heads, self.kernels, c.max_frames, c.ordered, name=f"attention_blocks_{i}")(y)
        return x + FeedForward(self.kernels, name="ff")(LayerNorm(name="ff_norm")(x))


class TemporalTransformer(nn.Module):
    """Attention along frames: `b f h w c` -> `b f h w c`."""

    config: TemporalConfig
    kernels: Kernels = DEFAULT_KERNELS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h, w, c = x.shape[-3:]
        y = GroupNorm(self.config.groups, 1e-6, batch_axes=2, name="norm")(x)
        y = rearrange(nn.Dense(c, name="proj_in")(y), "b f h w c -> b f (h w) c")
        y = TemporalBlock(self.config, self.kernels, name="transformer_blocks_0")(y)
        y = nn.Dense(c, name="proj_out")(y)
        return x + rearrange(y, "b f (h w) c -> b f h w c", h=h, w=w)
