"""What ablations put in the place of a part of MagicAnimate: a global embedding for the appearance encoder, stick figures for dense renders."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn

from mafx.densepose import PALETTE, PARTS
from mafx.models.unet import Encoder, UNetConfig

TOKENS = 16  # of the global embedding


class GlobalEmbedding(nn.Module):
    """The reference as tokens for cross-attention, from one vector for the whole picture, as systems with CLIP's embedding have it: MagicAnimate
    argues that such a vector keeps what is meant and loses what is seen.

    Here it is the mean over all places of what a UNet's encoder makes of the reference, trained with the rest.
    """

    config: UNetConfig

    @nn.compact
    def __call__(self, reference: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        """Latents `b h w c`, times `b`, text states `b n c'` -> `b m c'`, of the same width."""
        x = Encoder(self.config, name="encoder")(reference[:, None], t, text, {}).x
        x = nn.silu(nn.Dense(4 * x.shape[-1], name="proj_in")(x)).mean((1, 2, 3))
        return rearrange(nn.Dense(TOKENS * text.shape[-1], name="proj_out")(x), "b (m c) -> b m c", m=TOKENS)


TORSO, HEAD = (1, 2), (23, 24)
LIMBS = (  # from the torso on; backs and fronts of a part are one
    ((16, 18), (20, 22), (3,)),
    ((15, 17), (19, 21), (4,)),
    ((7, 9), (11, 13), (6,)),
    ((8, 10), (12, 14), (5,)),
)
JOINTS = (TORSO, HEAD, *(part for limb in LIMBS for part in limb))
STICKS = ((TORSO, HEAD), *((a, b) for limb in LIMBS for a, b in zip((TORSO, *limb), limb, strict=False)))


def draw_sticks(motion: jax.Array) -> jax.Array:
    """DensePose renders `b f H W 3` in [0, 1] -> stick figures on black, likewise: lines between the centres of neighbouring body parts.

    As pose estimators of keypoints draw them, each stick has its own colour, and none is drawn to a part that is not seen. Outlines are lost, and
    which side of a part is seen.
    """
    H, W = motion.shape[2:4]
    x = motion.astype(jnp.float32)
    distance = jnp.stack(
        [jnp.abs(x - colour).max(-1) for colour in jnp.asarray(PALETTE / 255, jnp.float32)[:, None, None, None, None]]
    )
    joint_of = np.zeros((PARTS, len(JOINTS)), np.float32)
    for j, parts in enumerate(JOINTS):
        joint_of[list(parts), j] = 1
    seen = jnp.asarray(joint_of)[distance.argmin(0)]  # b f H W j
    grid = jnp.stack(
        jnp.meshgrid(jnp.arange(H, dtype=jnp.float32), jnp.arange(W, dtype=jnp.float32), indexing="ij"), -1
    )
    count = seen.sum((2, 3))
    centre = jnp.einsum("bfhwj,hwx->bfjx", seen, grid) / jnp.maximum(count, 1)[..., None]
    picture = jnp.zeros_like(x)
    for i, stick in enumerate(STICKS):
        a, b = map(JOINTS.index, stick)
        start, along = (repeat(p, "b f x -> b f 1 1 x") for p in (centre[:, :, a], centre[:, :, b] - centre[:, :, a]))
        away = grid[None, None] - start
        share = jnp.clip((away * along).sum(-1) / jnp.maximum((along * along).sum(-1), 1e-6), 0, 1)
        near = jnp.linalg.norm(away - share[..., None] * along, axis=-1) <= max(0.75, min(H, W) / 128)
        drawn = near & rearrange((count[:, :, a] > 0) & (count[:, :, b] > 0), "b f -> b f 1 1")
        colour = jnp.asarray(colorsys.hsv_to_rgb(i / len(STICKS), 1, 1), jnp.float32)
        picture = jnp.where(drawn[..., None], colour[None, None, None, None], picture)
    return picture.astype(motion.dtype)
