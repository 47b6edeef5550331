"""Compute the reference data of tests/test_published.py with the published code.

    python tests/published/compute.py --code MAGIC_ANIMATE           write weights/ and expected.safetensors
    python tests/published/compute.py --code MAGIC_ANIMATE --check   compare with what is there, print the errors

MAGIC_ANIMATE is a checkout of https://github.com/magic-research/magic-animate. The README.md beside this file lists the
packages that the published code needs, and describes all files and tensors. mafx is not used here. Axes are PyTorch's:
videos are `b c f h w`.
"""

import argparse
import contextlib
import functools
import importlib
import json
import re
import sys
import types
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).parent
WEIGHTS, EXPECTED = HERE / "weights", HERE / "expected.safetensors"
SIZE, FACTOR = (16, 24), 2  # rows and columns in pixels, pixels per latent position
FRAMES, STEPS, GUIDANCE, SEED = 20, 2, 7.5, 3  # of the whole pipeline
WINDOW = 16
SCALING = 0.18215
TIME, CONTROL_SCALE, CLIP = 481, 0.5, 3  # of the calls of single networks, on videos of CLIP frames
DECODED = (3, 18)  # frames of the pipeline's video that are kept

# ---- Sizes, in the published format

SHARED = {
    "act_fn": "silu",
    "attention_head_dim": 4,  # the number of heads, as in Stable Diffusion 1.5
    "block_out_channels": [32, 32],
    "cross_attention_dim": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 8,
}
UP = {
    "center_input_sample": False,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
TEXT = {
    "hidden_act": "quick_gelu",
    "hidden_size": 16,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
AUTOENCODER = {
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
TEMPORAL = {
    "unet_use_cross_frame_attention": False,
    "unet_use_temporal_attention": False,
    "use_motion_module": True,
    "motion_module_resolutions": [1, 2],
    "motion_module_mid_block": False,
    "motion_module_decoder_only": False,
    "motion_module_type": "Vanilla",
    "motion_module_kwargs": {
        "num_attention_heads": 2,
        "num_transformer_block": 1,
        "attention_block_types": ["Temporal_Self", "Temporal_Self"],
        "temporal_position_encoding": True,
        "temporal_position_encoding_max_len": 24,
        "temporal_attention_dim_div": 1,
    },
}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
CONFIGS = {
    "stable-diffusion-v1-5/unet": {"_class_name": "UNet2DConditionModel"} | SHARED | UP,
    "stable-diffusion-v1-5/text_encoder": {"model_type": "clip_text_model"} | TEXT,
    "sd-vae-ft-mse": {"_class_name": "AutoencoderKL"} | AUTOENCODER,
    "MagicAnimate/appearance_encoder": {"_class_name": "AppearanceEncoderModel"} | SHARED | UP,
    "MagicAnimate/densepose_controlnet": {
        "_class_name": "ControlNetModel",
        "conditioning_embedding_out_channels": [8, 8],
        "controlnet_conditioning_channel_order": "rgb",
    }
    | SHARED,
}
INFERENCE = {"unet_additional_kwargs": TEMPORAL, "noise_scheduler_kwargs": NOISE}

# Weights that are smaller than the others, so that the variance before a norm is near the norm's eps.
SMALL = (
    (r"^text\..*embeddings\.", 5e-3),  # LayerNorm, 1e-5
    (r"\.down_blocks\.0\.resnets\.0\.(conv1|time_emb_proj)\.", 3e-3),  # GroupNorm of a residual block, 1e-5
    (r"\.(down_blocks\.0|up_blocks\.1)\.attentions\.0\.proj_in\.", 3e-3),  # LayerNorm of a spatial block, 1e-5
    (r"\.up_blocks\.1\.resnets\.1\.(conv2|conv_shortcut)\.", 1e-3),  # GroupNorm of a spatial transformer, 1e-6
    (r"\.up_blocks\.0\.resnets\.1\.(conv2|conv_shortcut)\.", 1e-3),  # GroupNorm of a temporal transformer, 1e-6
    (r"\.temporal_transformer\.proj_in\.", 3e-3),  # LayerNorm of a temporal block, 1e-5
    (r"coder\.mid_block\.resnets\.0\.conv1\.", 1e-3),  # GroupNorm of the autoencoder, 1e-6
)

# ---- Weights


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random weights for the tensor `name`, float32 values that float16 holds exactly."""
    x = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if len(shape) > 1:
        x *= 1.0 if "embeddings." in name else np.prod(shape[1:]) ** -0.5
    elif name.endswith(".weight"):
        x = 1 + 0.2 * x  # scale of a norm
    else:
        x *= 0.2
    for pattern, factor in SMALL:
        if re.search(pattern, name):
            x *= factor
    return torch.from_numpy(x.astype(np.float16).astype(np.float32))


def fill(root: str, network: nn.Module) -> dict[str, torch.Tensor]:
    """Draw all parameters of a network. The buffers stay: they are the sinusoids of frames."""
    parameters = {name: draw(f"{root}.{name}", tuple(p.shape)) for name, p in network.named_parameters()}
    network.load_state_dict(parameters, strict=False)
    return network.state_dict()


def weight_files(networks: types.SimpleNamespace) -> dict[str, dict[str, torch.Tensor]]:
    """All weights by file and published name."""
    unet = networks.unet.state_dict()
    temporal = {f"module.{name}": x for name, x in unet.items() if "motion_modules" in name}
    files = {
        "stable-diffusion-v1-5/unet/diffusion_pytorch_model": {
            name: x for name, x in unet.items() if "motion_modules" not in name
        },
        "MagicAnimate/temporal_attention/temporal_attention": temporal,
        "MagicAnimate/appearance_encoder/diffusion_pytorch_model": networks.appearance.state_dict(),
        "MagicAnimate/densepose_controlnet/diffusion_pytorch_model": networks.control.state_dict(),
        "sd-vae-ft-mse/diffusion_pytorch_model": networks.autoencoder.state_dict(),
        "stable-diffusion-v1-5/text_encoder/model": networks.text.state_dict(),
    }
    return {f"{name}.fp16.safetensors": content for name, content in files.items()}


def write_weights(networks: types.SimpleNamespace) -> None:
    """Write the published layout. Drawn weights are float16; sinusoids, which float16 cannot hold, are float32."""
    for name, content in weight_files(networks).items():
        path = WEIGHTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        half = {key: x.contiguous() if key.endswith(".pe") else x.half().contiguous() for key, x in content.items()}
        save_file(half, path)
    for folder, content in CONFIGS.items():
        (WEIGHTS / folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    (WEIGHTS / "inference_config.json").write_text(json.dumps(INFERENCE, indent=2) + "\n")


# ---- The published code


class Identifiers:
    """In the place of a tokenizer: it knows the empty prompt alone, so that no vocabulary is needed."""

    model_max_length = TEXT["max_position_embeddings"]
    start, end = TEXT["vocab_size"] - 2, TEXT["vocab_size"] - 1

    def __call__(self, prompts, padding="max_length", **_) -> types.SimpleNamespace:
        assert set(prompts) == {""}
        length = self.model_max_length if padding == "max_length" else 2
        row = [self.start] + [self.end] * (length - 1)
        return types.SimpleNamespace(input_ids=torch.tensor([row] * len(prompts)))


@contextlib.contextmanager
def last_in_place_of_missing() -> Iterator[None]:
    """An index beyond the end of a ModuleList means its last module.

    The published appearance encoder cuts what follows its last bank, and finds it by the numbers of a network of four
    levels with three layers. Here the last layer has other numbers.
    """
    original = nn.ModuleList.__getitem__

    def getitem(self, index):
        return original(self, min(index, len(self) - 1) if isinstance(index, int) else index)

    nn.ModuleList.__getitem__ = getitem
    try:
        yield
    finally:
        nn.ModuleList.__getitem__ = original


def three_dimensional(config: dict) -> dict:
    """The video UNet's config, as the published loader makes it from the image UNet's."""
    types_3d = {
        key: [block.replace("2D", "3D") for block in config[key]] for key in ("down_block_types", "up_block_types")
    }
    # The published constructor counts the resolutions of the up path from the eighth on, whatever the number of levels.
    return config | types_3d | TEMPORAL | {"motion_module_resolutions": [1, 2, 4, 8]}


def make_networks(code: Path) -> types.SimpleNamespace:
    """The published networks and pipeline with drawn weights."""
    sys.path.insert(0, str(code))
    published = importlib.import_module("magicanimate.pipelines.pipeline_animation")
    encoder = importlib.import_module("magicanimate.models.appearance_encoder")
    unet, appearance, control, autoencoder = (
        {key: value for key, value in CONFIGS[folder].items() if key != "_class_name"}
        for folder in (
            "stable-diffusion-v1-5/unet",
            "MagicAnimate/appearance_encoder",
            "MagicAnimate/densepose_controlnet",
            "sd-vae-ft-mse",
        )
    )
    with last_in_place_of_missing():
        appearance_encoder = encoder.AppearanceEncoderModel(**appearance)
    networks = {
        "unet": published.UNet3DConditionModel(**three_dimensional(unet)),
        "appearance": appearance_encoder,
        "control": published.ControlNetModel(**control),
        "autoencoder": AutoencoderKL(**autoencoder),
        "text": CLIPTextModel(CLIPTextConfig(**TEXT)),
    }
    for root, network in networks.items():
        fill(root, network)
        network.eval().requires_grad_(False)
    # The published bank is float16 by default; reference data wants the full precision.
    control_class = published.ReferenceAttentionControl
    control_class.update = functools.partialmethod(control_class.update, dtype=networks["unet"].dtype)
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda self: self  # the published pipeline asks for a GPU by name
    return types.SimpleNamespace(**networks, published=published)


# ---- Inputs and outputs


def inputs() -> dict[str, torch.Tensor]:
    """All inputs, of random numbers."""
    rng = np.random.Generator(np.random.PCG64(1))
    h, w = (side // FACTOR for side in SIZE)
    prompt = [Identifiers.start, *rng.integers(0, Identifiers.start, 20), *[Identifiers.end] * 56]
    arrays = {
        "ids": np.array([Identifiers()([""]).input_ids[0].tolist(), prompt], np.int64),
        "reference": rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8),
        "motion": rng.integers(0, 256, (FRAMES, *SIZE, 3)).astype(np.uint8),
        "latents": rng.standard_normal((1, 4, CLIP, h, w)).astype(np.float32),
    }
    return {name: torch.from_numpy(x) for name, x in arrays.items()}


def single_networks(networks: types.SimpleNamespace, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One call of every network; the UNet reads the bank and the residuals of the calls before."""
    latents, t = x["latents"], torch.tensor([TIME])
    out = {"text": networks.text(x["ids"])[0]}
    image = (x["reference"] / 127.5 - 1).permute(2, 0, 1)[None]
    out["reference_latents"] = networks.autoencoder.encode(image).latent_dist.mean * SCALING
    out["decoded"] = networks.autoencoder.decode(latents[:, :, 0] / SCALING).sample

    control_class = networks.published.ReferenceAttentionControl
    writer = control_class(networks.appearance, mode="write", do_classifier_free_guidance=True)
    reader = control_class(networks.unet, mode="read", do_classifier_free_guidance=True)
    networks.appearance(out["reference_latents"].repeat(2, 1, 1, 1), t, encoder_hidden_states=out["text"])
    for name, module in networks.appearance.named_modules():
        if getattr(module, "bank", None):
            out[f"bank.{name}"] = module.bank[0]

    motion = x["motion"][:CLIP].permute(0, 3, 1, 2) / 255
    skips, middle = networks.control(
        latents[0].transpose(0, 1),
        t,
        encoder_hidden_states=out["text"][1:].repeat(CLIP, 1, 1),
        controlnet_cond=motion,
        conditioning_scale=CONTROL_SCALE,
        return_dict=False,
    )
    residuals = {f"residuals.{i}": skip for i, skip in enumerate(skips)} | {"residuals.middle": middle}
    residuals = {name: r.transpose(0, 1)[None] for name, r in residuals.items()}
    out |= residuals

    reader.update(writer)
    *skips, middle = (r.repeat(2, 1, 1, 1, 1) for r in residuals.values())
    out["prediction"] = networks.unet(
        latents.repeat(2, 1, 1, 1, 1),
        t,
        encoder_hidden_states=out["text"],
        down_block_additional_residuals=skips,
        mid_block_additional_residual=middle,
    ).sample
    reader.clear()
    writer.clear()
    return out


def whole_pipeline(networks: types.SimpleNamespace, x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published pipeline as its demo calls it: the motion is padded with its last frame to whole windows."""
    scheduler = DDIMScheduler(**NOISE)
    pipeline = networks.published.AnimationPipeline(
        vae=networks.autoencoder,
        text_encoder=networks.text,
        tokenizer=Identifiers(),
        unet=networks.unet,
        controlnet=networks.control,
        scheduler=scheduler,
    )
    latents = []
    step = scheduler.step

    def recorded_step(model_output, timestep, sample, eta=0.0, generator=None):
        result = step(model_output, timestep, sample, eta=eta, generator=generator)
        latents.append(result.prev_sample)
        return result

    scheduler.step = recorded_step
    h, w = (side // FACTOR for side in SIZE)
    noise = torch.randn((1, 4, WINDOW, h, w), generator=torch.Generator().manual_seed(SEED))
    motion = np.pad(x["motion"].numpy(), ((0, -FRAMES % WINDOW), (0, 0), (0, 0), (0, 0)), mode="edge")
    video = pipeline(
        "",
        negative_prompt="",
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=SIZE[0],
        width=SIZE[1],
        video_length=len(motion),
        controlnet_condition=motion,
        generator=torch.Generator().manual_seed(SEED),
        appearance_encoder=networks.appearance,
        source_image=x["reference"].numpy(),
    ).videos
    return {
        "noise": noise,
        "pipeline.latents": torch.stack(latents),
        "pipeline.decoded": torch.as_tensor(video)[:, :, list(DECODED)],
    }


@torch.inference_mode()
def compute(networks: types.SimpleNamespace) -> dict[str, torch.Tensor]:
    """All inputs and outputs."""
    x = inputs()
    x |= single_networks(networks, x)
    x |= whole_pipeline(networks, x)
    return {name: value.clone().contiguous() for name, value in x.items()}


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, required=True, help="checkout of magic-research/magic-animate")
    parser.add_argument("--check", action="store_true", help="write nothing, compare with the stored numbers")
    args = parser.parse_args()
    torch.set_num_threads(2)
    networks = make_networks(args.code)
    tensors = compute(networks)
    if not args.check:
        write_weights(networks)
        save_file(tensors, EXPECTED)
        return
    for name, expected in load_file(EXPECTED).items():
        print(f"{relative_error(tensors[name], expected):8.1e}  {name} {tuple(expected.shape)}")
    for name, content in weight_files(networks).items():
        for key, expected in load_file(WEIGHTS / name).items():
            assert torch.equal(content[key], expected.to(content[key].dtype)), f"{name}: {key} differs"


if __name__ == "__main__":
    main()
