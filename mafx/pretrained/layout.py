"""The folder of published weights, loaded strictly into a Model and written back.

DIR/stable-diffusion-v1-5/{unet,text_encoder,tokenizer,scheduler}
DIR/sd-vae-ft-mse
DIR/MagicAnimate/{appearance_encoder,densepose_controlnet,temporal_attention}
DIR/inference_config.json      optional: the temporal transformers' sizes and the noise schedule
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import flax
import jax.numpy as jnp
import numpy as np

from mafx.errors import InputError
from mafx.model import Model
from mafx.models.animator import APPEARANCES, RENDERS, AnimatorConfig, parameter_shapes
from mafx.models.text import Tokenizer
from mafx.pretrained import configs
from mafx.pretrained.formats import TensorFile, open_tensors, write_safetensors, write_torch_archive
from mafx.pretrained.names import current_name, from_published, published_name, published_shape, to_published

log = logging.getLogger("mafx")


@dataclasses.dataclass(frozen=True)
class Part:
    """One weight file: where it lies, which subtree of the parameters it holds, and whether that is the subtree's temporal share."""

    folder: str
    stem: str
    root: str
    temporal: bool = False

    def holds(self, path: tuple[str, ...]) -> bool:
        return path[0] == self.root and self.temporal == any(name.startswith("motion_modules") for name in path)

    def find(self, directory: Path) -> Path | None:
        names = [f"{self.stem}{suffix}" for suffix in (".safetensors", ".fp16.safetensors", ".bin", ".ckpt", ".pth")]
        if self.root == "text":
            names.append("pytorch_model.bin")  # transformers' older name
        return next((path for name in names if (path := directory / self.folder / name).is_file()), None)


DIFFUSERS = "diffusion_pytorch_model"
PARTS = (
    Part("stable-diffusion-v1-5/unet", DIFFUSERS, "unet"),
    Part("MagicAnimate/temporal_attention", "temporal_attention", "unet", temporal=True),
    Part("MagicAnimate/appearance_encoder", DIFFUSERS, "appearance"),
    Part("MagicAnimate/densepose_controlnet", DIFFUSERS, "control"),
    Part("sd-vae-ft-mse", DIFFUSERS, "autoencoder"),
    Part("stable-diffusion-v1-5/text_encoder", "model", "text"),
)
TOKENIZER = "stable-diffusion-v1-5/tokenizer"
IGNORED = ("text_model.embeddings.position_ids",)  # a buffer of older transformers


def load_pretrained(directory: str | Path, dtype: jnp.dtype | str = jnp.float32) -> Model:
    """Load the published layout.

    Every tensor of every file is used exactly once and every parameter filled. `temporal_attention.ckpt` may hold the whole video UNet: then its
    values win over Stable Diffusion's, and the log says how many did. Memory: the parameters in `dtype` and one tensor more.

    Raises: InputError, with all that is missing, unexpected, of another shape or not finite.
    """
    directory = Path(directory)
    files = _open_files(directory, PARTS, configs.REQUIRED)
    config, schedule = configs.read_configs(directory)
    flat = {path: jnp.asarray(x, dtype) for path, x in _read(directory, files, config)}
    return Model(config, flax.traverse_util.unflatten_dict(flat), _read_tokenizer(directory, config), schedule)


def load_stable_diffusion(
    directory: str | Path, config: AnimatorConfig
) -> tuple[dict[tuple[str, ...], np.ndarray], Tokenizer]:
    """What training starts from: the leaves of the parameter tree that a folder in the published layout gives, in main memory, and the tokenizer.

    Stable Diffusion's three networks must be there. MagicAnimate's files are used where they are.

    Raises: InputError, with all that is missing, unexpected, of another shape than `config` has, or not finite.
    """
    directory = Path(directory)
    files = _open_files(directory, [part for part in PARTS if not part.folder.startswith("MagicAnimate/")], ())
    files |= {part: open_tensors(path) for part in PARTS if part not in files and (path := part.find(directory))}
    return dict(_read(directory, files, config)), _read_tokenizer(directory, config)


