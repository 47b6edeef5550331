"""Boxes: anchors, what networks say relative to a box, suppression of overlapping ones, and the proposals of the RPN.

Boxes are float32 `... 4`, x0 y0 x1 y1 in pixels of the resized picture. Their number is fixed; a mask says which count.
Sources: *Faster R-CNN* (arXiv 1506.01497), and the constants of detectron2's DensePose configurations.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mafx.densepose.resnet import STRIDES

Size = tuple[int, int]  # rows and columns of the resized picture, without padding

ANCHOR_SIDES = (32, 64, 128, 256, 512)  # of a square anchor, for each level
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # heights divided by widths
ANCHORS = len(ANCHOR_RATIOS)  # at each position
LARGEST_GROWTH = math.log(1000 / 16)  # of a side, as a logarithm

PROPOSALS = 1000  # of each level before suppression, and of all levels after it
PROPOSAL_OVERLAP = 0.7  # a larger one suppresses


def cell_anchors(level: int) -> np.ndarray:
    """The anchors at the origin, for level number `level` of the pyramid, float32 `3 4`."""
    widths = [math.sqrt(ANCHOR_SIDES[level] ** 2 / ratio) for ratio in ANCHOR_RATIOS]
    heights = [ratio * width for ratio, width in zip(ANCHOR_RATIOS, widths, strict=True)]
    return np.array([(-w / 2, -h / 2, w / 2, h / 2) for w, h in zip(widths, heights, strict=True)], np.float32)


def anchors_at(level: int, indices: jax.Array, columns: int) -> jax.Array:
    """Anchors by their numbers, which count rows, columns and the anchors of a position.

    Args:
      level: Number of the level, 0 is p2.
      indices: int32 `...`.
      columns: Of the level's map.

    Returns:
      float32 `... 4`.
    """
    position, kind = indices // ANCHORS, indices % ANCHORS
    x, y = position % columns, position // columns
    centres = STRIDES[level] * jnp.stack([x, y, x, y], -1).astype(jnp.float32)
    return centres + jnp.asarray(cell_anchors(level))[kind]


def decode(deltas: jax.Array, boxes: jax.Array, weights: tuple[float, float, float, float]) -> jax.Array:
    """Move and stretch boxes.

    Args:
      deltas: float32 `... 4`: shifts of the centre in widths and heights, and logarithms of the growth of both.
      boxes: What they are relative to, float32 `... 4`.
      weights: What the deltas are multiples of, inverse.
    """
    x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)
    dx, dy, dw, dh = (d / weight for d, weight in zip(jnp.moveaxis(deltas, -1, 0), weights, strict=True))
    w, h = x1 - x0, y1 - y0
    x, y = x0 + 0.5 * w + dx * w, y0 + 0.5 * h + dy * h
    w, h = jnp.exp(jnp.minimum(dw, LARGEST_GROWTH)) * w, jnp.exp(jnp.minimum(dh, LARGEST_GROWTH)) * h
    return jnp.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], -1)


def clip(boxes: jax.Array, size: Size) -> jax.Array:
    """Cut off what lies outside of a picture."""
    height, width = size
    limits = jnp.array([width, height, width, height], jnp.float32)
    return jnp.clip(boxes, 0, limits.reshape((1,) * (boxes.ndim - 1) + (4,)))


def overlaps(boxes: jax.Array) -> jax.Array:
    """Intersection over union of all pairs: `... n 4` to `... n n`."""
    low, high = boxes[..., :2], boxes[..., 2:]
    corner = jnp.maximum(low[..., :, None, :], low[..., None, :, :])
    sides = jnp.maximum(jnp.minimum(high[..., :, None, :], high[..., None, :, :]) - corner, 0)
    both = sides[..., 0] * sides[..., 1]
    areas = (high - low).prod(-1)
    return both / (areas[..., :, None] + areas[..., None, :] - both)


def suppress(boxes: jax.Array, valid: jax.Array, threshold: float) -> jax.Array:
    """Non-maximum suppression: keep a box unless a better one that is kept overlaps it.

    All boxes are decided at once, and again, until nothing changes. Box i depends on those before it alone, so that the
    first k boxes are right after k rounds, and the result is that of going through them in turn. It takes as many
    rounds as the longest chain of boxes that suppress one another, which is a handful.

    Args:
      boxes: `... n 4`, the best first.
      valid: Which of them count, bool `... n`.
      threshold: The largest overlap that is allowed.

    Returns:
      Which boxes are kept, bool `... n`.
    """
    earlier = np.tri(boxes.shape[-2], k=-1, dtype=bool).reshape((1,) * (boxes.ndim - 2) + (boxes.shape[-2],) * 2)
    # A product of zeros and ones is exact in any dtype, and quicker than a search.
    suppresses = ((overlaps(boxes) > threshold) & earlier).astype(jnp.float32)

    def decide(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, _ = state
        hit = jnp.einsum("...ij,...j->...i", suppresses, kept.astype(jnp.float32)) > 0
        return valid & ~hit, kept

    def changed(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (state[0] != state[1]).any()

    return jax.lax.while_loop(changed, decide, decide((valid, valid)))[0]


def take(values: jax.Array, indices: jax.Array) -> jax.Array:
    """Rows of `... n c` by their numbers `... k`: `... k c`."""
    return jnp.take_along_axis(values, indices[..., None], axis=-2)


def best(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of scores `... n`, sorted, and their numbers. Where there are fewer, -inf of number 0."""
    found, indices = jax.lax.top_k(scores, min(count, scores.shape[-1]))
    padding = [(0, 0)] * (scores.ndim - 1) + [(0, count - found.shape[-1])]
    return jnp.pad(found, padding, constant_values=-jnp.inf), jnp.pad(indices, padding)


def propose(levels: Sequence[tuple[jax.Array, jax.Array]], size: Size) -> tuple[jax.Array, jax.Array]:
    """The boxes that look most like something.

    Args:
      levels: For each level logits `b h w 3`, and deltas `b h w 12`: four numbers for each anchor.
      size: Of the resized picture.

    Returns:
      Boxes `b 1000 4`, the best first, and their logits float32 `b 1000`, which are -inf where there is no more box.
    """
    per_level = [_best_of_level(i, *maps, size) for i, maps in enumerate(levels)]
    boxes, scores = (jnp.stack(parts, 1) for parts in zip(*per_level, strict=True))  # b level n 4, b level n
    kept = suppress(boxes, scores > -jnp.inf, PROPOSAL_OVERLAP)
    scores, indices = best(jnp.where(kept, scores, -jnp.inf).reshape(len(scores), -1), PROPOSALS)
    return take(boxes.reshape(len(boxes), -1, 4), indices), scores


def _best_of_level(level: int, logits: jax.Array, deltas: jax.Array, size: Size) -> tuple[jax.Array, jax.Array]:
    """The best boxes of a level before suppression, `b n 4`, and their logits `b n`; -inf for empty boxes."""
    b, _, columns, _ = logits.shape
    scores, indices = best(logits.reshape(b, -1).astype(jnp.float32), PROPOSALS)
    moved = decode(
        take(deltas.reshape(b, -1, 4), indices).astype(jnp.float32),
        anchors_at(level, indices, columns),
        (1.0, 1.0, 1.0, 1.0),
    )
    boxes = clip(moved, size)
    filled = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return boxes, jnp.where(filled, scores, -jnp.inf)
