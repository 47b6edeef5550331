"""One guided step of the published MagicAnimate in PyTorch, made of diffusers' networks, to be timed beside ours.

    pip install torch diffusers
    python -m mafx.benchmarks.published --model sd15 --size 256 256 --frames 16 --runs 1

The arithmetic is that of the published code, and so is what it computes more than once: the appearance encoder and the
whole UNet for both halves of guidance, the keys and values of the reference for every frame, the self-attention of the
unconditional half with the reference and again without. Kernels and memory are the fastest that PyTorch has for it:
fused attention, channel-last, inference mode. tests/test_benchmarks_published.py compares the step with published
outputs. Axes are PyTorch's here: videos `b c f h w`, frames as a batch `(b f) c h w`.

One line of JSON is printed: the median seconds of every network and of a step, after a run that is not counted, and the
peak of memory. The text tower, the update of the latents and the encoding of the reference are left out.
"""

import argparse
import ctypes
import json
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from torch import nn

from mafx.commands import Parser, run_command
from mafx.errors import InputError
from mafx.models.animator import SIZES, AnimatorConfig
from mafx.models.autoencoder import AutoencoderConfig
from mafx.models.temporal import TemporalConfig, frame_sinusoid
from mafx.models.unet import UNetConfig
from mafx.pretrained.formats import open_tensors
from mafx.pretrained.layout import PARTS
from mafx.pretrained.names import current_name

NAME = "python -m mafx.benchmarks.published"
GUIDANCE = 7.5  # the published scale
TIME = 981  # any diffusion time would do

# glibc's parameters, see `keep_freed_memory`.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1

Bank = dict[str, torch.Tensor]  # name of a transformer block -> `b m c`
Residuals = tuple[tuple[torch.Tensor, ...], torch.Tensor]  # of the skips, and of the middle

# The transformer blocks that write the bank in the appearance encoder, and read it in the UNet.
MIXED = re.compile(r"(mid_block|up_blocks\.\d+)\.attentions\.\d+\.transformer_blocks\.0$")

# Published names of temporal layers -> diffusers' names. diffusers has one buffer of positions for both attentions; the
# two published ones are equal.
MOTION_NAMES = (
    (r"(motion_modules\.\d+)\.temporal_transformer\.", r"\1."),
    (r"attention_blocks\.\d\.pos_encoder\.", "pos_embed."),
    (r"attention_blocks\.0\.", "attn1."),
    (r"attention_blocks\.1\.", "attn2."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.ff_norm\.", ".norm3."),
)


# -- Layers that diffusers lacks


class VideoGroupNorm(nn.GroupNorm):
    """Group norm with statistics over all frames of a video, `(b f) c h w` -> the same.

    Where memory is channel-last, nothing is copied.
    """

    frames = 1  # set before every call of the UNet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(rearrange(x, "(b f) c h w -> b c (f h) w", f=self.frames))
        return rearrange(y, "b c (f h) w -> (b f) c h w", f=self.frames)


class TemporalLayer(AnimateDiffTransformer3D):
    """diffusers' temporal transformer, with a norm per frame at its entry and channel-last memory on both sides."""

    def forward(self, x: torch.Tensor, num_frames: int) -> torch.Tensor:
        h, w = x.shape[2:]
        y = self.proj_in(rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=num_frames))
        y = self.proj_out(self.transformer_blocks[0](y))
        return x + rearrange(y, "(b h w) f c -> (b f) h w c", h=h, w=w).movedim(-1, 1)


