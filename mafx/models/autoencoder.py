"""Between images and latents: Stable Diffusion's KL autoencoder, or patches of pixels, which need no training.

Source: *High-Resolution Image Synthesis with Latent Diffusion Models* (arXiv 2112.10752). Names are those of the
published sd-vae-ft-mse.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mafx.models.attention import attention
from mafx.models.kernels import DEFAULT_KERNELS, Kernels
from mafx.models.layers import Downsample, GroupNorm, ResidualBlock, Upsample, conv3x3

EPS = 1e-6  # of every norm in this module
MAX_PLAIN_POSITIONS = 4096  # latents of 64x64: above, the scores of all positions take more than 64 MiB


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are sd-vae-ft-mse's.

    Attributes:
      widths: Channels of each level.
      layers: Residual blocks per level of the encoder; the decoder has one more.
      groups: Of the group norms.
      channels: Of the latents.
      scaling: Diffusion works on latents times this.
      kernels: What kernels are chosen for.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    channels: int = 4
    scaling: float = 0.18215
    kernels: Kernels = DEFAULT_KERNELS

    @property
    def factor(self) -> int:
        """Pixels per latent position, along rows and columns."""
        return 2 ** (len(self.widths) - 1)


@dataclasses.dataclass(frozen=True)
class PatchesConfig:
    """Latents that are patches of `factor` x `factor` pixels. They lose nothing; they are for small models.

    Attributes:
      factor: Pixels per latent position, along rows and columns.
      scaling: Diffusion works on latents times this; the default gives puppets a standard deviation of about 1.
    """

    factor: int = 2
    scaling: float = 3.0

    @property
    def channels(self) -> int:
        return 3 * self.factor**2


class _SelfAttention(nn.Module):
    """One head over all positions of `b h w c`."""

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h, w, c = x.shape[1:]
        y = rearrange(GroupNorm(self.groups, EPS, name="group_norm")(x), "b h w c -> b 1 (h w) 1 c")
        q, k, v = (nn.Dense(c, name=name)(y) for name in ("to_q", "to_k", "to_v"))
        # The one head is as wide as the channels, which is wider than fused kernels take.
        kernels = Kernels(attention="blockwise" if h * w > MAX_PLAIN_POSITIONS else "plain")
        y = rearrange(attention(q, (k, v), kernels=kernels), "b 1 (h w) 1 c -> b h w c", h=h)
        return x + nn.Dense(c, name="to_out")(y)


class _Middle(nn.Module):
    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups, kernels, channels = self.config.groups, self.config.kernels, x.shape[-1]
        x = ResidualBlock(channels, groups, EPS, kernels=kernels, name="resnets_0")(x)
        x = _SelfAttention(groups, name="attentions_0")(x)
        return ResidualBlock(channels, groups, EPS, kernels=kernels, name="resnets_1")(x)


class _Level(nn.Module):
    config: AutoencoderConfig
    width: int
    layers: int
    resample: Callable[[], nn.Module] | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        groups, kernels = self.config.groups, self.config.kernels
        for i in range(self.layers):
            x = ResidualBlock(self.width, groups, EPS, kernels=kernels, name=f"resnets_{i}")(x)
        return x if self.resample is None else self.resample()(x)


class _Encoder(nn.Module):
    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, last = self.config, len(self.config.widths) - 1
        x = conv3x3(c.widths[0], "conv_in", kernels=c.kernels)(x)
        for i, width in enumerate(c.widths):
            resample = None if i == last else functools.partial(Downsample, (0, 1), name="downsamplers_0")
            x = _Level(c, width, c.layers, resample, name=f"down_blocks_{i}")(x)
        x = _Middle(c, name="mid_block")(x)
        x = nn.silu(GroupNorm(c.groups, EPS, name="conv_norm_out")(x))
        return conv3x3(2 * c.channels, "conv_out", kernels=c.kernels)(x)


class _Decoder(nn.Module):
    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, last = self.config, len(self.config.widths) - 1
        x = conv3x3(c.widths[-1], "conv_in", kernels=c.kernels)(x)
        x = _Middle(c, name="mid_block")(x)
        for i, width in enumerate(c.widths[::-1]):
            resample = None if i == last else functools.partial(Upsample, c.kernels, name="upsamplers_0")
            x = _Level(c, width, c.layers + 1, resample, name=f"up_blocks_{i}")(x)
        x = nn.silu(GroupNorm(c.groups, EPS, name="conv_norm_out")(x))
        return conv3x3(3, "conv_out", kernels=c.kernels)(x)


class Autoencoder(nn.Module):
    """Images `b H W 3` in [-1, 1] to latents `b h w c` and back, without the diffusion's scaling."""

    config: AutoencoderConfig

    def setup(self):
        self.encoder = _Encoder(self.config)
        self.decoder = _Decoder(self.config)
        self.quant_conv = nn.Dense(2 * self.config.channels)
        self.post_quant_conv = nn.Dense(self.config.channels)

    def encode(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the posterior, each `b h w c`. The log-variance is clipped to [-30, 20]."""
        mean, logvar = jnp.split(self.quant_conv(self.encoder(image)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30, 20)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images `b H W 3`, about in [-1, 1] but not clipped."""
        return self.decoder(self.post_quant_conv(latents))


class Patches(nn.Module):
    """The interface of Autoencoder, without parameters."""

    config: PatchesConfig

    def encode(self, x: jax.Array) -> tuple[jax.Array, None]:
        """Images `b H W 3` to patches `b h w c`; there is no variance."""
        p = self.config.factor
        return rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p), None

    def decode(self, latents: jax.Array) -> jax.Array:
        """Patches `b h w c` to images `b H W 3`."""
        p = self.config.factor
        return rearrange(latents, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)
