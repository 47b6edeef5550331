"""The UNet of Stable Diffusion 1.5 in two halves: for images and, with temporal transformers, for videos.

The halves are separate because guidance shares the first one: in a guided step the encoder (down path) runs once, the
decoder (middle and up path) once with and once without the bank.

A bank is a value: the normalised tokens that entered the self-attention of each spatial transformer, nested by block
and transformer, `{"up_blocks_1": {"attentions_0": b m c}}`. Every UNet returns what its transformers would write into a
bank (`b f n c`, before frames are dropped), and mixes in the bank that it is given. An empty dict is no bank.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mafx.models.attention import SpatialTransformer
from mafx.models.kernels import DEFAULT_KERNELS, Kernels
from mafx.models.layers import Downsample, GroupNorm, ResidualBlock, TimeEmbedding, Upsample, conv3x3
from mafx.models.temporal import TemporalConfig, TemporalTransformer

Bank = dict[str, dict[str, jax.Array]]  # leaves may be PartialBank in training
BlockBank = dict[str, jax.Array]  # of one block


def _is_product(primitive, *operands, **params) -> bool:
    """Whether an operation is a convolution or a dense layer, and not attention's products, which have batch axes."""
    dense = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive is jax.lax.conv_general_dilated_p or dense(primitive, *operands, **params)


# What the backward pass keeps of the inside of a block, beside the input of the block. It computes all else again.
REMAT = {
    "none": None,  # everything is kept
    "products": _is_product,  # outputs of convolutions and dense layers
    "blocks": jax.checkpoint_policies.nothing_saveable,  # nothing
}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet; the defaults are Stable Diffusion 1.5's.

    Attributes:
      widths: Channels of each level.
      attends: Which levels have spatial transformers.
      layers: Residual blocks per level of the encoder; the decoder has one more.
      heads: Number of attention heads at every width. Published configs call this number `attention_head_dim`.
      groups: Of the group norms.
      eps: Of the group norms.
      channels: Of the latents.
      text_width: Channels of the text states.
      temporal: Sizes of the temporal transformers after every layer (none in the middle), or None for images.
      norm_per_frame: Whether the residual blocks' norms take statistics over each frame alone, or over all frames.
      positions: Whether self-attention begins with a bias to the same position, see `attention.grid_sinusoid`.
        Stable Diffusion needs none: it has learnt positions.
      bank_only: Whether the network stops after the last tokens that it writes: an appearance encoder.
      kernels: What kernels are chosen for.
      remat: A key of REMAT, for training.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)
    layers: int = 2
    heads: int = 8
    groups: int = 32
    eps: float = 1e-5
    channels: int = 4
    text_width: int = 768
    temporal: TemporalConfig | None = None
    norm_per_frame: bool = False
    positions: bool = False
    bank_only: bool = False
    kernels: Kernels = DEFAULT_KERNELS
    remat: str = "none"

    @property
    def batch_axes(self) -> int:
        """Leading axes that the residual blocks' norms keep apart."""
        return 2 if self.norm_per_frame else 1

    @property
    def skip_widths(self) -> tuple[int, ...]:
        """Channels of the skip connections: of the first convolution, then of every layer and downsampling."""
        last = len(self.widths) - 1
        of_levels = (width for level, width in enumerate(self.widths) for _ in range(self.layers + (level < last)))
        return (self.widths[0], *of_levels)


class Encoded(NamedTuple):
    """What the encoder hands on: its output, a skip per layer and resampling, the time embedding, what it wrote."""

    x: jax.Array
    skips: tuple[jax.Array, ...]
    temb: jax.Array
    written: Bank


class Residuals(NamedTuple):
    """y_p, what a ControlNet adds: an array per skip, and one for the middle block (None if that is not computed)."""

    skips: tuple[jax.Array, ...]
    middle: jax.Array | None


