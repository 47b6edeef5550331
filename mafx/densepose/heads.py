"""What DensePose R-CNN has over its backbone: the heads for proposals, boxes and charts.

Sources: *DensePose* (arXiv 1802.00434), *Panoptic Feature Pyramid Networks* (arXiv 1901.02446) for the decoder,
*Rethinking Atrous Convolution* (arXiv 1706.05587) for the DeepLab head, and the layout of detectron2's files.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mafx.densepose import PARTS
from mafx.densepose.layers import TransposedConv, conv, double_bilinear
from mafx.densepose.proposals import ANCHORS
from mafx.models.layers import GroupNorm

CONVOLUTIONS = 8  # of the DensePose head
DILATIONS = (6, 12, 56)  # of the DeepLab head's 3x3 convolutions


class ProposalHead(nn.Module):
    """For every anchor of a level `b h w c`: a logit `b h w 3`, and where the box lies from it, `b h w 12`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.relu(conv(x.shape[-1], 3, "conv")(x))
        return conv(ANCHORS, 1, "objectness_logits")(x), conv(4 * ANCHORS, 1, "anchor_deltas")(x)


class BoxHead(nn.Module):
    """Two dense layers over the features of boxes `b n 7 7 c`: `b n width`."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.DenseGeneral(self.width, axis=(-3, -2, -1), name="fc1")(x))
        return nn.relu(nn.Dense(self.width, name="fc2")(x))


class BoxPredictor(nn.Module):
    """From the features of boxes `b n c`: logits of person and background `b n 2`, and deltas `b n 4`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return nn.Dense(2, name="cls_score")(x), nn.Dense(4, name="bbox_pred")(x)


class Decoder(nn.Module):
    """Joins the levels p2 to p5 of the pyramid into one map at the stride of p2.

    Each level is convolved at least once. The coarser ones are convolved and doubled until they have the size of p2.
    """

    inner: int
    outer: int

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
        total = nn.relu(conv(self.inner, 3, "p2.0")(levels[0]))
        for k, level in enumerate(levels[1:], 1):
            x = level
            for i in range(k):  # the resizes have odd numbers
                x = double_bilinear(nn.relu(conv(self.inner, 3, f"p{k + 2}.{2 * i}")(x)))
            total = total + x
        return conv(self.outer, 1, "predictor")(total)


class DensePoseHead(nn.Module):
    """Eight 3x3 convolutions over the features of people `b h w c`; norms between them in the DeepLab head."""

    width: int
    deeplab: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.deeplab:
            x = AtrousPyramid(name="ASPP")(x)
        for i in range(1, CONVOLUTIONS + 1):
            x = conv(self.width, 3, f"body_conv_fcn{i}", bias=not self.deeplab)(x)
            if self.deeplab:
                x = GroupNorm(name=f"body_conv_fcn{i}.norm")(x)
            x = nn.relu(x)
        return x


class AtrousPyramid(nn.Module):
    """Convolutions of several dilations and the mean of the whole map, side by side, joined by a 1x1 convolution."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        branches = [self._branch(conv(c, 1, "convs.0.0", bias=False)(x), "convs.0.1")]
        for i, dilation in enumerate(DILATIONS, 1):
            y = conv(c, 3, f"convs.{i}.0", dilation=dilation, bias=False)(x)
            branches.append(self._branch(y, f"convs.{i}.1"))
        mean = conv(c, 1, "convs.4.1", bias=False)(x.mean((1, 2), keepdims=True))
        branches.append(jnp.broadcast_to(self._branch(mean, "convs.4.2"), x.shape))
        return nn.relu(conv(c, 1, "project.0", bias=False)(jnp.concatenate(branches, -1)))

    def _branch(self, x: jax.Array, norm: str) -> jax.Array:
        return nn.relu(GroupNorm(name=norm)(x))


class Charts(NamedTuple):
    """What is known of a person at each position of the box.

    Attributes:
      coarse: Logits of background and person, `... h w 2` (15 kinds of parts in old weights; 0 is background too).
      fine: Logits of the parts, `... h w 25`.
      u: A coordinate on the surface, for each part, `... h w 25`.
      v: The other coordinate.
    """

    coarse: jax.Array
    fine: jax.Array
    u: jax.Array
    v: jax.Array


class ChartPredictor(nn.Module):
    """Charts of four times the rows and columns of the features `b h w c`, float32."""

    coarse: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Charts:
        names = {"ann_index_lowres": self.coarse, "index_uv_lowres": PARTS, "u_lowres": PARTS, "v_lowres": PARTS}
        low = (TransposedConv(channels, name=name)(x) for name, channels in names.items())
        return Charts(*(double_bilinear(y.astype(jnp.float32)) for y in low))
