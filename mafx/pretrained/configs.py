"""The config.json files beside published weights, read into our table of sizes and written from it."""

import dataclasses
import json
from pathlib import Path

from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.models.animator import AnimatorConfig
from mafx.models.autoencoder import AutoencoderConfig, PatchesConfig
from mafx.models.temporal import TemporalConfig
from mafx.models.text import ACTIVATIONS, TextConfig, Tokenizer
from mafx.models.unet import UNetConfig

UNET = "stable-diffusion-v1-5/unet"
TEXT = "stable-diffusion-v1-5/text_encoder"
AUTOENCODER = "sd-vae-ft-mse"
APPEARANCE = "MagicAnimate/appearance_encoder"
CONTROL = "MagicAnimate/densepose_controlnet"
REQUIRED = (UNET, TEXT, AUTOENCODER, APPEARANCE, CONTROL)
INFERENCE = "inference_config.json"
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}  # ours -> as diffusers says it
PATCHES = "Patches"  # ours, no network of the published tools


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _demand(path: Path, content: dict, expected: dict) -> None:
    """Settings whose other values are other networks."""
    for key, value in expected.items():
        if content.get(key, value) != value:
            raise InputError(
                f"{path}: {key} is {content[key]!r}, but only {value!r} is a Stable Diffusion 1.5 network as MagicAnimate uses it"
            )


def _read_unet(path: Path) -> tuple[UNetConfig, dict]:
    content = _read_json(path)
    fixed = {
        "act_fn": "silu",
        "use_linear_projection": False,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
    }
    fixed |= {
        "only_cross_attention": False,
        "dual_cross_attention": False,
        "class_embed_type": None,
        "mid_block_scale_factor": 1,
    }
    fixed |= {"resnet_time_scale_shift": "default", "transformer_layers_per_block": 1, "center_input_sample": False}
    _demand(path, content, fixed)
    try:
        heads = (
            content["num_attention_heads"]
            if content.get("num_attention_heads") is not None
            else content.get("attention_head_dim", 8)
        )
        if not isinstance(heads, int):
            raise InputError(f"{path}: expected one number of attention heads for all levels, found {heads}")
        config = UNetConfig(
            widths=tuple(content["block_out_channels"]),
            attends=tuple(name.startswith("CrossAttn") for name in content["down_block_types"]),
            layers=content.get("layers_per_block", 2),
            heads=heads,
            groups=content.get("norm_num_groups", 32),
            eps=content.get("norm_eps", 1e-5),
            channels=content.get("in_channels", 4),
            text_width=content["cross_attention_dim"],
            positions=content.get("position_sinusoids", False),
        )
    except KeyError as error:
        raise InputError(f"{path} lacks the setting {error}") from error
    up = content.get("up_block_types")
    if up is not None and tuple(name.startswith("CrossAttn") for name in up) != config.attends[::-1]:
        raise InputError(f"{path}: up_block_types {up} do not mirror down_block_types {content['down_block_types']}")
    return config, content