class MixedAttention(AttnProcessor2_0):
    """Self-attention of both halves of guidance to themselves and the bank.

    The unconditional half then attends again, to itself alone.
    """

    bank: torch.Tensor | None = None  # `b m c`, set before every call of the UNet

    def __call__(
        self, attn: Attention, x: torch.Tensor, encoder_hidden_states=None, attention_mask=None
    ) -> torch.Tensor:
        if self.bank is None:
            return super().__call__(attn, x)
        bank = self.bank.repeat_interleave(len(x) // len(self.bank), dim=0)
        y = super().__call__(attn, x, torch.cat([x, bank], dim=1))
        half = len(x) // 2
        y[:half] = super().__call__(attn, x[:half])
        return y


class Skip(nn.Module):
    """Stands where nothing is computed."""

    def forward(self, x: torch.Tensor, *_, **__) -> torch.Tensor:
        return x


# -- Networks


def unet_settings(config: UNetConfig, kind: str) -> dict[str, Any]:
    """What diffusers wants to know of a down path. `kind` ends the names of its blocks."""
    return {
        "in_channels": config.channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.layers,
        "cross_attention_dim": config.text_width,
        "norm_num_groups": config.groups,
        "norm_eps": config.eps,
        "down_block_types": [f"{'CrossAttn' * attends}DownBlock{kind}" for attends in config.attends],
    }


def up_settings(config: UNetConfig, kind: str) -> dict[str, Any]:
    """What diffusers wants to know of an up path."""
    return {
        "out_channels": config.channels,
        "up_block_types": [f"{'CrossAttn' * attends}UpBlock{kind}" for attends in config.attends[::-1]],
    }


def make_unet(config: UNetConfig, temporal: TemporalConfig) -> UNetMotionModel:
    """The denoising UNet: residual blocks whose norms span the frames, and temporal layers."""
    settings = unet_settings(config, "Motion") | up_settings(config, "Motion")
    network = UNetMotionModel(**settings, num_attention_heads=config.heads, use_motion_mid_block=False)
    for block in [module for module in network.modules() if isinstance(module, ResnetBlock2D)]:
        block.norm1 = video_norm(block.norm1)
        block.norm2 = video_norm(block.norm2)
    network.conv_norm_out = VideoGroupNorm(config.groups, config.widths[0], config.eps)
    for block in (*network.down_blocks, *network.up_blocks):
        widths = [module.in_channels for module in block.motion_modules]
        block.motion_modules = nn.ModuleList(make_temporal_layer(temporal, width) for width in widths)
    return network


def video_norm(norm: nn.GroupNorm) -> VideoGroupNorm:
    return VideoGroupNorm(norm.num_groups, norm.num_channels, norm.eps)


def make_temporal_layer(config: TemporalConfig, width: int) -> TemporalLayer:
    return TemporalLayer(
        config.heads,
        width // config.heads,
        width,
        norm_num_groups=config.groups,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=config.max_frames,
        activation_fn="geglu",
    )


def make_appearance_encoder(config: UNetConfig) -> UNet2DConditionModel:
    """The appearance encoder. It ends behind the norm of its last self-attention, as the published one does.

    What follows there is taken out, together with its weights.
    """
    settings = unet_settings(config, "2D") | up_settings(config, "2D")
    network = UNet2DConditionModel(**settings, attention_head_dim=config.heads)
    last = network.up_blocks[-1].attentions[-1]
    block = last.transformer_blocks[0]
    for owner, name in ((block, "attn1"), (block, "norm3"), (block, "ff"), (last, "proj_out"), (network, "conv_out")):
        setattr(owner, name, Skip())
    block.norm2 = block.attn2 = network.conv_norm_out = None  # diffusers asks whether they are there
    return network


def make_controlnet(config: AnimatorConfig) -> ControlNetModel:
    return ControlNetModel(
        **unet_settings(config.unet, "2D"),
        attention_head_dim=config.unet.heads,
        conditioning_embedding_out_channels=config.motion_widths,
    )


def make_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    levels = len(config.widths)
    return AutoencoderKL(
        block_out_channels=config.widths,
        layers_per_block=config.layers,
        norm_num_groups=config.groups,
        latent_channels=config.channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )


def make_networks(config: AnimatorConfig) -> dict[str, nn.Module]:
    """All networks by the roots of `mafx.pretrained.layout.PARTS`, without memory for their weights.

    Raises: InputError for sizes that the published networks cannot have.
    """
    temporal, autoencoder = config.unet.temporal, config.autoencoder
    if temporal is None or not isinstance(autoencoder, AutoencoderConfig):
        raise InputError("expected a model with temporal layers and an autoencoder, such as sd15 or tiny")
    with torch.device("meta"):  # diffusers' own initialisation would be thrown away, and is slow at this size
        return {
            "unet": make_unet(config.unet, temporal),
            "appearance": make_appearance_encoder(config.unet),
            "control": make_controlnet(config),
            "autoencoder": make_autoencoder(autoencoder),
        }


# -- The step


class PublishedStep:
    """The networks of one guided step with random weights, and the step. Times `t` are one number, texts `b n c`.

    Attributes:
      networks: By name.
      text: What `step` uses, rows [unconditional, conditional]. It is random until it is set, since the text tower is
        left out.
    """

    def __init__(
        self,
        config: AnimatorConfig,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        compile: bool = False,
    ):
        self.config, self.device = config, device
        self.networks = make_networks(config)
        layout = torch.channels_last if channels_last else torch.preserve_format
        for network in self.networks.values():
            network.eval().requires_grad_(False)
            nn.Module.to(network, dtype=dtype, memory_format=layout)  # diffusers' own `to` warns without cause
            randomise(network.to_empty(device=device))
        self.text = torch.randn(2, config.text.positions, config.unet.text_width, device=device, dtype=dtype)
        self._norms = [module for module in self.networks["unet"].modules() if isinstance(module, VideoGroupNorm)]
        self._mixers = {name: MixedAttention() for name, _ in self._mixed_blocks("unet")}
        for name, block in self._mixed_blocks("unet"):
            block.attn1.set_processor(self._mixers[name])
        self._bank: Bank = {}
        for name, block in self._mixed_blocks("appearance"):
            block.norm1.register_forward_hook(self._bank_writer(name))
        if compile:
            self._compile()

    def _mixed_blocks(self, network: str) -> list[tuple[str, Any]]:
        return [(name, block) for name, block in self.networks[network].named_modules() if MIXED.match(name)]

    def _bank_writer(self, name: str) -> Callable[[nn.Module, tuple, torch.Tensor], None]:
        def write(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            self._bank[name] = output

        return write

    def _compile(self) -> None:
        for name in ("unet", "appearance", "control"):
            self.networks[name].compile()
        self.networks["autoencoder"].decoder.compile()

    def load(self, folder: str | Path) -> None:
        """Read weights in the published layout. Every tensor must find its place, and every place its tensor."""
        for root, network in self.networks.items():
            state = {}
            for part in [part for part in PARTS if part.root == root]:
                path = part.find(Path(folder))
                if path is None:
                    raise InputError(f"expected published weights in {folder}, found none of {root}")
                file = open_tensors(path)
                for name in file.shapes:
                    state[diffusers_name(name)] = torch.from_numpy(np.array(file.read(name), np.float32))
            network.load_state_dict(state)

    @torch.inference_mode()
    def appearance(self, reference: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> Bank:
        """The bank of clean latents `b c h w`: what stands before each self-attention of the middle and up blocks."""
        self._bank = {}
        self.networks["appearance"](reference, self._time(t), text)
        return self._bank

    @torch.inference_mode()
    def control(self, noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor, motion: torch.Tensor) -> Residuals:
        """The residuals `f c h w` of noisy latents `1 c f h w`, text `1 n c`, and motion `f 3 H W` in [0, 1]."""
        frames = rearrange(noisy, "1 c f h w -> f c h w")
        texts = text.expand(len(frames), -1, -1)
        skips, middle = self.networks["control"](frames, self._time(t), texts, motion, return_dict=False)
        return tuple(skips), middle

    @torch.inference_mode()
    def unet(
        self,
        noisy: torch.Tensor,
        t: torch.Tensor,
        text: torch.Tensor,
        bank: Bank | None = None,
        residuals: Residuals | None = None,
    ) -> torch.Tensor:
        """The noise in noisy latents `b c f h w`. With a bank, the first half of `b` is the unconditional half."""
        b, _, f = noisy.shape[:3]
        for norm in self._norms:
            norm.frames = f
        for name, mixer in self._mixers.items():
            mixer.bank = bank[name] if bank else None
        skips, middle = None, None
        if residuals is not None:
            # Unlike `repeat`, this keeps memory channel-last.
            skips = tuple(torch.cat([skip] * b) for skip in residuals[0])
            middle = torch.cat([residuals[1]] * b)
        return self.networks["unet"](
            noisy,
            self._time(t),
            text.repeat_interleave(f, dim=0),
            down_block_additional_residuals=skips,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents `b c h w` to images `b 3 H W`, about in [-1, 1]."""
        return self.networks["autoencoder"].decode(latents / self.config.autoencoder.scaling, return_dict=False)[0]

    @torch.inference_mode()
    def step(
        self,
        noisy: torch.Tensor,
        t: torch.Tensor,
        motion: torch.Tensor,
        reference: torch.Tensor,
        guidance: float = GUIDANCE,
    ) -> torch.Tensor:
        """The guided prediction `1 c f h w` for latents `1 c f h w`, motion `f 3 H W`, clean latents `1 c h w`."""
        bank = self.appearance(torch.cat([reference] * 2), t, self.text)
        residuals = self.control(noisy, t, self.text[1:], motion)
        without, with_reference = self.unet(torch.cat([noisy] * 2), t, self.text, bank, residuals).chunk(2)
        return without + guidance * (with_reference - without)

    def _time(self, t: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(t, device=self.device).reshape(1)


def randomise(network: nn.Module) -> None:
    """Draw weights that keep the size of activations, and fill norms, biases and buffers, which `to_empty` emptied."""
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.normal_(std=weight[0].numel() ** -0.5)
    for module in network.modules():
        if isinstance(module, SinusoidalPositionalEmbedding):
            module.pe.copy_(torch.from_numpy(frame_sinusoid(*module.pe.shape[1:])))
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.fill_(1)
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()


def diffusers_name(name: str) -> str:
    """diffusers' name of a published tensor."""
    name = current_name(name)
    for pattern, replacement in MOTION_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


# -- Timing


def median_seconds(call: Callable[[], object], runs: int) -> float:
    """The median of some runs, after one that is not counted."""

    def run_once() -> float:
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run_once()
    return statistics.median(run_once() for _ in range(runs))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory, instead of asking the system for fresh pages at every layer."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)  # no mapping of its own for a large array
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # nothing is given back


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of every network and of a step."""
    config, f, (H, W), device = SIZES[args.model], args.frames, args.size, args.device
    dtype = getattr(torch, args.dtype)
    published = PublishedStep(config, device, dtype, compile=args.compile)
    h, w, c = H // config.autoencoder.factor, W // config.autoencoder.factor, config.unet.channels
    shapes = (2, c, f, h, w), (f, 3, H, W), (2, c, h, w)
    with torch.inference_mode():  # as inside a step: other tensors would be compiled for anew
        noisy, motion, clean = (torch.rand(shape, device=device, dtype=dtype) for shape in shapes)
        t, text = torch.tensor([TIME], device=device), published.text
    bank, residuals = published.appearance(clean, t, text), published.control(noisy[:1], t, text[1:], motion)
    calls: dict[str, Callable[[], object]] = {
        "appearance": lambda: published.appearance(clean, t, text),
        "control": lambda: published.control(noisy[:1], t, text[1:], motion),
        "unet": lambda: published.unet(noisy, t, text, bank, residuals),
        "decode": lambda: published.decode(clean[:1]),
        "step": lambda: published.step(noisy[:1], t, motion, clean[:1]),
    }
    return {name: round(median_seconds(call, args.runs), 4) for name, call in calls.items()}


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--model", default="sd15", choices=SIZES, help="Sizes of the networks (default sd15).")
    add("--size", nargs=2, type=int, default=(256, 256), metavar=("H", "W"), help="In pixels (default 256 256).")
    add("--frames", type=int, default=16, help="Number of frames (default 16).")
    add("--runs", type=int, default=1, help="Number of runs, of which the median is taken (default 1).")
    add("--device", default="cpu", help="As PyTorch names it (default cpu).")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="Default float32.")
    add("--compile", action="store_true", help="Use torch.compile. The run that is not counted waits for it.")
    add("--malloc", action="store_true", help="Keep freed memory instead of giving it back to the system (glibc).")
    add("--threads", type=int, help="Number of threads (default: one per core).")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    if args.malloc:
        keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    result = vars(args) | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    result["seconds"] = measure(args)
    result["peak_rss_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    if args.device != "cpu":
        result["device"] = torch.cuda.get_device_name()
        result["peak_device_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
