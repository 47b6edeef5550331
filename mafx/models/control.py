"""The pose ControlNet: the UNet's encoder and middle block, shown the motion, with a zero convolution per output.

Source: *Adding Conditional Control to Text-to-Image Diffusion Models* (arXiv 2302.05543), with its small convolutional
embedding of the condition.
"""

import dataclasses

import jax
from flax import linen as nn

from mafx.models.kernels import DEFAULT_KERNELS, Kernels
from mafx.models.layers import conv3x3
from mafx.models.unet import Encoder, MiddleBlock, Residuals, UNetConfig


class MotionEmbedding(nn.Module):
    """Renders `b f H W 3` in [0, 1] to `b f h w out_width`, at the size of latents: each width but one halves it."""

    widths: tuple[int, ...]
    out_width: int
    kernels: Kernels = DEFAULT_KERNELS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(conv3x3(self.widths[0], "conv_in", kernels=self.kernels)(x))
        for i, (width, next_width) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            x = nn.silu(conv3x3(width, f"blocks_{2 * i}", kernels=self.kernels)(x))
            x = nn.silu(conv3x3(next_width, f"blocks_{2 * i + 1}", stride=2, kernels=self.kernels)(x))
        return conv3x3(self.out_width, "conv_out", kernels=self.kernels)(x)


class ControlNet(nn.Module):
    """Noisy latents and motion to residuals. Every frame is by itself: no temporal layers, norms per frame."""

    config: UNetConfig
    motion_widths: tuple[int, ...] = (16, 32, 96, 256)

    def setup(self):
        c = dataclasses.replace(self.config, temporal=None, norm_per_frame=True, bank_only=False)
        self.controlnet_cond_embedding = MotionEmbedding(self.motion_widths, c.widths[0], c.kernels)
        self.encoder = Encoder(c)
        self.mid_block = MiddleBlock(c, c.widths[-1])
        # zero convolutions: 1x1, and zero when training starts
        self.controlnet_down_blocks = [nn.Dense(width) for width in c.skip_widths]
        self.controlnet_mid_block = nn.Dense(c.widths[-1])

    def embed_motion(self, motion: jax.Array) -> jax.Array:
        """Renders `b f H W 3` in [0, 1] to what the network adds behind its first convolution, `b f h w c`."""
        return self.controlnet_cond_embedding(motion)

    def __call__(
        self, x: jax.Array, t: jax.Array, text: jax.Array, embedded: jax.Array, shallow: bool = False
    ) -> Residuals:
        """y_p for noisy latents.

        Args:
          x: Noisy latents `b f h w c`.
          t: Diffusion times `b`.
          text: Text states `b n c`.
          embedded: The motion as `embed_motion` gives it. It depends on nothing else: one does for all times.
          shallow: Compute the residuals of the first level only, see `UNet.encode`.
        """
        x, skips, temb, _ = self.encoder(x, t, text, {}, embedded, shallow)
        zero_convolutions = self.controlnet_down_blocks[: len(skips)]
        skips = tuple(convolution(skip) for convolution, skip in zip(zero_convolutions, skips, strict=True))
        if shallow:
            return Residuals(skips, None)
        middle, _ = self.mid_block(x, temb, text, {})
        return Residuals(skips, self.controlnet_mid_block(middle))
