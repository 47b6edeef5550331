"""Between images and latents: Stable Diffusion's KL autoencoder, one eighth their size, or patches of pixels, which need no training.

Source: *High-Resolution Image Synthesis with Latent Diffusion Models* (arXiv 2112.10752); names as in the published sd-vae-ft-mse.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mafx.models.attention import attention
from mafx.models.layers import Downsample, GroupNorm, ResidualBlock, Upsample, conv3x3

EPS = 1e-6  # of every norm in here


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are sd-vae-ft-mse's."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    channels: int = 4
    scaling: float = 0.18215  # diffusion works on latents times this

    @property
    def factor(self) -> int:
        """Pixels per latent position, along rows and columns."""
        return 2 ** (len(self.widths) - 1)


@dataclasses.dataclass(frozen=True)
class PatchesConfig:
    """Latents that are patches of `factor` by `factor` pixels: nothing is lost and nothing saved. For small models learnt from nothing."""

    factor: int = 2
    scaling: float = 3.0  # to a standard deviation of about 1

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
        # one head as wide as the channels: wider than fused kernels take
        y = attention(q, (k, v), kernel="blockwise" if h * w > 4096 else "plain")
        return x + nn.Dense(c, name="to_out")(rearrange(y, "b 1 (h w) 1 c -> b h w c", h=h))


class _Middle(nn.Module):
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ResidualBlock(x.shape[-1], self.groups, EPS, name="resnets_0")(x)
        x = _SelfAttention(self.groups, name="attentions_0")(x)
        return ResidualBlock(x.shape[-1], self.groups, EPS, name="resnets_1")(x)


class _Level(nn.Module):
    width: int
    layers: int
    groups: int
    resample: Callable[[], nn.Module] | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = ResidualBlock(self.width, self.groups, EPS, name=f"resnets_{i}")(x)
        return x if self.resample is None else self.resample()(x)


class _Encoder(nn.Module):
    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x = conv3x3(c.widths[0], "conv_in")(x)
        for i, width in enumerate(c.widths):
            last = i == len(c.widths) - 1
            resample = None if last else functools.partial(Downsample, (0, 1), name="downsamplers_0")
            x = _Level(width, c.layers, c.groups, resample, name=f"down_blocks_{i}")(x)
        x = _Middle(c.groups, name="mid_block")(x)
        x = nn.silu(GroupNorm(c.groups, EPS, name="conv_norm_out")(x))
        return conv3x3(2 * c.channels, "conv_out")(x)


class _Decoder(nn.Module):
    config: AutoencoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        x = conv3x3(c.widths[-1], "conv_in")(x)
        x = _Middle(c.groups, name="mid_block")(x)
        for i, width in enumerate(c.widths[::-1]):
            last = i == len(c.widths) - 1
            resample = None if last else functools.partial(Upsample, name="upsamplers_0")
            x = _Level(width, c.layers + 1, c.groups, resample, name=f"up_blocks_{i}")(x)
        x = nn.silu(GroupNorm(c.groups, EPS, name="conv_norm_out")(x))
        return conv3x3(3, "conv_out")(x)


class Autoencoder(nn.Module):
    """Images `b H W 3` in [-1, 1] <-> latents `b h w c`, here without the diffusion's scaling."""

    config: AutoencoderConfig

    def setup(self):
        self.encoder = _Encoder(self.config)
        self.decoder = _Decoder(self.config)
        self.quant_conv = nn.Dense(2 * self.config.channels)
        self.post_quant_conv = nn.Dense(self.config.channels)

    def encode(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of the posterior, each `b h w c`; the log-variance clipped to [-30, 20]."""
        mean, logvar = jnp.split(self.quant_conv(self.encoder(image)), 2, axis=-1)
        return mean, jnp.clip(logvar, -30, 20)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images `b H W 3`, about [-1, 1] but not clipped."""
        return self.decoder(self.post_quant_conv(latents))


class Patches(nn.Module):
    """The interface of Autoencoder, without parameters."""

    config: PatchesConfig

    def encode(self, x: jax.Array) -> tuple[jax.Array, None]:
        return rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=self.config.factor, q=self.config.factor), None

    def decode(self, z: jax.Array) -> jax.Array:
        return rearrange(z, "b h w (p q c) -> b (h p) (w q) c", p=self.config.factor, q=self.config.factor)
