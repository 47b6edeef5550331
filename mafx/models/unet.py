"""The UNet of Stable Diffusion 1.5 in two halves, for images and, with temporal transformers, for videos.

The halves are separate because guidance shares the first: the encoder (down path) of a guided step runs once, the decoder (middle and up path) once
with and once without the reference. Bank are values: what each spatial transformer saw before its self-attention is returned, nested by block
and transformer, `{"up_blocks_1": {"attentions_0": b f n c}}`; a reference of the same form, but `b m c`, is what those transformers mix in.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mafx.models.attention import SpatialTransformer
from mafx.models.layers import Downsample, GroupNorm, ResidualBlock, TimeEmbedding, Upsample, conv3x3
from mafx.models.temporal import TemporalConfig, TemporalTransformer

Bank = dict[str, dict[str, jax.Array]]


def _is_product(primitive, *operands, **params) -> bool:
    """Of a convolution or a dense layer, not of attention's scores and values, which have batch axes."""
    dense = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive is jax.lax.conv_general_dilated_p or dense(primitive, *operands, **params)


# What the backward pass still has of the inside of a block, beside the block's input; all else it computes again. The more, the faster and larger.
REMAT = {
    "none": None,  # nothing is computed again
    "products": _is_product,
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet; the defaults are Stable Diffusion 1.5's."""

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    attends: tuple[bool, ...] = (True, True, True, False)  # levels with spatial transformers
    layers: int = 2  # residual blocks per level of the encoder; the decoder has one more
    heads: int = 8  # at every width; published configs call this number `attention_head_dim`
    groups: int = 32
    eps: float = 1e-5
    channels: int = 4  # of the latents
    text_width: int = 768
    temporal: TemporalConfig | None = None  # temporal transformers after every layer, none in the middle
    norm_per_frame: bool = False  # statistics of the residual blocks' norms: each frame alone, or all frames together
    positions: bool = False  # self-attention begins with a bias to the same place, see attention.grid_sinusoid; Stable Diffusion learnt places
    bank_only: bool = False  # stop at the last feature: an appearance encoder
    attention_kernel: str = "auto"  # see attention.attention
    remat: str = "none"  # a key of REMAT

    @property
    def batch_axes(self) -> int:
        return 2 if self.norm_per_frame else 1

    @property
    def skip_widths(self) -> tuple[int, ...]:
        """Of the first convolution, then of every layer and downsampling of the encoder."""
        last = len(self.widths) - 1
        return (
            self.widths[0],
            *(width for i, width in enumerate(self.widths) for _ in range(self.layers + (i < last))),
        )


class Encoded(NamedTuple):
    """What the encoder hands on: its output, one skip per layer and resampling, the time embedding, its features."""

    x: jax.Array
    skips: tuple[jax.Array, ...]
    temb: jax.Array
    features: Bank


class Residuals(NamedTuple):
    """What a ControlNet adds: one array per skip and one for the output of the middle block, None where that is not computed."""

    skips: tuple[jax.Array, ...]
    middle: jax.Array | None


class Decoded(NamedTuple):
    """What the decoder gives: its answer (None from an appearance encoder), its features, and what entered its last level."""

    output: jax.Array | None
    features: Bank
    deep: jax.Array


class _Level(nn.Module):
    """What the levels of the UNet have in common: residual blocks, each followed by its transformers."""

    config: UNetConfig
    width: int
    attends: bool = True
    last: bool = False

    @nn.nowrap
    def _block(self, kind: type[nn.Module], *args, name: str) -> nn.Module:
        policy = REMAT[self.config.remat]
        return (kind if policy is None else nn.remat(kind, policy=policy))(*args, name=name)

    @nn.nowrap
    def residual(self, i: int, x, temb):
        c = self.config
        return self._block(ResidualBlock, self.width, c.groups, c.eps, c.batch_axes, name=f"resnets_{i}")(x, temb)

    @nn.nowrap
    def transform(self, i: int, x, text, reference, features, bank_only: bool = False):
        c, name = self.config, f"attentions_{i}"
        transformer = self._block(
            SpatialTransformer, c.heads, c.groups, c.attention_kernel, bank_only, c.positions, name=name
        )
        x, features[name] = transformer(x, text, reference.get(name))
        return x

    @nn.nowrap
    def move(self, i: int, x):
        temporal = self.config.temporal
        return x if temporal is None else self._block(TemporalTransformer, temporal, name=f"motion_modules_{i}")(x)


class DownBlock(_Level):
    """One level of the encoder: returns its output, the skips it leaves, its features."""

    @nn.compact
    def __call__(self, x, temb, text, reference):
        skips, features = [], {}
        for i in range(self.config.layers):
            x = self.residual(i, x, temb)
            if self.attends:
                x = self.transform(i, x, text, reference, features)
            x = self.move(i, x)
            skips.append(x)
        if not self.last:
            x = Downsample(name="downsamplers_0")(x)
            skips.append(x)
        return x, skips, features


class MiddleBlock(_Level):
    """Residual block, spatial transformer, residual block at the lowest resolution."""

    @nn.compact
    def __call__(self, x, temb, text, reference):
        features = {}
        x = self.residual(0, x, temb)
        x = self.transform(0, x, text, reference, features)
        return self.residual(1, x, temb), features


class UpBlock(_Level):
    """One level of the decoder: takes its skips off the end of the list and resizes to the next one's rows and columns."""

    @nn.compact
    def __call__(self, x, skips: list[jax.Array], temb, text, reference):
        features = {}
        for i in range(self.config.layers + 1):
            x = self.residual(i, jnp.concatenate([x, skips.pop()], axis=-1), temb)
            bank_only = self.config.bank_only and self.last and i == self.config.layers
            if self.attends:
                x = self.transform(i, x, text, reference, features, bank_only)
            x = x if bank_only else self.move(i, x)
        if not self.last:
            x = Upsample(name="upsamplers_0")(x, skips[-1].shape[-3:-1])
        return x, features


class Encoder(nn.Module):
    """The down path. `pose` is what a ControlNet adds after the first convolution."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        text: jax.Array,
        reference: Bank,
        pose: jax.Array | None = None,
        shallow: bool = False,
    ) -> Encoded:
        c = self.config
        temb = TimeEmbedding(c.widths[0], 4 * c.widths[0], name="time_embedding")(t)
        x = conv3x3(c.widths[0], "conv_in")(x)
        x = x if pose is None else x + pose
        skips, features = [x], {}
        levels = 1 if shallow else len(c.widths)
        for i, (width, attends) in enumerate(zip(c.widths[:levels], c.attends[:levels], strict=True)):
            name = f"down_blocks_{i}"
            block = DownBlock(c, width, attends, last=i == levels - 1, name=name)
            x, more, features[name] = block(x, temb, text, reference.get(name, {}))
            skips += more
        return Encoded(x, tuple(skips), temb, features)


class Decoder(nn.Module):
    """The middle and up path. Residuals of a ControlNet enter at the skips and behind the middle block."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        encoded: Encoded,
        text: jax.Array,
        reference: Bank,
        residuals: Residuals | None = None,
        deep: jax.Array | None = None,
    ) -> Decoded:
        c, features = self.config, {}
        x, skips, temb, _ = encoded
        if deep is None:
            x, features["mid_block"] = MiddleBlock(c, c.widths[-1], name="mid_block")(
                x, temb, text, reference.get("mid_block", {})
            )
        if residuals is not None:
            x = x if residuals.middle is None else x + residuals.middle
            skips = jax.tree.map(jnp.add, skips, residuals.skips)
        skips = list(skips)
        for i, (width, attends) in enumerate(zip(c.widths[::-1], c.attends[::-1], strict=True)):
            name, last = f"up_blocks_{i}", i == len(c.widths) - 1
            if last:
                deep = x = x if deep is None else deep
            elif deep is not None:
                continue
            x, features[name] = UpBlock(c, width, attends, last, name=name)(
                x, skips, temb, text, reference.get(name, {})
            )
        if c.bank_only:
            return Decoded(None, features, deep)
        # always float32: guidance multiplies what is rounded here
        x = nn.silu(GroupNorm(c.groups, c.eps, c.batch_axes, name="conv_norm_out")(x.astype(jnp.float32)))
        return Decoded(conv3x3(c.channels, "conv_out", dtype=jnp.float32)(x), features, deep)


class UNet(nn.Module):
    """Both halves. Everywhere: latents `b f h w c`, times `b`, text states `b m c`, reference as the module's docstring says."""

    config: UNetConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, x: jax.Array, t: jax.Array, text: jax.Array, reference: Bank, shallow: bool = False) -> Encoded:
        """`shallow`: the first level only, for a decoder that is told what entered its last level at another time (*DeepCache*, arXiv 2312.00858)."""
        return self.encoder(x, t, text, reference, None, shallow)

    def decode(
        self,
        encoded: Encoded,
        text: jax.Array,
        reference: Bank,
        residuals: Residuals | None = None,
        deep: jax.Array | None = None,
    ) -> Decoded:
        """The output is the noise prediction `b f h w c`, float32. `deep`: what entered the last level; with it only that level is computed."""
        return self.decoder(encoded, text, reference, residuals, deep)

    def features(self, x: jax.Array, t: jax.Array, text: jax.Array) -> Bank:
        """The features of every spatial transformer, `b f n c`."""
        encoded = self.encoder(x, t, text, {})
        return {k: v for k, v in (encoded.features | self.decoder(encoded, text, {}).features).items() if v}
