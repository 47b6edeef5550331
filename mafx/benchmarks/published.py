"""One guided step of the published MagicAnimate in PyTorch, from diffusers' own networks, to be timed beside ours.

    pip install torch diffusers
    python benchmarks/reference.py --model sd15 --size 256 256 --frames 16 --runs 1

The arithmetic is that of the published code, and so is what it computes more than once: the appearance encoder and the whole UNet for both halves of
guidance, the reference's keys and values for every frame, the unconditional self-attention with the reference and again without. Kernels and memory
are the fastest that PyTorch offers for it: fused attention, channel-last, inference mode. tests/test_reference.py compares with what was published.
Axes are PyTorch's here: videos `b c f h w`, frames as a batch `(b f) c h w`.

One line of JSON is printed: the median seconds of every component and of a step, after a run that is not counted, and the peak of memory. The text
tower, the update of the latents and the encoding of the reference are not part of it.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from torch import nn

from mafx.models.animator import SIZES, AnimatorConfig
from mafx.models.autoencoder import AutoencoderConfig
from mafx.models.temporal import frame_sinusoid
from mafx.models.unet import UNetConfig
from mafx.pretrained.formats import open_tensors
from mafx.pretrained.layout import PARTS
from mafx.pretrained.names import current_name

Bank = dict[str, torch.Tensor]
Residuals = tuple[tuple[torch.Tensor, ...], torch.Tensor]

FUSED = re.compile(
    r"(mid_block|up_blocks\.\d+)\.attentions\.\d+\.transformer_blocks\.0$"
)  # the transformer blocks that give and take features
MOTION_NAMES = (  # published -> diffusers, which has one buffer of positions for both attentions; the published two are equal
    (r"(motion_modules\.\d+)\.temporal_transformer\.", r"\1."),
    (r"attention_blocks\.\d\.pos_encoder\.", "pos_embed."),
    (r"attention_blocks\.0\.", "attn1."),
    (r"attention_blocks\.1\.", "attn2."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.ff_norm\.", ".norm3."),
)


class VideoGroupNorm(nn.GroupNorm):
    """Statistics over all frames of a video together, `(b f) c h w` -> the same. Where memory is channel-last, nothing is copied."""

    frames = 1  # set before every call of the UNet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(rearrange(x, "(b f) c h w -> b c (f h) w", f=self.frames))
        return rearrange(y, "b c (f h) w -> (b f) c h w", f=self.frames)


class MotionModule(AnimateDiffTransformer3D):
    """diffusers' temporal transformer with its entry's norm per frame, and channel-last memory on both sides."""

    def forward(self, x: torch.Tensor, num_frames: int) -> torch.Tensor:
        h, w = x.shape[2:]
        y = self.proj_in(rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=num_frames))
        y = self.proj_out(self.transformer_blocks[0](y))
        return x + rearrange(y, "(b h w) f c -> (b f) h w c", h=h, w=w).movedim(-1, 1)


class MixedAttention(AttnProcessor2_0):
    """Self-attention of both halves of guidance to themselves and the reference; then the unconditional one again, to itself alone."""

    features: torch.Tensor | None = None  # `b m c`, the reference's, set before every call of the UNet

    def __call__(
        self, attn: Attention, x: torch.Tensor, encoder_hidden_states=None, attention_mask=None
    ) -> torch.Tensor:
        if self.features is None:
            return super().__call__(attn, x)
        features = self.features.repeat_interleave(len(x) // len(self.features), dim=0)
        y = super().__call__(attn, x, torch.cat([x, features], dim=1))
        half = len(x) // 2
        y[:half] = super().__call__(attn, x[:half])
        return y


class Skip(nn.Module):
    """In the place of what is not computed."""

    def forward(self, x: torch.Tensor, *_, **__) -> torch.Tensor:
        return x


def _settings(c: UNetConfig, kind: str, up: bool = True) -> dict:
    settings = {
        "in_channels": c.channels,
        "block_out_channels": c.widths,
        "layers_per_block": c.layers,
        "cross_attention_dim": c.text_width,
    }
    settings |= {"norm_num_groups": c.groups, "norm_eps": c.eps}
    settings["down_block_types"] = [f"{'CrossAttn' * attends}DownBlock{kind}" for attends in c.attends]
    if up:
        settings |= {
            "out_channels": c.channels,
            "up_block_types": [f"{'CrossAttn' * attends}UpBlock{kind}" for attends in c.attends[::-1]],
        }
    return settings


def _denoiser(c: UNetConfig) -> UNetMotionModel:
    m = c.temporal
    network = UNetMotionModel(**_settings(c, "Motion"), num_attention_heads=c.heads, use_motion_mid_block=False)
    for module in [module for module in network.modules() if isinstance(module, ResnetBlock2D)]:
        module.norm1, module.norm2 = (
            VideoGroupNorm(norm.num_groups, norm.num_channels, norm.eps) for norm in (module.norm1, module.norm2)
        )
    network.conv_norm_out = VideoGroupNorm(c.groups, c.widths[0], c.eps)
    more = {
        "norm_num_groups": m.groups,
        "positional_embeddings": "sinusoidal",
        "num_positional_embeddings": m.max_frames,
        "activation_fn": "geglu",
    }
    for block in (*network.down_blocks, *network.up_blocks):
        widths = [module.in_channels for module in block.motion_modules]
        block.motion_modules = nn.ModuleList(MotionModule(m.heads, width // m.heads, width, **more) for width in widths)
    return network


def _appearance_encoder(c: UNetConfig) -> UNet2DConditionModel:
    """It ends after the norm before its last self-attention, as the published one does: what follows is taken out, and its weights with it."""
    network = UNet2DConditionModel(**_settings(c, "2D"), attention_head_dim=c.heads)
    last = network.up_blocks[-1].attentions[-1]
    block = last.transformer_blocks[0]
    block.attn1, block.norm3, block.ff, last.proj_out, network.conv_out = (Skip() for _ in range(5))
    block.norm2 = block.attn2 = network.conv_norm_out = None  # diffusers asks whether they are there
    return network


def _autoencoder(c: AutoencoderConfig) -> AutoencoderKL:
    kinds = {
        f"{way}_block_types": [f"{way.title()}{half}coderBlock2D"] * len(c.widths)
        for way, half in (("down", "En"), ("up", "De"))
    }
    return AutoencoderKL(
        block_out_channels=c.widths,
        layers_per_block=c.layers,
        norm_num_groups=c.groups,
        latent_channels=c.channels,
        **kinds,
    )


class Reference:
    """The networks of one guided step with random weights, and the step. Times `t` are one number, text states `b n c`.

    Attributes:
      text: what `step` uses, rows [unconditional, conditional]; random until set, as the text tower is not part of this.
    """

    def __init__(
        self,
        config: AnimatorConfig,
        device="cpu",
        dtype=torch.float32,
        channels_last: bool = True,
        compile: bool = False,
    ):
        self.config, self.device = config, device
        c = config.unet
        with torch.device("meta"):  # diffusers' own initialisation is thrown away, and slow at this size
            self.networks = {
                "unet": _denoiser(c),
                "appearance": _appearance_encoder(c),
                "control": ControlNetModel(
                    **_settings(c, "2D", up=False),
                    attention_head_dim=c.heads,
                    conditioning_embedding_out_channels=config.motion_widths,
                ),
                "autoencoder": _autoencoder(config.autoencoder),
            }
        for network in self.networks.values():
            layout = torch.channels_last if channels_last else torch.preserve_format
            nn.Module.to(
                network.eval().requires_grad_(False), dtype=dtype, memory_format=layout
            )  # diffusers' own `to` warns without cause
            _randomise(network.to_empty(device=device))
        self.text = torch.randn(2, config.text.positions, c.text_width, device=device, dtype=dtype)
        self._norms = [module for module in self.networks["unet"].modules() if isinstance(module, VideoGroupNorm)]
        self._mixers = {}
        for name, block in self.networks["unet"].named_modules():
            if FUSED.match(name):
                self._mixers[name] = MixedAttention()
                block.attn1.set_processor(self._mixers[name])
        self._bank: Bank = {}
        for name, block in self.networks["appearance"].named_modules():
            if FUSED.match(name):
                block.norm1.register_forward_hook(lambda _, __, y, name=name: self._bank.__setitem__(name, y))
        if compile:
            for network in (
                *(self.networks[name] for name in ("unet", "appearance", "control")),
                self.networks["autoencoder"].decoder,
            ):
                network.compile()

    def load(self, folder: str | Path) -> None:
        """Weights from the published layout. Every tensor must find its place and every place its tensor."""
        for root, network in self.networks.items():
            state = {}
            for file in [open_tensors(part.find(Path(folder))) for part in PARTS if part.root == root]:
                state |= {
                    _diffusers_name(name): torch.from_numpy(np.array(file.read(name), np.float32))
                    for name in file.shapes
                }
            network.load_state_dict(state)

    @torch.inference_mode()
    def appearance(self, reference: torch.Tensor, t, text: torch.Tensor) -> Bank:
        """Clean latents `b c h w` -> the features before every self-attention of the middle and up blocks, by name, each `b m c`."""
        self._bank = {}
        self.networks["appearance"](reference, self._time(t), text)
        return self._bank

    @torch.inference_mode()
    def control(self, noisy: torch.Tensor, t, text: torch.Tensor, motion: torch.Tensor) -> Residuals:
        """Noisy latents `1 c f h w`, text `1 n c`, pose `f 3 H W` in [0, 1] -> residuals of the skips and of the middle, `f c h w`."""
        frames = rearrange(noisy, "1 c f h w -> f c h w")
        skips, middle = self.networks["control"](
            frames, self._time(t), text.expand(len(frames), -1, -1), motion, return_dict=False
        )
        return tuple(skips), middle

    @torch.inference_mode()
    def unet(
        self, noisy: torch.Tensor, t, text: torch.Tensor, bank: Bank | None = None, residuals: Residuals | None = None
    ) -> torch.Tensor:
        """Noisy latents `b c f h w` -> noise prediction, likewise. With a bank the first half of the rows is the unconditional one."""
        b, _, f = noisy.shape[:3]
        for norm in self._norms:
            norm.frames = f
        for name, mixer in self._mixers.items():
            mixer.features = bank and bank[name]
        skips, middle = residuals or (None, None)
        return self.networks["unet"](
            noisy,
            self._time(t),
            text.repeat_interleave(f, dim=0),
            down_block_additional_residuals=skips
            and tuple(torch.cat([skip] * b) for skip in skips),  # unlike repeat, it keeps memory channel-last
            mid_block_additional_residual=None if middle is None else torch.cat([middle] * b),
            return_dict=False,
        )[0]

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents `b c h w` -> images `b 3 H W`, about [-1, 1]."""
        return self.networks["autoencoder"].decode(latents / self.config.autoencoder.scaling, return_dict=False)[0]

    @torch.inference_mode()
    def step(
        self, latents: torch.Tensor, t, motion: torch.Tensor, reference_latents: torch.Tensor, guidance: float = 7.5
    ) -> torch.Tensor:
        """Guided noise prediction `1 c f h w` for latents `1 c f h w`, pose `f 3 H W` and clean latents `1 c h w`."""
        bank = self.appearance(torch.cat([reference_latents] * 2), t, self.text)
        residuals = self.control(latents, t, self.text[1:], motion)
        without, with_reference = self.unet(torch.cat([latents] * 2), t, self.text, bank, residuals).chunk(2)
        return without + guidance * (with_reference - without)

    def _time(self, t) -> torch.Tensor:
        return torch.as_tensor(t, device=self.device).reshape(1)


