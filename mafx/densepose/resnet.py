"""The backbone of DensePose R-CNN: a ResNet, and the pyramid of features over it.

Sources: *Deep Residual Learning for Image Recognition* (arXiv 1512.03385), *Feature Pyramid Networks for Object
Detection* (arXiv 1612.03144), and the layout of detectron2's files. The batch norms are frozen, and belong to the
convolutions here: see `rcnn_weights`.
"""

from collections.abc import Sequence

import jax
from flax import linen as nn

from mafx.densepose.layers import conv, double_nearest, max_pool

STAGES = (2, 3, 4, 5)  # of the ResNet; stage k has a stride of 2^k pixels
STRIDES = (4, 8, 16, 32, 64)  # of the pyramid's levels p2 to p6, in pixels


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a residual. The first 1x1 has the stride, as in the published weights."""

    inner: int
    outer: int
    stride: int
    shortcut: bool  # whether the residual is convolved too

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(conv(self.inner, 1, "conv1", stride=self.stride)(x))
        y = nn.relu(conv(self.inner, 3, "conv2")(y))
        y = conv(self.outer, 1, "conv3")(y)
        if self.shortcut:
            x = conv(self.outer, 1, "shortcut", stride=self.stride)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Features of the four stages, at strides of 4, 8, 16 and 32 pixels.

    Attributes:
      blocks: Their number in each stage.
      stem: Channels of the first convolution.
      inner: Channels within the blocks of the first stage; each stage doubles them.
      outer: Channels of the first stage's result; each stage doubles them.
    """

    blocks: Sequence[int]
    stem: int
    inner: int
    outer: int

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        x = max_pool(nn.relu(conv(self.stem, 7, "stem.conv1", stride=2)(x)))
        stages = []
        for k, (stage, count) in enumerate(zip(STAGES, self.blocks, strict=True)):
            for i in range(count):
                stride = 2 if i == 0 and k > 0 else 1
                name = f"res{stage}.{i}"
                x = Bottleneck(self.inner * 2**k, self.outer * 2**k, stride, shortcut=i == 0, name=name)(x)
            stages.append(x)
        return stages


class Pyramid(nn.Module):
    """Features p2 to p6 of one width, from the stages of a ResNet `b h w c`. Each level has the coarser ones added."""

    channels: int

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array]) -> list[jax.Array]:
        levels: list[jax.Array] = []
        coarser = None
        for stage, x in zip(reversed(STAGES), reversed(stages), strict=True):
            lateral = conv(self.channels, 1, f"fpn_lateral{stage}")(x)
            coarser = lateral if coarser is None else lateral + double_nearest(coarser)
            levels.insert(0, conv(self.channels, 3, f"fpn_output{stage}")(coarser))
        return [*levels, levels[-1][:, ::2, ::2]]
