"""The pose ControlNet: the UNet's encoder and middle block seeing the pose, and one zero convolution for everything they leave.

Source: *Adding Conditional Control to Text-to-Image Diffusion Models* (arXiv 2302.05543), with its small convolutional embedding of the condition.
"""

import dataclasses

import jax
from flax import linen as nn

from mafx.models.layers import conv3x3
from mafx.models.unet import Encoder, MiddleBlock, Residuals, UNetConfig


class MotionEmbedding(nn.Module):
    """Pose pixels `b f H W 3` in [0, 1] -> `b f h w width`, one eighth of the size."""

    widths: tuple[int, ...]
    out_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(conv3x3(self.widths[0], "conv_in")(x))
        for i, (width, wider) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            x = nn.silu(conv3x3(width, f"blocks_{2 * i}")(x))
            x = nn.silu(conv3x3(wider, f"blocks_{2 * i + 1}", stride=2)(x))
        return conv3x3(self.out_width, "conv_out")(x)


class ControlNet(nn.Module):
    """Noisy latents `b f h w c` and pose `b f H W 3` -> Residuals. Every frame by itself: no temporal layers, norms per frame."""

    config: UNetConfig
    motion_widths: tuple[int, ...] = (16, 32, 96, 256)

    def setup(self):
        c = dataclasses.replace(self.config, temporal=None, norm_per_frame=True, bank_only=False)
        self.controlnet_cond_embedding = MotionEmbedding(self.motion_widths, c.widths[0])
        self.encoder = Encoder(c)
        self.mid_block = MiddleBlock(c, c.widths[-1])
        self.controlnet_down_blocks = [
            nn.Dense(width) for width in c.skip_widths
        ]  # zero convolutions: they begin at zero
        self.controlnet_mid_block = nn.Dense(c.widths[-1])

    def __call__(
        self, x: jax.Array, t: jax.Array, text: jax.Array, pose: jax.Array, shallow: bool = False
    ) -> Residuals:
        """`shallow`: the residuals of the first level only, see `UNet.encode`."""
        x, skips, temb, _ = self.encoder(x, t, text, {}, self.controlnet_cond_embedding(pose), shallow)
        zero_convolutions = self.controlnet_down_blocks[: len(skips)]
        skips = tuple(convolution(skip) for convolution, skip in zip(zero_convolutions, skips, strict=True))
        return Residuals(skips, None if shallow else self.controlnet_mid_block(self.mid_block(x, temb, text, {})[0]))