class Decoded(NamedTuple):
    """What the decoder gives: the network's answer, what it wrote, and the input of its last level.

    An appearance encoder has no answer.
    """

    output: jax.Array
    written: Bank
    deep: jax.Array


class _Level(nn.Module):
    """What all levels share: residual blocks, each followed by its transformers. `written` collects bank tokens."""

    config: UNetConfig
    width: int
    attends: bool = True
    last: bool = False

    @nn.nowrap
    def _block(self, kind: type[nn.Module], *args, name: str) -> nn.Module:
        policy = REMAT[self.config.remat]
        if policy is not None:
            kind = nn.remat(kind, policy=policy)
        return kind(*args, name=name)

    @nn.nowrap
    def residual(self, i: int, x: jax.Array, temb: jax.Array) -> jax.Array:
        c, name = self.config, f"resnets_{i}"
        block = self._block(ResidualBlock, self.width, c.groups, c.eps, c.batch_axes, c.kernels, name=name)
        return block(x, temb)

    @nn.nowrap
    def spatial(
        self, i: int, x: jax.Array, text: jax.Array, bank: BlockBank, written: BlockBank, bank_only: bool = False
    ) -> jax.Array:
        c, name = self.config, f"attentions_{i}"
        block = self._block(SpatialTransformer, c.heads, c.groups, c.kernels, bank_only, c.positions, name=name)
        x, written[name] = block(x, text, bank.get(name))
        return x

    @nn.nowrap
    def temporal(self, i: int, x: jax.Array) -> jax.Array:
        if self.config.temporal is None:
            return x
        c, name = self.config, f"motion_modules_{i}"
        return self._block(TemporalTransformer, c.temporal, c.kernels, name=name)(x)


class DownBlock(_Level):
    """One level of the encoder. It returns its output, the skips it leaves, and what it wrote."""

    @nn.compact
    def __call__(
        self, x: jax.Array, temb: jax.Array, text: jax.Array, bank: BlockBank
    ) -> tuple[jax.Array, list[jax.Array], BlockBank]:
        skips: list[jax.Array] = []
        written: BlockBank = {}
        for i in range(self.config.layers):
            x = self.residual(i, x, temb)
            if self.attends:
                x = self.spatial(i, x, text, bank, written)
            x = self.temporal(i, x)
            skips.append(x)
        if not self.last:
            x = Downsample(name="downsamplers_0")(x)
            skips.append(x)
        return x, skips, written


class MiddleBlock(_Level):
    """A residual block, a spatial transformer and a residual block at the lowest resolution."""

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array, text: jax.Array, bank: BlockBank) -> tuple[jax.Array, BlockBank]:
        written: BlockBank = {}
        x = self.residual(0, x, temb)
        x = self.spatial(0, x, text, bank, written)
        return self.residual(1, x, temb), written


class UpBlock(_Level):
    """One level of the decoder. It takes its skips off the end of the list, and resizes to the size of the next one."""

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: list[jax.Array], temb: jax.Array, text: jax.Array, bank: BlockBank
    ) -> tuple[jax.Array, BlockBank]:
        written: BlockBank = {}
        for i in range(self.config.layers + 1):
            x = self.residual(i, jnp.concatenate([x, skips.pop()], axis=-1), temb)
            ends_here = self.config.bank_only and self.last and i == self.config.layers
            if self.attends:
                x = self.spatial(i, x, text, bank, written, bank_only=ends_here)
            if not ends_here:
                x = self.temporal(i, x)
        if not self.last:
            h, w = skips[-1].shape[-3:-1]
            x = Upsample(self.config.kernels, name="upsamplers_0")(x, (h, w))
        return x, written


