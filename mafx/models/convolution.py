"""3x3 convolutions, of pictures and of enlarged ones: functions that choose the algorithm.

XLA's convolution on a CPU does every multiplication of the definition. Winograd's minimal filtering (*Fast Algorithms
for Convolutional Neural Networks*, arXiv 1509.09308) gives the same sums up to rounding. It needs 4 (tiles of 2x2
outputs) or 2.25 (tiles of 4x4 outputs) multiplications per output instead of 9, and does them as matrix products over
channels, which run at a CPU's full rate.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mafx.models.kernels import DEFAULT_KERNELS, Kernels

# Limits measured on two Zen 4 cores. Larger tiles save more multiplications, but transforming the weights for them
# costs more, and that cost does not shrink with the picture.
MIN_CHANNELS = 128  # with fewer channels, the transforms take as long as the multiplications they save
MIN_PIXELS_TILE_2 = 512
MIN_PIXELS_TILE_4 = 2048

# For tiles of m x m outputs: B^T (transforms inputs), G (kernels) and A^T (products); arXiv 1509.09308, section 4.
MATRICES = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: (
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


def convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding, kernels: Kernels = DEFAULT_KERNELS, **options
) -> jax.Array:
    """`jax.lax.conv_general_dilated` by the fastest algorithm. It is meant for `flax.linen.Conv`.

    Args:
      x: Activations `b h w c`.
      kernel: Weights `3 3 c o`.
      strides: Along rows and columns.
      padding: Pixels before and after, along rows and columns.
      kernels: What the algorithm is chosen for.
      options: Further arguments of `jax.lax.conv_general_dilated`.
    """
    tile = 0
    if tuple(strides) == (1, 1) and tuple(padding) == ((1, 1), (1, 1)):
        tile = winograd_tile(x, kernel, kernels.traced_platform)
    if tile:
        return winograd(x, kernel, tile)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def convolve_enlarged(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding, kernels: Kernels = DEFAULT_KERNELS, **options
) -> jax.Array:
    """A 3x3 convolution with one pixel of padding, of `x` with all rows and columns repeated once.

    The arguments are those of `convolve`. On a GPU the enlarged picture is never made, see `convolve_phases`. On a CPU
    Winograd's filtering takes fewer multiplications.

    Returns: `b 2h 2w o`.
    """
    if kernels.traced_platform == "gpu":
        return convolve_phases(x, kernel)
    return convolve(x.repeat(2, axis=1).repeat(2, axis=2), kernel, strides, padding, kernels, **options)


def convolve_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """What `convolve_enlarged` computes, by 4/9 of its multiplications.

    Three neighbouring rows of the enlarged picture come from two rows of `x`, so that two taps get the same pixels and
    can be added up beforehand: (w0, w1 + w2) for even output rows, (w0 + w1, w2) for odd ones. The same holds for
    columns. One convolution with 2x2 taps computes all four phases of the output.

    Letters: `p q` phase of the output along rows and columns, `u v` taps.
    """
    _, h, w, _ = x.shape
    sums = np.zeros((2, 2, 3), np.float32)  # phase, tap, tap of the 3x3 kernel
    sums[0, 0, 0] = sums[0, 1, 1:] = sums[1, 0, :2] = sums[1, 1, 2] = 1
    phases = jnp.einsum("pui,qvj,ijco->uvcpqo", sums, sums, kernel.astype(jnp.float32)).astype(kernel.dtype)
    taps = rearrange(phases, "u v c p q o -> u v c (p q o)")
    padding = ((1, 1), (1, 1))
    y = jax.lax.conv_general_dilated(x, taps, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = rearrange(y, "b h w (p q o) -> b h w p q o", p=2, q=2)
    # An even row looks at the row above, an odd row at the one below: its outputs are one further on.
    aligned = [y[:, p : h + p, q : w + q, p, q] for p in range(2) for q in range(2)]
    return rearrange(aligned, "(p q) b h w o -> b (h p) (w q) o", p=2)


def winograd_tile(x: jax.Array, kernel: jax.Array, platform: str) -> int:
    """The side of the Winograd tile that is fastest: 4 or 2, or 0 where XLA's own convolution is faster."""
    if platform != "cpu" or x.dtype != jnp.float32 or min(kernel.shape[2:]) < MIN_CHANNELS:
        return 0
    pixels = math.prod(x.shape[:-1])
    if pixels >= MIN_PIXELS_TILE_4:
        return 4
    return 2 if pixels >= MIN_PIXELS_TILE_2 else 0


def winograd(x: jax.Array, kernel: jax.Array, m: int) -> jax.Array:
    """A 3x3 convolution with one pixel of padding on every side, by tiles of m x m outputs.

    Letters: `p q` rows and columns of tiles, `u v` transformed positions in a tile.

    Args:
      x: Activations `b h w c`, float32.
      kernel: Weights `3 3 c o`, float32.
      m: 2 or 4.

    Returns: `b h w o`.
    """
    to_input, to_kernel, to_output = (np.array(matrix, np.float32) for matrix in MATRICES[m])
    _, h, w, c = x.shape
    p, q, n = math.ceil(h / m), math.ceil(w / m), m + 2
    x = jnp.pad(x, ((0, 0), (1, m * p - h + 1), (1, m * q - w + 1), (0, 0)))
    rows = [x[:, i : i + m * (p - 1) + 1 : m] for i in range(n)]  # row i of every tile
    x = _weighted_sums(to_input, rows)
    columns = [x[:, :, :, i : i + m * (q - 1) + 1 : m] for i in range(n)]
    x = rearrange(_weighted_sums(to_input, columns), "v u b p q c -> (v u) (b p q) c")
    both = np.einsum("ui,vj->vuij", to_kernel, to_kernel)
    kernel = rearrange(jnp.asarray(both.reshape(n * n, 9)) @ kernel.reshape(9, -1), "k (c o) -> k c o", c=c)
    y = jax.lax.optimization_barrier(jnp.einsum("kpc,kco->kpo", x, kernel))
    y = rearrange(y, "(v u) (b p q) o -> v u b p q o", v=n, p=p, q=q)
    y = _weighted_sums(to_output, list(y))
    y = _weighted_sums(to_output, [y[:, u] for u in range(n)])
    return rearrange(y, "i j b p q o -> b (p i) (q j) o")[:, :h, :w]


def _weighted_sums(matrix: np.ndarray, parts: list[jax.Array]) -> jax.Array:
    """One sum of the parts per row of the matrix, weighted by that row; the sums are stacked.

    The barrier keeps XLA from computing the sums again at each use, which would take longer than everything else.
    """

    def weighted_sum(row: np.ndarray) -> jax.Array:
        terms = [part if weight == 1 else part * weight for weight, part in zip(row, parts, strict=True) if weight]
        return functools.reduce(jnp.add, terms)

    return jax.lax.optimization_barrier(jnp.stack([weighted_sum(row) for row in matrix]))
