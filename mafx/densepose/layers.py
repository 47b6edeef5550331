"""The small pieces that all parts of DensePose R-CNN share. Activations are `b h w c`."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mafx.models.convolution import convolve


def conv(channels: int, side: int, name: str, *, stride: int = 1, dilation: int = 1, bias: bool = True) -> nn.Conv:
    """A convolution with kernels of `side` x `side` that keeps the size at stride 1, as PyTorch pads: alike everywhere.

    Args:
      channels: Of the output.
      side: An odd number of taps along rows and columns.
      name: The published one.
      stride: In pixels.
      dilation: Distance between taps in pixels.
      bias: Whether there is one.
    """
    padding = dilation * (side // 2)
    return nn.Conv(
        channels,
        (side, side),
        (stride, stride),
        padding=((padding, padding), (padding, padding)),
        kernel_dilation=dilation,
        use_bias=bias,
        conv_general_dilated=_convolve,
        name=name,
    )


def _convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding, **options) -> jax.Array:
    if kernel.shape[:2] == (1, 1):  # a matrix product, which runs at a CPU's full rate
        return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]
    return convolve(x, kernel, strides, padding, **options)


class TransposedConv(nn.Module):
    """A transposed convolution with 4x4 taps that doubles rows and columns, as PyTorch's with stride 2 and padding 1.

    Every pixel is multiplied with all taps at once. Tap k of pixel i belongs to row 2i - 1 + k: an even row 2i is the
    sum of tap 1 of pixel i and tap 3 of the pixel above, an odd one that of tap 2 and tap 0 of the pixel below.
    """

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (4, 4, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,), jnp.float32).astype(x.dtype)
        taps = jnp.einsum("bhwc,klco->klbhwo", x, kernel)
        rows = jnp.stack([taps[1] + _shift(taps[3], 1, -3), taps[2] + _shift(taps[0], -1, -3)], axis=-3)  # l b h p w o
        columns = [rows[1] + _shift(rows[3], 1, -2), rows[2] + _shift(rows[0], -1, -2)]
        y = rearrange(columns, "q b h p w o -> b (h p) (w q) o")
        return y + bias.reshape(1, 1, 1, -1)


def _shift(x: jax.Array, steps: int, axis: int) -> jax.Array:
    """Move values one place up (1) or down (-1) along an axis; zeros follow."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (1, 0) if steps > 0 else (0, 1)
    y = jnp.pad(x, padding)
    return jax.lax.slice_in_dim(y, 0, -1, axis=axis) if steps > 0 else jax.lax.slice_in_dim(y, 1, None, axis=axis)


def double_nearest(x: jax.Array) -> jax.Array:
    """Repeat rows and columns of `b h w c` once."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def double_bilinear(x: jax.Array) -> jax.Array:
    """Resize `... h w c` to twice its rows and columns, bilinear, corners not aligned.

    New pixels lie a quarter of a pixel beside old ones, so that each is 3/4 of one and 1/4 of its neighbour.
    """
    return _double(_double(x, x.ndim - 3), x.ndim - 2)


def _double(x: jax.Array, axis: int) -> jax.Array:
    size = x.shape[axis]
    cut = functools.partial(jax.lax.slice_in_dim, axis=axis)
    before = jnp.concatenate([cut(x, 0, 1), cut(x, 0, size - 1)], axis)
    after = jnp.concatenate([cut(x, 1, size), cut(x, size - 1, size)], axis)
    both = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    return both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of 3x3 pixels at every second row and column of `b h w c`, with one pixel of padding."""
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
