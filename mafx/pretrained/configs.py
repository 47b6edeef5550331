"""The JSON files beside published weights: read into the sizes of our networks, and written from them.

The published tools keep one `config.json` per network. `inference_config.json` describes the temporal layers and the
noise schedule; it may be absent, and then the published values hold. Four settings are ours: `position_sinusoids` and
`norm_num_groups` of the temporal layers, `fusion`, and `size`. They are written only where they differ from what the
published code does, which has no such settings.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.models.animator import AnimatorConfig
from mafx.models.autoencoder import AutoencoderConfig, PatchesConfig
from mafx.models.temporal import TemporalConfig
from mafx.models.text import ACTIVATIONS, TextConfig, Tokenizer
from mafx.models.unet import UNetConfig

STABLE_DIFFUSION = "stable-diffusion-v1-5"
UNET = f"{STABLE_DIFFUSION}/unet"
TEXT = f"{STABLE_DIFFUSION}/text_encoder"
AUTOENCODER = "sd-vae-ft-mse"
APPEARANCE = "MagicAnimate/appearance_encoder"
CONTROL = "MagicAnimate/densepose_controlnet"
REQUIRED = (UNET, TEXT, AUTOENCODER, APPEARANCE, CONTROL)  # folders that must have a config.json
INFERENCE = "inference_config.json"
PUBLISHED_SIZE = (512, 512)
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}  # our word -> that of diffusers
PATCHES = "Patches"  # class name of our patches of pixels, which no published tool knows
END_OF_TEXT = "<|endoftext|>"

# Settings with one known value each. A file that says otherwise describes another network.
FIXED_UNET = {
    "act_fn": "silu",
    "use_linear_projection": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": 1,
    "center_input_sample": False,
}
FIXED_CONTROL = {"controlnet_conditioning_channel_order": "rgb"}
FIXED_AUTOENCODER = {"act_fn": "silu", "in_channels": 3, "out_channels": 3}
FIXED_TEXT = {"model_type": "clip_text_model"}
FIXED_INFERENCE = {  # and motion_module_resolutions, one per level
    "use_motion_module": True,
    "motion_module_mid_block": False,
    "motion_module_decoder_only": False,
    "motion_module_type": "Vanilla",
    "unet_use_cross_frame_attention": False,
}
FIXED_TEMPORAL = {
    "num_transformer_block": 1,
    "attention_block_types": ["Temporal_Self", "Temporal_Self"],
    "temporal_position_encoding": True,
    "temporal_attention_dim_div": 1,
}


@dataclasses.dataclass(frozen=True)
class PublishedConfigs:
    """What the JSON files of a folder of weights say.

    Attributes:
      config: Sizes of all networks.
      schedule: The noise schedule.
      size: Rows and columns in pixels that the model was trained at.
    """

    config: AnimatorConfig
    schedule: Schedule = Schedule()
    size: tuple[int, int] = PUBLISHED_SIZE


# -- Reading


def read_configs(directory: Path) -> PublishedConfigs:
    """Read the JSON files of a folder in the published layout. The weights are not opened.

    Args:
      directory: The folder, see `mafx.pretrained.layout`.

    Raises:
      InputError: A file or a setting is missing, or a file asks for a network that is not MagicAnimate's.
    """
    unet = _read_unets(directory)
    path = directory / INFERENCE
    inference = _read_json(path) if path.is_file() else {}
    temporal = _read_temporal(path, inference.get("unet_additional_kwargs", {}), levels=len(unet.widths))
    motion_widths = _read_motion_widths(directory / CONTROL / "config.json")
    autoencoder = _read_autoencoder(directory / AUTOENCODER / "config.json")
    text = _read_text(directory / TEXT / "config.json")
    with _complaints_about(path):
        return PublishedConfigs(
            config=AnimatorConfig(
                unet=dataclasses.replace(unet, temporal=temporal),
                motion_widths=motion_widths,
                fusion=inference.get("fusion", AnimatorConfig.fusion),
                autoencoder=autoencoder,
                text=text,
            ),
            schedule=_schedule(inference.get("noise_scheduler_kwargs", {})),
            size=_size(inference.get("size", PUBLISHED_SIZE)),
        )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


@contextlib.contextmanager
def _complaints_about(path: Path) -> Iterator[None]:
    """Name the file in complaints about missing settings and unknown values."""
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{path} lacks the setting {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _demand(path: Path, content: dict, expected: dict) -> None:
    for key, value in expected.items():
        if content.get(key, value) != value:
            raise InputError(
                f"{path}: {key} is {content[key]!r}, but only {value!r} is a Stable Diffusion 1.5 network as "
                "MagicAnimate uses it"
            )


def _read_unets(directory: Path) -> UNetConfig:
    """The sizes that the denoising UNet, the ControlNet and the appearance encoder must have in common."""
    unet = _read_unet(directory / UNET / "config.json")
    for folder in (CONTROL, APPEARANCE):
        other = _read_unet(directory / folder / "config.json")
        if other != unet:
            raise InputError(
                f"{folder}/config.json describes another UNet than {UNET}/config.json: expected {unet}, found {other}"
            )
    return unet


def _read_unet(path: Path) -> UNetConfig:
    content = _read_json(path)
    _demand(path, content, FIXED_UNET)
    with _complaints_about(path):
        down = content["down_block_types"]
        config = UNetConfig(
            widths=tuple(content["block_out_channels"]),
            attends=_attends(down),
            layers=content.get("layers_per_block", 2),
            heads=_heads(content),
            groups=content.get("norm_num_groups", 32),
            eps=content.get("norm_eps", 1e-5),
            channels=content.get("in_channels", 4),
            text_width=content["cross_attention_dim"],
            positions=content.get("position_sinusoids", False),
        )
    up = content.get("up_block_types")
    if up is not None and _attends(up) != config.attends[::-1]:
        raise InputError(f"{path}: up_block_types {up} do not mirror down_block_types {down}")
    return config


def _attends(block_types: Sequence[str]) -> tuple[bool, ...]:
    return tuple(name.startswith("CrossAttn") for name in block_types)


def _heads(content: dict) -> int:
    """The number of attention heads, which the published files call `attention_head_dim`."""
    heads = content.get("num_attention_heads")
    if heads is None:
        heads = content.get("attention_head_dim", 8)
    if not isinstance(heads, int):
        raise ValueError(f"expected one number of attention heads for all levels, found {heads}")
    return heads


def _read_motion_widths(path: Path) -> tuple[int, ...]:
    content = _read_json(path)
    _demand(path, content, FIXED_CONTROL)
    return tuple(content.get("conditioning_embedding_out_channels", AnimatorConfig.motion_widths))


def _read_autoencoder(path: Path) -> AutoencoderConfig | PatchesConfig:
    content = _read_json(path)
    _demand(path, content, FIXED_AUTOENCODER)
    with _complaints_about(path):
        if content.get("_class_name") == PATCHES:
            return PatchesConfig(content["patch_size"], content["scaling_factor"])
        return AutoencoderConfig(
            widths=tuple(content["block_out_channels"]),
            layers=content.get("layers_per_block", 2),
            groups=content.get("norm_num_groups", 32),
            channels=content.get("latent_channels", 4),
            scaling=content.get("scaling_factor", AutoencoderConfig.scaling),
        )


def _read_text(path: Path) -> TextConfig:
    content = _read_json(path)
    _demand(path, content, FIXED_TEXT)
    with _complaints_about(path):
        config = TextConfig(
            width=content["hidden_size"],
            hidden=content["intermediate_size"],
            layers=content["num_hidden_layers"],
            heads=content["num_attention_heads"],
            positions=content.get("max_position_embeddings", 77),
            vocabulary=content.get("vocab_size", 49408),
            activation=content.get("hidden_act", "quick_gelu"),
            eps=content.get("layer_norm_eps", 1e-5),
        )
    if config.activation not in ACTIVATIONS:
        raise InputError(f"{path}: hidden_act is {config.activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    return config


def _read_temporal(path: Path, content: dict, levels: int) -> TemporalConfig:
    _demand(path, content, FIXED_INFERENCE | {"motion_module_resolutions": _resolutions(levels)})
    settings = content.get("motion_module_kwargs", {})
    _demand(path, settings, FIXED_TEMPORAL)
    return TemporalConfig(
        heads=settings.get("num_attention_heads", TemporalConfig.heads),
        max_frames=settings.get("temporal_position_encoding_max_len", TemporalConfig.max_frames),
        groups=settings.get("norm_num_groups", TemporalConfig.groups),
    )


def _resolutions(levels: int) -> list[int]:
    """The reductions in resolution at which a published UNet has temporal layers: at all levels."""
    return [2**i for i in range(levels)]


def _schedule(settings: dict) -> Schedule:
    words = {published: ours for ours, published in PREDICTION_TYPES.items()}
    prediction = settings.get("prediction_type", "epsilon")
    return Schedule(
        kind=settings.get("beta_schedule", Schedule.kind),
        beta_start=settings.get("beta_start", Schedule.beta_start),
        beta_end=settings.get("beta_end", Schedule.beta_end),
        prediction=words.get(prediction, prediction),
        zero_terminal_snr=settings.get("rescale_betas_zero_snr", False),
    )


def _size(sides: object) -> tuple[int, int]:
    match sides:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    raise ValueError(f"expected size as [rows, columns] in pixels, found {sides!r}")


# -- Writing


def write_configs(directory: Path, configs: PublishedConfigs) -> None:
    """Write every JSON file that the published tools read beside the weights, but for the tokenizer's.

    Args:
      directory: The folder to write into. Folders that are missing are made.
      configs: What the files are to say. `read_configs` gives an equal value.

    Raises:
      InputError: The UNet has no temporal layers. Nothing has been written then.
    """
    config = configs.config
    contents = {
        f"{UNET}/config.json": _unet_json(config.unet, "UNet2DConditionModel"),
        f"{APPEARANCE}/config.json": _unet_json(config.unet, "AppearanceEncoderModel"),
        f"{CONTROL}/config.json": _control_json(config),
        f"{AUTOENCODER}/config.json": _autoencoder_json(config.autoencoder),
        f"{TEXT}/config.json": _text_json(config.text),
        f"{STABLE_DIFFUSION}/scheduler/scheduler_config.json": SCHEDULER,
        f"{STABLE_DIFFUSION}/model_index.json": MODEL_INDEX,
        INFERENCE: _inference_json(configs),
    }
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")


SCHEDULER = {  # Stable Diffusion's own, which MagicAnimate overrides by inference_config.json
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.6.0",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _encoder_json(unet: UNetConfig, class_name: str) -> dict:
    """The settings that UNets and ControlNets share."""
    content = {
        "_class_name": class_name,
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
    return content | ({"position_sinusoids": True} if unet.positions else {})


def _unet_json(unet: UNetConfig, class_name: str) -> dict:
    return _encoder_json(unet, class_name) | {
        "center_input_sample": False,
        "out_channels": unet.channels,
        "sample_size": 64,
        "up_block_types": [f"{'CrossAttn' * attends}UpBlock2D" for attends in unet.attends[::-1]],
    }


def _control_json(config: AnimatorConfig) -> dict:
    return (
        _encoder_json(config.unet, "ControlNetModel")
        | {"conditioning_embedding_out_channels": config.motion_widths}
        | FIXED_CONTROL
    )


def _autoencoder_json(autoencoder: AutoencoderConfig | PatchesConfig) -> dict:
    if isinstance(autoencoder, PatchesConfig):
        return {"_class_name": PATCHES, "patch_size": autoencoder.factor, "scaling_factor": autoencoder.scaling}
    levels = len(autoencoder.widths)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.21.4",
        "act_fn": "silu",
        "block_out_channels": autoencoder.widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": 3,
        "latent_channels": autoencoder.channels,
        "layers_per_block": autoencoder.layers,
        "norm_num_groups": autoencoder.groups,
        "out_channels": 3,
        "scaling_factor": autoencoder.scaling,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _text_json(text: TextConfig) -> dict:
    return {
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
    }


def _inference_json(configs: PublishedConfigs) -> dict:
    unet = configs.config.unet
    if unet.temporal is None:
        raise InputError("expected a UNet with temporal layers, found one without: the published layout needs them")
    content: dict[str, object] = {
        "unet_additional_kwargs": {
            "unet_use_cross_frame_attention": False,
            "unet_use_temporal_attention": False,
            "use_motion_module": True,
            "motion_module_resolutions": _resolutions(len(unet.widths)),
            "motion_module_mid_block": False,
            "motion_module_decoder_only": False,
            "motion_module_type": "Vanilla",
            "motion_module_kwargs": _temporal_json(unet.temporal),
        },
        "noise_scheduler_kwargs": _schedule_json(configs.schedule),
    }
    if configs.config.fusion != AnimatorConfig.fusion:
        content["fusion"] = configs.config.fusion
    if configs.size != PUBLISHED_SIZE:
        content["size"] = configs.size
    return content


def _temporal_json(temporal: TemporalConfig) -> dict:
    content = {
        "num_attention_heads": temporal.heads,
        "num_transformer_block": 1,
        "attention_block_types": ["Temporal_Self", "Temporal_Self"],
        "temporal_position_encoding": True,
        "temporal_position_encoding_max_len": temporal.max_frames,
        "temporal_attention_dim_div": 1,
    }
    if temporal.groups != TemporalConfig.groups:  # the published code refuses this setting, which beats misreading it
        content["norm_num_groups"] = temporal.groups
    return content


def _schedule_json(schedule: Schedule) -> dict:
    content = {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end, "beta_schedule": schedule.kind}
    if (schedule.prediction, schedule.zero_terminal_snr) != ("epsilon", False):
        content["prediction_type"] = PREDICTION_TYPES[schedule.prediction]
        content["rescale_betas_zero_snr"] = schedule.zero_terminal_snr
    return content


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """The settings of transformers' CLIPTokenizer beside its vocabulary, for `tokenizer_config.json`."""
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": tokenizer.length,
        "bos_token": "<|startoftext|>",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
