"""The small pieces that all networks share: time embedding, norms, residual block, resampling.

Activations are channel-last: frames of a video are `b f h w c`, images `b h w c`. No layer has a compute dtype of its
own. A layer computes in the dtype of its parameters and inputs, which are cast once, where a model is loaded or a
training step begins. Norms compute in float32 and return the dtype of their input.
"""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mafx.models.convolution import convolve, convolve_enlarged
from mafx.models.kernels import DEFAULT_KERNELS, Kernels


def timestep_embedding(t: jax.Array, width: int) -> jax.Array:
    """Sinusoidal embedding of diffusion times, cosines first.

    Source: DDPM's sinusoid as Stable Diffusion configures it (`flip_sin_to_cos: true`, `freq_shift: 0`).

    Args:
      t: Diffusion times `b`.
      width: Number of channels.

    Returns: float32 `b width`.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Diffusion times `b` to conditioning vectors `b width` for the residual blocks of every level.

    It computes in float32 always, since it is tiny.
    """

    sinusoid_width: int
    width: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        x = timestep_embedding(t, self.sinusoid_width)
        x = nn.silu(nn.Dense(self.width, dtype=jnp.float32, name="linear_1")(x))
        return nn.Dense(self.width, dtype=jnp.float32, name="linear_2")(x)


def _normalise(x: jax.Array, axes: tuple[int, ...], eps: float) -> jax.Array:
    """float32 of zero mean and unit variance over the axes.

    Two reductions, the second over what is left without the mean, are exact to float32. For inputs of 16 bits, one
    pass that sums values and squares is exact enough and reads the input once less. Over channels alone it gains
    nothing: XLA computes both reductions of a row in one kernel anyway.
    """
    y = x.astype(jnp.float32)
    mean = y.mean(axes, keepdims=True)
    if x.dtype.itemsize == 2 and len(axes) > 1:
        variance = jnp.maximum(jnp.square(y).mean(axes, keepdims=True) - jnp.square(mean), 0)
        return (y - mean) * jax.lax.rsqrt(variance + eps)
    y = y - mean
    return y * jax.lax.rsqrt(jnp.square(y).mean(axes, keepdims=True) + eps)


def _scale_and_shift(module: nn.Module, x: jax.Array) -> jax.Array:
    shape = (1,) * (x.ndim - 1) + (x.shape[-1],)
    scale = module.param("scale", nn.initializers.ones_init(), shape[-1:], jnp.float32)
    bias = module.param("bias", nn.initializers.zeros_init(), shape[-1:], jnp.float32)
    return x * scale.reshape(shape).astype(jnp.float32) + bias.reshape(shape).astype(jnp.float32)


class GroupNorm(nn.Module):
    """Group normalisation over the channels of a group and every axis but the first `batch_axes`.

    On a video `b f h w c`, `batch_axes=1` takes statistics over (f, h, w) together, as the residual blocks of the
    published denoiser do. `batch_axes=2` takes them over each frame alone, as the entries of all transformers do.
    """

    groups: int = 32
    eps: float = 1e-5
    batch_axes: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] % self.groups:
            raise ValueError(f"GroupNorm: {x.shape[-1]} channels do not divide into {self.groups} groups")
        y = rearrange(x, "... (g c) -> ... g c", g=self.groups)
        y = _normalise(y, (*range(self.batch_axes, x.ndim - 1), -1), self.eps)
        return _scale_and_shift(self, y.reshape(x.shape)).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over channels. Its eps is 1e-5, as in PyTorch; Flax's default is 1e-6."""

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _scale_and_shift(self, _normalise(x, (-1,), self.eps)).astype(x.dtype)


def conv3x3(
    channels: int,
    name: str,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
    dtype: jnp.dtype | None = None,
    enlarge: bool = False,
    kernels: Kernels = DEFAULT_KERNELS,
) -> nn.Conv:
    """A 3x3 convolution that pads one pixel on every side, also at stride 2 (JAX's SAME pads the high side only).

    With `enlarge`, rows and columns of the input are repeated once before.
    """
    return nn.Conv(
        channels,
        (3, 3),
        (stride, stride),
        padding=(padding, padding),
        dtype=dtype,
        conv_general_dilated=functools.partial(convolve_enlarged if enlarge else convolve, kernels=kernels),
        name=name,
    )


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions around a residual. The time embedding, if there is one, enters between them."""

    channels: int
    groups: int = 32
    eps: float = 1e-5
    batch_axes: int = 1  # of the group norms
    kernels: Kernels = DEFAULT_KERNELS

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        y = nn.silu(GroupNorm(self.groups, self.eps, self.batch_axes, name="norm1")(x))
        y = conv3x3(self.channels, "conv1", kernels=self.kernels)(y)
        if temb is not None:
            shift = nn.Dense(self.channels, name="time_emb_proj")(nn.silu(temb).astype(x.dtype))
            y = y + jnp.expand_dims(shift, range(1, x.ndim - 1))
        y = nn.silu(GroupNorm(self.groups, self.eps, self.batch_axes, name="norm2")(y))
        y = conv3x3(self.channels, "conv2", kernels=self.kernels)(y)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, name="conv_shortcut")(x)
        return x + y


class Downsample(nn.Module):
    """Halve rows and columns by a strided convolution. The UNets pad all four sides, the autoencoder the high two."""

    padding: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return conv3x3(x.shape[-1], "conv", stride=2, padding=self.padding)(x)


class Upsample(nn.Module):
    """Resize `... h w c` by the nearest neighbour to `size` (twice the input unless given), then convolve."""

    kernels: Kernels = DEFAULT_KERNELS

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        h, w = x.shape[-3:-1]
        size = size or (2 * h, 2 * w)
        twice = size == (2 * h, 2 * w)
        if not twice:  # sides that 8 does not divide: pick pixels as PyTorch's `nearest` does, floor(i * in / out)
            rows, columns = jnp.arange(size[0]) * h // size[0], jnp.arange(size[1]) * w // size[1]
            x = x.take(rows, axis=-3).take(columns, axis=-2)
        return conv3x3(x.shape[-1], "conv", enlarge=twice, kernels=self.kernels)(x)
