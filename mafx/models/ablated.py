"""What ablations put in the place of a part of MagicAnimate.

A global embedding stands in for the appearance encoder, stick figures stand in for dense renders.
"""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn

from mafx.densepose import PALETTE, PARTS
from mafx.models.attention import PartialBank
from mafx.models.unet import Bank, Encoder, UNetConfig

EMBEDDING_TOKENS = 16


class GlobalEmbedding(nn.Module):
    """The reference as tokens for cross-attention, made from one vector for the whole picture.

    Systems built on CLIP's image embedding work so. MagicAnimate argues that such a vector keeps the meaning of a
    picture and loses its details. Here the vector is the mean over all positions of a UNet encoder's output for the
    reference, and is trained with the rest.
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, reference: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        """Latents `b h w c`, times `b` and text states `b n c'` to tokens `b m c'`."""
        x = Encoder(self.config, name="encoder")(reference[:, None], t, text, {}).x
        x = nn.silu(nn.Dense(4 * x.shape[-1], name="proj_in")(x)).mean((1, 2, 3))
        tokens = nn.Dense(EMBEDDING_TOKENS * text.shape[-1], name="proj_out")(x)
        return rearrange(tokens, "b (m c) -> b m c", m=EMBEDDING_TOKENS)


def embedding_bank(tokens: jax.Array) -> Bank:
    """The tokens of a global embedding in the form of a bank, so that they take the same way through the code."""
    return {"text": {"tokens": tokens}}


def append_embedding(text: jax.Array, bank: Bank) -> jax.Array:
    """Text states `b n c` followed by the tokens of a global embedding; zeros where the bank is empty or dropped."""
    tokens = jnp.zeros((len(text), EMBEDDING_TOKENS, text.shape[-1]), text.dtype)
    if bank:
        tokens = bank["text"]["tokens"]
    if isinstance(tokens, PartialBank):
        tokens = jnp.where(tokens.keep[:, None, None], tokens.tokens, jnp.zeros((), text.dtype))
    return jnp.concatenate([text, tokens], axis=1)


TORSO, HEAD = (1, 2), (23, 24)
LIMBS = (  # labels from the torso outwards; the back and the front of a part are one joint
    ((16, 18), (20, 22), (3,)),
    ((15, 17), (19, 21), (4,)),
    ((7, 9), (11, 13), (6,)),
    ((8, 10), (12, 14), (5,)),
)
JOINTS = (TORSO, HEAD, *(part for limb in LIMBS for part in limb))
STICKS = ((TORSO, HEAD), *((a, b) for limb in LIMBS for a, b in zip((TORSO, *limb), limb, strict=False)))
MIN_STICK_RADIUS = 0.75  # pixels
STICKS_PER_SIDE = 128  # above this many rows or columns, a stick's radius is that part of the side


def draw_sticks(motion: jax.Array) -> jax.Array:
    """DensePose renders to stick figures on black: lines between the centres of neighbouring body parts.

    As pose estimators draw keypoints, each stick has its own colour, and none is drawn to a part that is not seen. The
    outline is lost, and which side of a part faces the viewer.

    Args:
      motion: `b f H W 3` in [0, 1].

    Returns: The same shape and dtype, in [0, 1].
    """
    H, W = motion.shape[2:4]
    x = motion.astype(jnp.float32)
    rows, columns = jnp.arange(H, dtype=jnp.float32), jnp.arange(W, dtype=jnp.float32)
    grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    centre, seen = _joint_centres(x, grid)
    radius = max(MIN_STICK_RADIUS, min(H, W) / STICKS_PER_SIDE)
    picture = jnp.zeros_like(x)
    for i, stick in enumerate(STICKS):
        a, b = map(JOINTS.index, stick)
        start, along = (repeat(p, "b f x -> b f 1 1 x") for p in (centre[:, :, a], centre[:, :, b] - centre[:, :, a]))
        away = grid[None, None] - start
        share = jnp.clip((away * along).sum(-1) / jnp.maximum((along * along).sum(-1), 1e-6), 0, 1)
        near = jnp.linalg.norm(away - share[..., None] * along, axis=-1) <= radius
        drawn = near & rearrange(seen[:, :, a] & seen[:, :, b], "b f -> b f 1 1")
        colour = jnp.asarray(colorsys.hsv_to_rgb(i / len(STICKS), 1, 1), jnp.float32)
        picture = jnp.where(drawn[..., None], colour[None, None, None, None], picture)
    return picture.astype(motion.dtype)


def _joint_centres(x: jax.Array, grid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Centre `b f j 2` of each joint's pixels, and whether it has any, bool `b f j`; `grid` is `H W 2`."""
    colours = jnp.asarray(PALETTE / 255, jnp.float32)[:, None, None, None, None]
    distance = jnp.stack([jnp.abs(x - colour).max(-1) for colour in colours])
    joint_of_label = np.zeros((PARTS, len(JOINTS)), np.float32)
    for j, labels in enumerate(JOINTS):
        joint_of_label[list(labels), j] = 1
    mask = jnp.asarray(joint_of_label)[distance.argmin(0)]  # b f H W j
    count = mask.sum((2, 3))
    centre = jnp.einsum("bfhwj,hwx->bfjx", mask, grid) / jnp.maximum(count, 1)[..., None]
    return centre, count > 0