def read_configs(directory: Path) -> tuple[AnimatorConfig, Schedule]:
    """Sizes of all networks and the noise schedule. Raises InputError where a file is missing a setting or asks for another kind of network."""
    unet, _ = _read_unet(directory / UNET / "config.json")
    control_unet, control = _read_unet(directory / CONTROL / "config.json")
    appearance_unet, _ = _read_unet(directory / APPEARANCE / "config.json")
    for folder, other in ((CONTROL, control_unet), (APPEARANCE, appearance_unet)):
        if other != unet:
            raise InputError(
                f"{folder}/config.json describes another UNet than {UNET}/config.json: expected {unet}, found {other}"
            )
    _demand(directory / CONTROL / "config.json", control, {"controlnet_conditioning_channel_order": "rgb"})

    autoencoder = _read_json(directory / AUTOENCODER / "config.json")
    _demand(
        directory / AUTOENCODER / "config.json", autoencoder, {"act_fn": "silu", "in_channels": 3, "out_channels": 3}
    )
    text = _read_json(directory / TEXT / "config.json")
    _demand(directory / TEXT / "config.json", text, {"model_type": "clip_text_model"})
    inference = _read_json(directory / INFERENCE) if (directory / INFERENCE).is_file() else {}
    try:
        config = AnimatorConfig(
            unet=dataclasses.replace(
                unet,
                temporal=_read_temporal(
                    directory / INFERENCE, inference.get("unet_additional_kwargs", {}), len(unet.widths)
                ),
            ),
            motion_widths=tuple(control.get("conditioning_embedding_out_channels", AnimatorConfig.motion_widths)),
            fusion=inference.get("fusion", AnimatorConfig.fusion),
            autoencoder=_autoencoder(autoencoder),
            text=TextConfig(
                width=text["hidden_size"],
                hidden=text["intermediate_size"],
                layers=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                positions=text.get("max_position_embeddings", 77),
                vocabulary=text.get("vocab_size", 49408),
                activation=text.get("hidden_act", "quick_gelu"),
                eps=text.get("layer_norm_eps", 1e-5),
            ),
        )
    except KeyError as error:
        raise InputError(f"a config.json under {directory} lacks the setting {error}") from error
    if config.text.activation not in ACTIVATIONS:
        raise InputError(
            f"{TEXT}/config.json: hidden_act is {config.text.activation!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    noise = inference.get("noise_scheduler_kwargs", {})
    schedule = Schedule(
        kind=noise.get("beta_schedule", Schedule.kind),
        beta_start=noise.get("beta_start", Schedule.beta_start),
        beta_end=noise.get("beta_end", Schedule.beta_end),
        prediction={kind: name for name, kind in PREDICTION_TYPES.items()}.get(
            kind := noise.get("prediction_type", "epsilon"), kind
        ),
        zero_terminal_snr=noise.get("rescale_betas_zero_snr", False),
    )
    return config, schedule


def _autoencoder(settings: dict) -> AutoencoderConfig | PatchesConfig:
    if settings.get("_class_name") == PATCHES:
        return PatchesConfig(settings["patch_size"], settings["scaling_factor"])
    return AutoencoderConfig(
        widths=tuple(settings["block_out_channels"]),
        layers=settings.get("layers_per_block", 2),
        groups=settings.get("norm_num_groups", 32),
        channels=settings.get("latent_channels", 4),
        scaling=settings.get("scaling_factor", AutoencoderConfig.scaling),
    )


def _autoencoder_json(autoencoder: AutoencoderConfig | PatchesConfig) -> dict:
    if isinstance(autoencoder, PatchesConfig):
        return {"_class_name": PATCHES, "patch_size": autoencoder.factor, "scaling_factor": autoencoder.scaling}
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.21.4",
        "act_fn": "silu",
        "block_out_channels": autoencoder.widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(autoencoder.widths),
        "in_channels": 3,
        "latent_channels": autoencoder.channels,
        "layers_per_block": autoencoder.layers,
        "norm_num_groups": autoencoder.groups,
        "out_channels": 3,
        "scaling_factor": autoencoder.scaling,
        "up_block_types": ["UpDecoderBlock2D"] * len(autoencoder.widths),
    }


def _read_temporal(path: Path, settings: dict, levels: int) -> TemporalConfig:
    kinds = {
        "use_motion_module": True,
        "motion_module_mid_block": False,
        "motion_module_decoder_only": False,
        "motion_module_type": "Vanilla",
    }
    _demand(
        path,
        settings,
        kinds | {"motion_module_resolutions": [2**i for i in range(levels)], "unet_use_cross_frame_attention": False},
    )
    settings = settings.get("motion_module_kwargs", {})
    kinds = {
        "num_transformer_block": 1,
        "attention_block_types": ["Temporal_Self", "Temporal_Self"],
        "temporal_position_encoding": True,
    }
    _demand(path, settings, kinds | {"temporal_attention_dim_div": 1})
    return TemporalConfig(
        heads=settings.get("num_attention_heads", TemporalConfig.heads),
        max_frames=settings.get("temporal_position_encoding_max_len", TemporalConfig.max_frames),
        groups=settings.get("norm_num_groups", TemporalConfig.groups),
    )


