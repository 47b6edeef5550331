"""The small pieces all networks share: time embedding, norms, residual block, resampling.

Activations are channel-last: frames of a video are `b f h w c`, images `b h w c`. Nothing here has a compute dtype of its own: it is the dtype of
the parameters and inputs (cast once, where a model is loaded or a training step begins); norms compute in float32 and return the dtype they got.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mafx.models.convolution import convolve


def timestep_embedding(t: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding of diffusion times, cosines first: `b` -> `b width`, float32.

    Source: DDPM's sinusoid as configured by Stable Diffusion (`flip_sin_to_cos: true`, `freq_shift: 0`).
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Diffusion times `b` -> conditioning vectors `b width` for the residual blocks of every level; float32, as it costs nothing."""

    sinusoid_width: int
    width: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        x = timestep_embedding(t, self.sinusoid_width)
        x = nn.silu(nn.Dense(self.width, dtype=jnp.float32, name="linear_1")(x))
        return nn.Dense(self.width, dtype=jnp.float32, name="linear_2")(x)


def _scale_and_shift(module: nn.Module, x: jax.Array) -> jax.Array:
    shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
    scale = module.param("scale", nn.initializers.ones_init(), shape[-1:], jnp.float32)
    bias = module.param("bias", nn.initializers.zeros_init(), shape[-1:], jnp.float32)
    return x * scale.reshape(shape).astype(jnp.float32) + bias.reshape(shape).astype(jnp.float32)


class GroupNorm(nn.Module):
    """Group normalisation over every axis but the first `batch_axes` and, within a group, the channels.

    On a video `b f h w c`, `batch_axes=1` takes statistics over (f, h, w) together, as the published denoiser's residual blocks do, and
    `batch_axes=2` over each frame alone, as the entries of all its transformers do.
    """

    groups: int = 32
    eps: float = 1e-5
    batch_axes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] % self.groups:
            raise ValueError(f"GroupNorm: {x.shape[-1]} channels do not divide into {self.groups} groups")
        y = rearrange(x.astype(jnp.float32), "... (g c) -> ... g c", g=self.groups)
        axes = (*range(self.batch_axes, x.ndim - 1), -1)
        y = y - y.mean(axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(axes, keepdims=True) + self.eps)
        return _scale_and_shift(self, y.reshape(x.shape)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over channels; eps 1e-5 as in PyTorch, not Flax's 1e-6."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return _scale_and_shift(self, y).astype(x.dtype)


def conv3x3(channels: int, name: str, *, stride: int = 1, dtype: jnp.dtype | None = None) -> nn.Conv:
    """A 3x3 convolution that pads one pixel on every side, also at stride 2 (JAX's SAME pads the high side only)."""
    options = {"padding": ((1, 1), (1, 1)), "dtype": dtype, "conv_general_dilated": convolve}
    return nn.Conv(channels, (3, 3), (stride, stride), **options, name=name)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around a residual; the time embedding enters between them where one is given."""

    channels: int
    groups: int = 32
    eps: float = 1e-5
    batch_axes: int = 1  # of the group norms

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        y = nn.silu(GroupNorm(self.groups, self.eps, self.batch_axes, name="norm1")(x))
        y = conv3x3(self.channels, "conv1")(y)
        if temb is not None:
            shift = nn.Dense(self.channels, name="time_emb_proj")(nn.silu(temb).astype(x.dtype))
            y = y + jnp.expand_dims(shift, range(1, x.ndim - 1))
        y = nn.silu(GroupNorm(self.groups, self.eps, self.batch_axes, name="norm2")(y))
        y = conv3x3(self.channels, "conv2")(y)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, name="conv_shortcut")(x)
        return x + y


class Downsample(nn.Module):
    """Halve rows and columns with a strided convolution. The autoencoder pads only the high sides, the UNets all four."""

    padding: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=(self.padding, self.padding), name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour resize of `... h w c` to `size` (twice the input unless given), then a convolution."""

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        h, w = x.shape[-3:-1]
        size = size or (2 * h, 2 * w)
        if size == (2 * h, 2 * w):
            x = x.repeat(2, axis=-3).repeat(2, axis=-2)
        else:  # a latent side that 8 does not divide: pick pixels as PyTorch's `nearest` does, floor(i * in / out)
            x = x.take(jnp.arange(size[0]) * h // size[0], axis=-3).take(jnp.arange(size[1]) * w // size[1], axis=-2)
        return conv3x3(x.shape[-1], "conv")(x)