class Encoder(nn.Module):
    """The down path of a UNet, and of a ControlNet."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        text: jax.Array,
        bank: Bank,
        motion: jax.Array | None = None,
        shallow: bool = False,
    ) -> Encoded:
        """Encode latents `b f h w c`.

        Args:
          x: Latents.
          t: Diffusion times `b`.
          text: Text states `b n c`.
          bank: The bank to mix in.
          motion: The embedded motion that a ControlNet adds after the first convolution, `b f h w c`.
          shallow: Compute the first level only.
        """
        c = self.config
        temb = TimeEmbedding(c.widths[0], 4 * c.widths[0], name="time_embedding")(t)
        x = conv3x3(c.widths[0], "conv_in", kernels=c.kernels)(x)
        if motion is not None:
            x = x + motion
        skips, written = [x], {}
        levels = 1 if shallow else len(c.widths)
        for level, (width, attends) in enumerate(zip(c.widths[:levels], c.attends[:levels], strict=True)):
            name = f"down_blocks_{level}"
            block = DownBlock(c, width, attends, last=level == levels - 1, name=name)
            x, block_skips, written[name] = block(x, temb, text, bank.get(name, {}))
            skips += block_skips
        return Encoded(x, tuple(skips), temb, written)


class Decoder(nn.Module):
    """The middle and up path. A ControlNet's residuals enter at the skips and behind the middle block."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        encoded: Encoded,
        text: jax.Array,
        bank: Bank,
        residuals: Residuals | None = None,
        deep: jax.Array | None = None,
    ) -> Decoded:
        """Decode. With `deep`, the input of the last level at another time, only that level is computed."""
        c = self.config
        written: Bank = {}
        x, skips, temb, _ = encoded
        if deep is None:
            middle = MiddleBlock(c, c.widths[-1], name="mid_block")
            x, written["mid_block"] = middle(x, temb, text, bank.get("mid_block", {}))
        if residuals is not None:
            if residuals.middle is not None:
                x = x + residuals.middle
            skips = jax.tree.map(jnp.add, skips, residuals.skips)
        remaining_skips = list(skips)
        last = len(c.widths) - 1
        for level, (width, attends) in enumerate(zip(c.widths[::-1], c.attends[::-1], strict=True)):
            if deep is not None and level < last:
                continue
            if level == last:
                x = x if deep is None else deep
                last_input = x
            name = f"up_blocks_{level}"
            block = UpBlock(c, width, attends, last=level == last, name=name)
            x, written[name] = block(x, remaining_skips, temb, text, bank.get(name, {}))
        if c.bank_only:
            return Decoded(None, written, last_input)  # type: ignore[arg-type]  # it has no answer
        # float32 always: guidance multiplies what is rounded here
        x = nn.silu(GroupNorm(c.groups, c.eps, c.batch_axes, name="conv_norm_out")(x.astype(jnp.float32)))
        output = conv3x3(c.channels, "conv_out", dtype=jnp.float32, kernels=c.kernels)(x)
        return Decoded(output, written, last_input)


class UNet(nn.Module):
    """Both halves. Latents are `b f h w c`, times `b`, text states `b n c`; banks as the module's docstring says."""

    config: UNetConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, x: jax.Array, t: jax.Array, text: jax.Array, bank: Bank, shallow: bool = False) -> Encoded:
        """Run the down path.

        `shallow` computes its first level only, for a decoder that is given `deep` (*DeepCache*, arXiv 2312.00858).
        """
        return self.encoder(x, t, text, bank, None, shallow)

    def decode(
        self,
        encoded: Encoded,
        text: jax.Array,
        bank: Bank,
        residuals: Residuals | None = None,
        deep: jax.Array | None = None,
    ) -> Decoded:
        """Run the middle and up path. The output is the prediction `b f h w c`, float32.

        With `deep`, the input of the last level at another time, only the last level is computed.
        """
        return self.decoder(encoded, text, bank, residuals, deep)

    def write_bank(self, x: jax.Array, t: jax.Array, text: jax.Array) -> Bank:
        """The tokens of every spatial transformer, `b f n c`, without any bank to mix in."""
        encoded = self.encoder(x, t, text, {})
        written = encoded.written | self.decoder(encoded, text, {}).written
        return {block: tokens for block, tokens in written.items() if tokens}
