"""DensePose R-CNN: from resized pictures to people and their charts, in static shapes.

It has two halves, because people are few. `detect` finds the boxes of at most 100 people in each picture. `describe`
computes the charts of some of them, which takes a twelfth of the time of `detect` for each.

Source: *DensePose* (arXiv 1802.00434), as detectron2's `densepose_rcnn_*_FPN_*s1x` configurations have it.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mafx.densepose.heads import BoxHead, BoxPredictor, ChartPredictor, Charts, Decoder, DensePoseHead, ProposalHead
from mafx.densepose.proposals import Size, best, clip, decode, propose, suppress, take
from mafx.densepose.resnet import Pyramid, ResNet
from mafx.densepose.roi import roi_align

PIXEL_MEAN = (103.530, 116.280, 123.675)  # blue, green, red
STRIDE = 32  # both sides of what the network sees are multiples of this

BOX_BINS = 7
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
LEAST_SCORE = 0.05
PERSON_OVERLAP = 0.5  # a larger one suppresses
PEOPLE = 100  # at most, in a picture
CHART_BINS = 28
OLD_CHART_BINS = 14  # of weights without decoder


@dataclasses.dataclass(frozen=True)
class RCNNConfig:
    """Depth and widths. The defaults are those of `densepose_rcnn_R_50_FPN_s1x`.

    Attributes:
      blocks: Their number in each stage of the ResNet.
      stem: Channels of its first convolution.
      inner: Channels within the blocks of its first stage.
      outer: Channels of its first stage.
      pyramid: Channels of each level.
      dense: Width of the box head.
      decoder: Channels within the decoder, and of its result. None leaves it out, as old weights do: charts then
        come from the level of the pyramid that suits the box.
      head: Channels of the DensePose head.
      deeplab: Whether it is the DeepLab head.
      coarse: Channels of the coarse segmentation.
    """

    blocks: tuple[int, ...] = (3, 4, 6, 3)
    stem: int = 64
    inner: int = 64
    outer: int = 256
    pyramid: int = 256
    dense: int = 1024
    decoder: tuple[int, int] | None = (256, 256)
    head: int = 512
    deeplab: bool = False
    coarse: int = 2


class Detections(NamedTuple):
    """The people of pictures, best first; `n` is `PEOPLE`.

    Attributes:
      boxes: In the resized picture, float32 `b n 4`.
      scores: float32 `b n`, 0 where there is no more person.
    """

    boxes: jax.Array
    scores: jax.Array


def prepare(pictures: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """What the network sees of resized pictures.

    Args:
      pictures: RGB, uint8 `b h w 3`.
      dtype: Of the result.

    Returns:
      BGR without its mean, zeros right and below up to multiples of 32, `b h w 3`.
    """
    x = pictures[..., ::-1].astype(jnp.float32) - jnp.array(PIXEL_MEAN, jnp.float32).reshape(1, 1, 1, 3)
    below, right = (-side % STRIDE for side in pictures.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0))).astype(dtype)


class DensePoseRCNN(nn.Module):
    """The network. Its parts have the published names, see `rcnn_weights`."""

    config: RCNNConfig

    def setup(self):
        config = self.config
        self.resnet = ResNet(config.blocks, config.stem, config.inner, config.outer, name="backbone.bottom_up")
        self.pyramid = Pyramid(config.pyramid, name="backbone")
        self.proposal_head = ProposalHead(name="proposal_generator.rpn_head")
        self.box_head = BoxHead(config.dense, name="roi_heads.box_head")
        self.box_predictor = BoxPredictor(name="roi_heads.box_predictor")
        if config.decoder is not None:
            self.decoder = Decoder(*config.decoder, name="roi_heads.decoder")
        self.densepose_head = DensePoseHead(config.head, config.deeplab, name="roi_heads.densepose_head")
        self.chart_predictor = ChartPredictor(config.coarse, name="roi_heads.densepose_predictor")

    def __call__(self, x: jax.Array, size: Size, people: int) -> tuple[Detections, Charts]:
        """Find people and describe the best `people` of each picture.

        Args:
          x: Pictures as `prepare` returns them, `b h w 3`.
          size: Rows and columns of the pictures without padding.
          people: How many slots of charts each picture has.

        Returns:
          The detections, and charts `b people ...`, which mean nothing where the score is 0.
        """
        detections, maps = self.detect(x, size)
        return detections, self.describe(maps, detections.boxes[:, :people])

    def detect(self, x: jax.Array, size: Size) -> tuple[Detections, list[jax.Array]]:
        """Find people.

        Args:
          x: Pictures as `prepare` returns them, `b h w 3`.
          size: Rows and columns of the pictures without padding.

        Returns:
          The detections, and the maps `b h w c` that `describe` reads.
        """
        levels = self.pyramid(self.resnet(x))
        boxes, logits = propose([self.proposal_head(x) for x in levels], size)
        return self.refine(levels[:4], boxes, logits > -jnp.inf, size), self.decode(levels[:4])

    def refine(self, levels: Sequence[jax.Array], boxes: jax.Array, valid: jax.Array, size: Size) -> Detections:
        """Score proposals `b n 4`, of which `valid` count, correct their boxes, and keep the best of each person."""
        logits, deltas = (x.astype(jnp.float32) for x in self.classify(roi_align(levels, boxes, BOX_BINS)))
        scores = jax.nn.softmax(logits, axis=-1)[..., 0]
        boxes = clip(decode(deltas, boxes, DELTA_WEIGHTS), size)
        scores, order = best(jnp.where(valid & (scores > LEAST_SCORE), scores, -jnp.inf), scores.shape[-1])
        boxes = take(boxes, order)
        kept = suppress(boxes, scores > -jnp.inf, PERSON_OVERLAP)
        scores, order = best(jnp.where(kept, scores, -jnp.inf), PEOPLE)
        return Detections(take(boxes, order), jnp.maximum(scores, 0))

    def classify(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits `b n 2` and deltas `b n 4` of boxes with features `b n 7 7 c`."""
        return self.box_predictor(self.box_head(features))

    def decode(self, levels: Sequence[jax.Array]) -> list[jax.Array]:
        """The maps that charts are read from."""
        return list(levels) if self.config.decoder is None else [self.decoder(levels)]

    def describe(self, maps: Sequence[jax.Array], boxes: jax.Array) -> Charts:
        """Charts `b n 112 112 c` of boxes `b n 4` in the resized picture (56 rows and columns without decoder)."""
        b, n, _ = boxes.shape
        features = roi_align(maps, boxes, OLD_CHART_BINS if self.config.decoder is None else CHART_BINS)
        charts = self.chart_predictor(self.densepose_head(features.reshape(b * n, *features.shape[2:])))
        return Charts(*(x.reshape(b, n, *x.shape[1:]) for x in charts))