def _randomise(network: nn.Module) -> None:
    """Weights that keep the size of activations, norms that do nothing, and the buffers, which `to_empty` emptied too."""
    for p in network.parameters():
        if p.ndim > 1:
            p.normal_(std=p[0].numel() ** -0.5)
    for module in network.modules():
        if isinstance(module, SinusoidalPositionalEmbedding):
            module.pe.copy_(torch.from_numpy(frame_sinusoid(*module.pe.shape[1:])))
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.weight.fill_(1)
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()


def _diffusers_name(name: str) -> str:
    name = current_name(name)
    for pattern, replacement in MOTION_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _median_seconds(call: Callable[[], object], runs: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", choices=SIZES)
    parser.add_argument("--size", nargs=2, type=int, default=(256, 256), metavar=("H", "W"))
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--compile", action="store_true", help="by torch.compile; the first run, which is not counted, waits for it"
    )
    parser.add_argument(
        "--malloc",
        action="store_true",
        help="keep freed memory instead of asking the system for fresh pages at every layer (glibc)",
    )
    parser.add_argument("--threads", type=int, help="one per core unless given")
    args = parser.parse_args()
    if args.malloc:
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large array
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give back
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    dtype, config, f, (H, W) = getattr(torch, args.dtype), SIZES[args.model], args.frames, args.size
    reference = Reference(config, args.device, dtype, compile=args.compile)
    h, w, c = H // config.autoencoder.factor, W // config.autoencoder.factor, config.unet.channels
    shapes = (2, c, f, h, w), (f, 3, H, W), (2, c, h, w)
    with torch.inference_mode():  # as inside a step: other tensors would be compiled for anew
        noisy, motion, clean = (torch.rand(shape, device=args.device, dtype=dtype) for shape in shapes)
        t, text = torch.tensor([981], device=args.device), reference.text
    bank, residuals = reference.appearance(clean, t, text), reference.control(noisy[:1], t, text[1:], motion)
    calls = {
        "appearance": lambda: reference.appearance(clean, t, text),
        "control": lambda: reference.control(noisy[:1], t, text[1:], motion),
        "unet": lambda: reference.unet(noisy, t, text, bank, residuals),
        "decode": lambda: reference.decode(clean[:1]),
        "step": lambda: reference.step(noisy[:1], t, motion, clean[:1]),
    }
    result = vars(args) | {"threads": torch.get_num_threads(), "torch": torch.__version__}
    result["seconds"] = {name: round(_median_seconds(call, args.runs), 4) for name, call in calls.items()}
    result["peak_rss_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    if args.device != "cpu":
        result |= {
            "device": torch.cuda.get_device_name(),
            "peak_device_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
