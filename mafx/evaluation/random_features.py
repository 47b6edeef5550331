"""Features for Fréchet distances that need no download: a convolutional network that nobody has trained.

Random networks tell sets of pictures apart by their textures and colours, also where the pictures are unlike those that
published networks were trained on (*Reliable Fidelity and Diversity Metrics for Generative Models*, arXiv 2002.09797).
Distances are comparable only among themselves.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

WIDTHS = (3, 24, 48, 96)  # channels of the pictures and of each convolution
SEED = 0
SLOPE = 0.2  # of the leaky ReLU
NUMBERS = ("NHWC", "HWIO", "NHWC")  # the order of axes


def random_features(video: np.ndarray) -> np.ndarray:
    """Features of every frame.

    Args:
      video: uint8 `f H W 3`, at least 8x8 pixels.

    Returns:
      float32 `f 336`: mean and standard deviation over all positions of every channel of every convolution.
    """
    return np.asarray(_features(jnp.asarray(video, jnp.float32) / 127.5 - 1))


@functools.cache
def _kernels() -> list[np.ndarray]:
    """Kernels 3x3 whose filters are orthogonal, so that none sees what another one sees."""
    rng = np.random.default_rng(SEED)
    kernels = []
    for width, next_width in itertools.pairwise(WIDTHS):
        filters, _ = np.linalg.qr(rng.normal(size=(9 * width, next_width)))
        kernels.append((2**0.5 * filters).reshape(3, 3, width, next_width).astype(np.float32))
    return kernels


@jax.jit
def _features(x: jax.Array) -> jax.Array:
    found = []
    for kernel in _kernels():
        x = jax.lax.conv_general_dilated(x, jnp.asarray(kernel), (2, 2), "SAME", dimension_numbers=NUMBERS)
        x = jax.nn.leaky_relu(x, SLOPE)
        found += [x.mean((1, 2)), x.std((1, 2))]
    return jnp.concatenate(found, axis=-1)
