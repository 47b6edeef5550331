"""The JSON files beside published weights: read into the sizes of our networks, and written from them.

The published tools keep one `config.json` per network. `inference_config.json` describes the temporal layers and the
noise schedule; it may be absent, and then the published values hold. Four settings are ours: `position_sinusoids` and
`norm_num_groups` of the temporal layers, `fusion`, and `size`. They are written only where they differ from what the
published code does, which has no such settings.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError, refusals
from mafx.files import Range, check_value, read_json
from mafx.models.animator import AnimatorConfig, check_sizes
from mafx.models.autoencoder import AutoencoderConfig, PatchesConfig
from mafx.models.temporal import TemporalConfig
from mafx.models.text import ACTIVATIONS, END, START, TextConfig, Tokenizer
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


# -- What the files hold, by their own names. Every size is checked as a value before a network is built from it.

Width = Annotated[int, Range(1, 16384)]
Widths = Annotated[tuple[Width, ...], Range(1, 6)]  # one per level
BlockTypes = Annotated[tuple[str, ...], Range(1, 6)]
Layers = Annotated[int, Range(1, 4)]
Heads = Annotated[int, Range(1, 128)]
Groups = Annotated[int, Range(1, 512)]
Channels = Annotated[int, Range(1, 1024)]
Eps = Annotated[float, Range(1e-12, 1e-1)]
Scaling = Annotated[float, Range(1e-3, 1e3)]
Beta = Annotated[float, Range(1e-9, 0.999)]


@dataclasses.dataclass(frozen=True)
class UNetJson:
    """A UNet, the ControlNet or the appearance encoder. The number of heads has two names."""

    block_out_channels: Widths
    down_block_types: BlockTypes
    cross_attention_dim: Width
    up_block_types: BlockTypes | None = None
    layers_per_block: Layers = 2
    num_attention_heads: Any = None
    attention_head_dim: Any = 8
    norm_num_groups: Groups = 32
    norm_eps: Eps = 1e-5
    in_channels: Channels = 4
    position_sinusoids: bool = False
    conditioning_embedding_out_channels: Widths = AnimatorConfig.motion_widths


@dataclasses.dataclass(frozen=True)
class AutoencoderJson:
    """An autoencoder."""

    block_out_channels: Widths
    layers_per_block: Layers = 2
    norm_num_groups: Groups = 32
    latent_channels: Channels = 4
    scaling_factor: Scaling = AutoencoderConfig.scaling


@dataclasses.dataclass(frozen=True)
class PatchesJson:
    """Patches of pixels in the place of an autoencoder."""

    patch_size: Annotated[int, Range(1, 16)]
    scaling_factor: Scaling


@dataclasses.dataclass(frozen=True)
class TextJson:
    """A text tower."""

    hidden_size: Width
    intermediate_size: Annotated[int, Range(1, 2**17)]
    num_hidden_layers: Annotated[int, Range(1, 48)]
    num_attention_heads: Heads
    max_position_embeddings: Annotated[int, Range(2, 4096)] = 77
    vocab_size: Annotated[int, Range(2, 2**20)] = 49408
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Eps = 1e-5


@dataclasses.dataclass(frozen=True)
class TemporalJson:
    """The temporal layers."""

    num_attention_heads: Heads = TemporalConfig.heads
    temporal_position_encoding_max_len: Annotated[int, Range(1, 4096)] = TemporalConfig.max_frames
    norm_num_groups: Groups = TemporalConfig.groups


@dataclasses.dataclass(frozen=True)
class ScheduleJson:
    """The noise schedule."""

    beta_schedule: str = Schedule.kind
    beta_start: Beta = Schedule.beta_start
    beta_end: Beta = Schedule.beta_end
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False


@dataclasses.dataclass(frozen=True)
class InferenceJson:
    """What belongs to no network alone."""

    unet_additional_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    noise_scheduler_kwargs: ScheduleJson = ScheduleJson()
    fusion: str = AnimatorConfig.fusion
    size: tuple[Annotated[int, Range(1, 16384)], Annotated[int, Range(1, 16384)]] = PUBLISHED_SIZE


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
    content = read_json(path) if path.exists() else {}
    inference = check_value(content, InferenceJson, str(path))
    temporal = _read_temporal(path, inference.unet_additional_kwargs, levels=len(unet.widths))
    motion_widths = _read_motion_widths(directory / CONTROL / "config.json")
    autoencoder = _read_autoencoder(directory / AUTOENCODER / "config.json")
    text = _read_text(directory / TEXT / "config.json")
    with refusals(str(path)):
        config = AnimatorConfig(
            unet=dataclasses.replace(unet, temporal=temporal),
            motion_widths=motion_widths,
            fusion=inference.fusion,
            autoencoder=autoencoder,
            text=text,
        )
        schedule = _schedule(inference.noise_scheduler_kwargs)
    with refusals(f"the networks of {directory} do not fit together"):
        check_sizes(config)
    return PublishedConfigs(config, schedule, inference.size)


def _read(path: Path, kind: Any, fixed: dict[str, Any]) -> Any:
    content = read_json(path)
    _demand(path, content, fixed)
    return check_value(content, kind, str(path))


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
    content = _read(path, UNetJson, FIXED_UNET)
    attends = _attends(content.down_block_types)
    if content.up_block_types is not None and _attends(content.up_block_types) != attends[::-1]:
        raise InputError(
            f"{path}: up_block_types {content.up_block_types} do not mirror down_block_types {content.down_block_types}"
        )
    return UNetConfig(
        widths=content.block_out_channels,
        attends=attends,
        layers=content.layers_per_block,
        heads=_heads(path, content),
        groups=content.norm_num_groups,
        eps=content.norm_eps,
        channels=content.in_channels,
        text_width=content.cross_attention_dim,
        positions=content.position_sinusoids,
    )


def _attends(block_types: Sequence[str]) -> tuple[bool, ...]:
    return tuple(name.startswith("CrossAttn") for name in block_types)


def _heads(path: Path, content: UNetJson) -> int:
    """The number of attention heads, which the published files call `attention_head_dim`."""
    heads = content.attention_head_dim if content.num_attention_heads is None else content.num_attention_heads
    if isinstance(heads, list):
        raise InputError(f"{path}: expected one number of attention heads for all levels, found {heads}")
    return check_value(heads, Heads, f"{path}: attention_head_dim")


def _read_motion_widths(path: Path) -> tuple[int, ...]:
    return _read(path, UNetJson, FIXED_CONTROL).conditioning_embedding_out_channels


def _read_autoencoder(path: Path) -> AutoencoderConfig | PatchesConfig:
    if read_json(path).get("_class_name") == PATCHES:
        patches = _read(path, PatchesJson, FIXED_AUTOENCODER)
        return PatchesConfig(patches.patch_size, patches.scaling_factor)
    content = _read(path, AutoencoderJson, FIXED_AUTOENCODER)
    return AutoencoderConfig(
        widths=content.block_out_channels,
        layers=content.layers_per_block,
        groups=content.norm_num_groups,
        channels=content.latent_channels,
        scaling=content.scaling_factor,
    )


def _read_text(path: Path) -> TextConfig:
    content = _read(path, TextJson, FIXED_TEXT)
    if content.hidden_act not in ACTIVATIONS:
        raise InputError(f"{path}: hidden_act is {content.hidden_act!r}, expected one of {', '.join(ACTIVATIONS)}")
    return TextConfig(
        width=content.hidden_size,
        hidden=content.intermediate_size,
        layers=content.num_hidden_layers,
        heads=content.num_attention_heads,
        positions=content.max_position_embeddings,
        vocabulary=content.vocab_size,
        activation=content.hidden_act,
        eps=content.layer_norm_eps,
    )


def _read_temporal(path: Path, content: dict, levels: int) -> TemporalConfig:
    _demand(path, content, FIXED_INFERENCE | {"motion_module_resolutions": _resolutions(levels)})
    settings = check_value(content.get("motion_module_kwargs", {}), dict[str, Any], f"{path}: motion_module_kwargs")
    _demand(path, settings, FIXED_TEMPORAL)
    temporal = check_value(settings, TemporalJson, f"{path}: motion_module_kwargs")
    return TemporalConfig(
        heads=temporal.num_attention_heads,
        max_frames=temporal.temporal_position_encoding_max_len,
        groups=temporal.norm_num_groups,
    )


def _resolutions(levels: int) -> list[int]:
    """The reductions in resolution at which a published UNet has temporal layers: at all levels."""
    return [2**i for i in range(levels)]


def _schedule(settings: ScheduleJson) -> Schedule:
    words = {published: ours for ours, published in PREDICTION_TYPES.items()}
    return Schedule(
        kind=settings.beta_schedule,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        prediction=words.get(settings.prediction_type, settings.prediction_type),
        zero_terminal_snr=settings.rescale_betas_zero_snr,
    )


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
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