def _read(
    directory: Path, files: dict[Part, TensorFile], config: AnimatorConfig
) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Every leaf that the files hold, in their dtype."""
    problems = []
    plan = _match(files, flax.traverse_util.flatten_dict(parameter_shapes(config)), problems)
    if problems:
        raise InputError("\n  ".join([f"the weights under {directory} do not fit together:", *problems]))
    for file, name, path in plan:
        x = file.read(name)
        if not np.isfinite(x.astype(np.float32, copy=False)).all():
            problems.append(f"{file.path.relative_to(directory)}: {name} holds NaN or infinity")
        yield path, from_published(path, x)
    if problems:
        raise InputError("\n  ".join([f"the weights under {directory} are damaged:", *problems]))


def _open_files(directory: Path, parts: Sequence[Part], settings: Sequence[str]) -> dict[Part, TensorFile]:
    if not directory.is_dir():
        raise InputError(f"expected a folder of weights, found nothing at {directory}")
    found = {part: part.find(directory) for part in parts}
    missing = [
        f"{part.folder}/{part.stem}.safetensors (or .bin, .ckpt)" for part, path in found.items() if path is None
    ]
    missing += [f"{name}/config.json" for name in settings if not (directory / name / "config.json").is_file()]
    if missing:
        raise InputError("\n  ".join([f"{directory} is not the layout of published weights; missing:", *missing]))
    return {part: open_tensors(path) for part, path in found.items()}


def _match(
    files: dict[Part, TensorFile], shapes: dict, problems: list[str]
) -> list[tuple[TensorFile, str, tuple[str, ...]]]:
    """Which tensor fills which leaf. Whatever does not fit is added to `problems`, and all of it: nobody mends ten names one by one."""
    plan: dict[tuple[str, ...], tuple[TensorFile, str]] = {}
    for part, file in files.items():
        where = f"{part.folder}/{file.path.name}"
        own = {published_name(path): path for path in shapes if part.holds(path)}
        # the temporal file may also replace what came with Stable Diffusion
        others = {published_name(path): path for path in shapes if part.temporal and path[0] == part.root}
        overridden = 0
        names: dict[str, str] = {}
        for name in file.shapes:
            current = current_name(name)
            if current in names:
                problems.append(f"{where}: {name} and {names[current]} are the same tensor")
            names[current] = name
        for current, name in names.items():
            path = own.get(current) or others.get(current)
            if path is None:
                if current not in IGNORED:
                    problems.append(f"{where}: {name} {file.shapes[name]} is not a tensor of this network")
                continue
            expected = published_shape(path, shapes[path].shape)
            if file.shapes[name] != expected:
                problems.append(
                    f"{where}: {name} has shape {file.shapes[name]}, expected {expected} for {'/'.join(path)}"
                )
            overridden += path in plan
            plan[path] = file, name
        problems += [
            f"{where}: {name} {published_shape(path, shapes[path].shape)} is missing, needed for {'/'.join(path)}"
            for name, path in own.items()
            if name not in names
        ]
        if overridden:
            log.info("%s holds the whole video UNet: %d of its tensors replace Stable Diffusion's", where, overridden)
    return [(file, name, path) for path, (file, name) in plan.items()]


def _read_tokenizer(directory: Path, config: AnimatorConfig) -> Tokenizer:
    folder = directory / TOKENIZER
    if not (folder / "vocab.json").is_file():
        log.warning("no vocabulary at %s: only the empty prompt can be used", folder)
        return Tokenizer.without_vocabulary(config.text.vocabulary, config.text.positions)
    return Tokenizer.from_directory(folder, config.text.positions)


def save_pretrained(model: Model, directory: str | Path) -> None:
    """Write a model in the layout `load_pretrained` reads and the published PyTorch tools use, in the dtype of its parameters.

    Reading it back gives bit-equal parameters. Raises InputError where the folder exists and is not empty, and for an ablated model: the layout has
    no place for its parts.
    """
    directory = Path(directory)
    if (model.config.appearance, model.config.renders) != (APPEARANCES[0], RENDERS[0]):
        found = f"{model.config.appearance!r} and {model.config.renders!r}"
        raise InputError(
            f"expected a model with the appearance {APPEARANCES[0]!r} and the renders {RENDERS[0]!r}, found {found}"
        )
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"expected a new or empty folder for the weights, found files in {directory}")
    flat = flax.traverse_util.flatten_dict(model.params)
    for part in PARTS:
        folder = directory / part.folder
        folder.mkdir(parents=True, exist_ok=True)
        tensors = (
            (published_name(path), to_published(path, np.asarray(x)))
            for path, x in sorted(flat.items())
            if part.holds(path)
        )
        if part.temporal:
            write_torch_archive(folder / f"{part.stem}.ckpt", ((f"module.{name}", x) for name, x in tensors))
        else:
            write_safetensors(folder / f"{part.stem}.safetensors", dict(tensors) | _buffers(part, model.config))
    configs.write_configs(directory, model.config, model.schedule)
    if model.tokenizer.vocabulary is not None:
        folder = directory / TOKENIZER
        folder.mkdir(parents=True)
        (folder / "vocab.json").write_text(model.tokenizer.vocabulary, "utf-8")
        (folder / "merges.txt").write_text(model.tokenizer.merges, "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(configs.tokenizer_json(model.tokenizer), indent=2))


def _buffers(part: Part, config: AnimatorConfig) -> dict[str, np.ndarray]:
    return {IGNORED[0]: np.arange(config.text.positions)[None]} if part.root == "text" else {}
