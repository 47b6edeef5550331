"""ROIAlign: features of boxes, all of one size.

Source: *Mask R-CNN* (arXiv 1703.06870), in the first form of its code, which the published weights were trained with:
boxes are not shifted by half a pixel, and are at least one pixel wide and high.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mafx.densepose.resnet import STRIDES

SAMPLES = 2  # along rows and along columns, in each bin
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 2  # boxes of this side belong to p4, number 2


def assign_levels(boxes: jax.Array, levels: int) -> jax.Array:
    """The level that each box `... 4` is read from: its number, int32 `...`. Larger boxes have coarser levels."""
    sides = jnp.sqrt((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))
    level = jnp.floor(CANONICAL_LEVEL + jnp.log2(sides / CANONICAL_SIDE + 1e-8))
    return jnp.clip(level, 0, levels - 1).astype(jnp.int32)


def roi_align(maps: Sequence[jax.Array], boxes: jax.Array, side: int) -> jax.Array:
    """Mean features of the bins of boxes.

    A bin has 2x2 samples, and a sample is read bilinearly from 2x2 positions. All samples of a bin share their rows
    and columns, so that a bin is a weighted sum of 4x4 positions. The levels are laid end to end in one table, in which
    each box has a place and a row length.

    Letters: `n` boxes, `i j` bins.

    Args:
      maps: The first levels of the pyramid, `b h w c` each. One level alone has all boxes.
      boxes: float32 `b n 4`.
      side: Number of bins along rows and columns.

    Returns:
      `b n side side c`, in the dtype of the maps.
    """
    b, n, _ = boxes.shape
    c = maps[0].shape[-1]
    heights, widths = (np.array([x.shape[axis] for x in maps], np.int32) for axis in (1, 2))
    sizes = heights * widths
    table = jnp.concatenate([x.reshape(b, -1, c) for x in maps], 1).reshape(-1, c)
    level = assign_levels(boxes, len(maps))
    start = jnp.asarray(np.cumsum(sizes) - sizes)[level] + (sizes.sum() * jnp.arange(b, dtype=jnp.int32))[:, None]
    strides = jnp.asarray(np.array(STRIDES[: len(maps)], np.float32))[level]
    rows, row_weights = _taps(boxes[..., 1::2] / strides[..., None], jnp.asarray(heights)[level], side)
    columns, column_weights = _taps(boxes[..., 0::2] / strides[..., None], jnp.asarray(widths)[level], side)
    row_starts = start[..., None, None] + rows * jnp.asarray(widths)[level][..., None, None]
    total = jnp.zeros((b * n * side**2, c), jnp.float32)  # two axes, since TPUs pad others to their tiles
    for k, m in itertools.product(range(2 * SAMPLES), repeat=2):
        indices = row_starts[..., k, None] + columns[..., None, :, m]  # b n i j
        weights = row_weights[..., k, None] * column_weights[..., None, :, m]
        total += weights.reshape(-1, 1) * table[indices.reshape(-1)].astype(jnp.float32)
    return total.astype(maps[0].dtype).reshape(b, n, side, side, c)


def _taps(edges: jax.Array, limits: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """Positions along one axis that make the bins of boxes, and their weights.

    Args:
      edges: First and last edges of the boxes in positions, `b n 2`.
      limits: Number of positions along this axis, `b n`.
      side: Number of bins.

    Returns:
      int32 and float32 `b n side 4`: for each sample of a bin, the positions before and after it.
    """
    first = edges[..., :1]
    bins = jnp.maximum(edges[..., 1:] - first, 1) / side
    within = (np.arange(SAMPLES, dtype=np.float32) + 0.5) / SAMPLES
    places = (np.arange(side, dtype=np.float32)[:, None] + within).reshape(1, 1, -1)
    samples = first + places * bins  # b n (side samples)
    last = (limits[..., None] - 1).astype(jnp.float32)
    inside = ((samples >= -1) & (samples <= last + 1)).astype(jnp.float32)
    samples = jnp.clip(samples, 0, last)
    before = jnp.floor(samples)
    share = samples - before
    weights = jnp.stack([1 - share, share], -1) * inside[..., None] / SAMPLES
    positions = jnp.stack([before, jnp.minimum(before + 1, last)], -1).astype(jnp.int32)
    shape = (*edges.shape[:2], side, 2 * SAMPLES)
    return positions.reshape(shape), weights.reshape(shape)