def write_configs(directory: Path, config: AnimatorConfig, schedule: Schedule) -> None:
    """Write every JSON file the published tools read beside the weights."""
    unet, autoencoder, text = config.unet, config.autoencoder, config.text
    levels = len(unet.widths)
    common = {
        "_diffusers_version": "0.21.4",
        "act_fn": "silu",
        "attention_head_dim": unet.heads,
        "block_out_channels": unet.widths,
        "cross_attention_dim": unet.text_width,
        "down_block_types": [f"{'CrossAttn' * attends}DownBlock2D" for attends in unet.attends],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.channels,
        "layers_per_block": unet.layers,
        "mid_block_scale_factor": 1,
        "norm_eps": unet.eps,
        "norm_num_groups": unet.groups,
    }
    if (
        unet.positions
    ):  # this and "fusion" below are settings of ours, left out where the published code would do the same
        common["position_sinusoids"] = True
    both = common | {
        "center_input_sample": False,
        "out_channels": unet.channels,
        "sample_size": 64,
        "up_block_types": [f"{'CrossAttn' * attends}UpBlock2D" for attends in unet.attends[::-1]],
    }
    motion = {
        "num_attention_heads": unet.temporal.heads,
        "num_transformer_block": 1,
        "attention_block_types": ["Temporal_Self", "Temporal_Self"],
        "temporal_position_encoding": True,
        "temporal_position_encoding_max_len": unet.temporal.max_frames,
        "temporal_attention_dim_div": 1,
    }
    if (
        unet.temporal.groups != TemporalConfig.groups
    ):  # a setting of ours, which the published code refuses rather than misreads
        motion["norm_num_groups"] = unet.temporal.groups
    noise = {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end, "beta_schedule": schedule.kind}
    if (schedule.prediction, schedule.zero_terminal_snr) != ("epsilon", False):
        noise |= {
            "prediction_type": PREDICTION_TYPES[schedule.prediction],
            "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        }
    scheduler = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    scheduler |= {
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    contents = {
        f"{UNET}/config.json": {"_class_name": "UNet2DConditionModel"} | both,
        f"{APPEARANCE}/config.json": {"_class_name": "AppearanceEncoderModel"} | both,
        f"{CONTROL}/config.json": {"_class_name": "ControlNetModel"}
        | common
        | {"conditioning_embedding_out_channels": config.motion_widths, "controlnet_conditioning_channel_order": "rgb"},
        f"{AUTOENCODER}/config.json": _autoencoder_json(autoencoder),
        f"{TEXT}/config.json": {
            "architectures": ["CLIPTextModel"],
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": text.activation,
            "hidden_size": text.width,
            "intermediate_size": text.hidden,
            "layer_norm_eps": text.eps,
            "max_position_embeddings": text.positions,
            "model_type": "clip_text_model",
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "pad_token_id": 1,
            "vocab_size": text.vocabulary,
        },
        "stable-diffusion-v1-5/scheduler/scheduler_config.json": scheduler,
        "stable-diffusion-v1-5/model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.6.0",
            "scheduler": ["diffusers", "PNDMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        INFERENCE: {
            "unet_additional_kwargs": {
                "unet_use_cross_frame_attention": False,
                "unet_use_temporal_attention": False,
                "use_motion_module": True,
                "motion_module_resolutions": [2**i for i in range(levels)],
                "motion_module_mid_block": False,
                "motion_module_decoder_only": False,
                "motion_module_type": "Vanilla",
                "motion_module_kwargs": motion,
            },
            "noise_scheduler_kwargs": noise,
        }
        | ({} if config.fusion == AnimatorConfig.fusion else {"fusion": config.fusion}),
    }
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """What transformers' CLIPTokenizer needs to know besides the vocabulary."""
    end = "<|endoftext|>"
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.length,
        "bos_token": "<|startoftext|>",
        "eos_token": end,
        "pad_token": end,
        "unk_token": end,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
