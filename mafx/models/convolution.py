"""3x3 convolutions: one function that chooses the algorithm.

XLA's convolution on a CPU does every multiplication of the definition. Winograd's minimal filtering (*Fast Algorithms for Convolutional Neural
Networks*, arXiv 1509.09308) gives the same sums, but for rounding, from 4 (tiles of 2x2 outputs) or 2.25 (tiles of 4x4) multiplications instead of
9, as matrix products over channels, which a CPU does at its full rate.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

ALGORITHMS = ("direct", "winograd2", "winograd4")
LEAST_CHANNELS = 128  # below, transforming takes as long as multiplying

# Of tiles of m outputs: B^T (of inputs), G (of the kernel) and A^T (of the products), arXiv 1509.09308, sections 4.1 and 4.2.
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


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding, **options) -> jax.Array:
    """`jax.lax.conv_general_dilated` of `b h w c` with a kernel `3 3 c o`, by the algorithm that is fastest here. For `flax.linen.Conv`."""
    algorithm = (
        choose(jax.default_backend(), x, kernel)
        if tuple(strides) == (1, 1) and tuple(padding) == ((1, 1), (1, 1))
        else "direct"
    )
    if algorithm == "direct":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    return winograd(x, kernel, int(algorithm[-1]))


def choose(platform: str, x: jax.Array, kernel: jax.Array) -> str:
    """One of ALGORITHMS. Larger tiles save more multiplications and cost more for the kernel, whose transform does not depend on how many pixels
    there are: measured on two Zen 4 cores."""
    if platform != "cpu" or x.dtype != jnp.float32 or min(kernel.shape[2:]) < LEAST_CHANNELS:
        return "direct"
    pixels = math.prod(x.shape[:-1])
    return "direct" if pixels < 512 else "winograd2" if pixels < 2048 else "winograd4"


def winograd(x: jax.Array, kernel: jax.Array, m: int) -> jax.Array:
    """`b h w c` with `3 3 c o`, one pixel of padding on every side -> `b h w o`. Letters: tiles `p q` of `m m` outputs, `u v` transformed places."""
    to_input, to_kernel, to_output = (np.array(matrix, np.float32) for matrix in MATRICES[m])
    _, h, w, c = x.shape
    p, q, n = -(-h // m), -(-w // m), m + 2
    x = jnp.pad(x, ((0, 0), (1, m * p - h + 1), (1, m * q - w + 1), (0, 0)))
    rows = [x[:, i : i + m * (p - 1) + 1 : m] for i in range(n)]  # every tile's i-th row
    x = _stage(to_input, rows)
    columns = [x[:, :, :, i : i + m * (q - 1) + 1 : m] for i in range(n)]
    x = rearrange(_stage(to_input, columns), "v u b p q c -> (v u) (b p q) c")
    both = np.einsum("ui,vj->vuij", to_kernel, to_kernel)
    kernel = rearrange(jnp.asarray(both.reshape(n * n, 9)) @ kernel.reshape(9, -1), "k (c o) -> k c o", c=c)
    y = jax.lax.optimization_barrier(jnp.einsum("kpc,kco->kpo", x, kernel))
    y = rearrange(y, "(v u) (b p q) o -> v u b p q o", v=n, p=p, q=q)
    y = _stage(to_output, list(y))
    y = _stage(to_output, [y[:, u] for u in range(n)])
    return rearrange(y, "i j b p q o -> b (p i) (q j) o")[:, :h, :w]


def _stage(matrix: np.ndarray, parts: list[jax.Array]) -> jax.Array:
    """Sums of equal arrays, weighted by the rows of a small matrix, stacked.

    The barrier keeps the compiler from computing them anew wherever they are used, which takes longer than all else.
    """

    def combine(row: np.ndarray) -> jax.Array:
        return functools.reduce(
            jnp.add, [part if weight == 1 else part * weight for weight, part in zip(row, parts, strict=True) if weight]
        )

    return jax.lax.optimization_barrier(jnp.stack([combine(row) for row in matrix]))
