"""The folder of published weights: loaded strictly into a Model, and written from one.

    DIR/stable-diffusion-v1-5/{unet,text_encoder,tokenizer,scheduler}
    DIR/sd-vae-ft-mse
    DIR/MagicAnimate/{appearance_encoder,densepose_controlnet,temporal_attention}
    DIR/inference_config.json      optional: sizes of the temporal layers, the noise schedule, the size in pixels

Loading is strict in both directions: each tensor of each file is used exactly once, and each parameter is filled.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np

from mafx.commands import expand_home
from mafx.errors import InputError
from mafx.interrupts import partial_path
from mafx.model import ORIGIN, Model, network_dtype
from mafx.models.animator import APPEARANCES, FRAMES, RENDERS, AnimatorConfig, parameter_shapes
from mafx.models.text import Tokenizer
from mafx.placing import host_array
from mafx.pretrained import configs
from mafx.pretrained.configs import PublishedConfigs
from mafx.pretrained.formats import open_tensors
from mafx.pretrained.names import (
    LeafPath,
    current_name,
    from_published,
    published_name,
    published_shape,
    to_published,
)
from mafx.pretrained.safetensors_files import write_safetensors
from mafx.pretrained.tensors import TensorFile
from mafx.pretrained.torch_files import write_torch_archive
from mafx.stamps import (
    STAMP_FILE,
    Facts,
    array_sums,
    compare_facts,
    fingerprint,
    hash_of,
    read_stamp,
    write_stamp,
)

log = logging.getLogger("mafx")
SUFFIXES = (".safetensors", ".fp16.safetensors", ".bin", ".ckpt", ".pth")  # of weight files, the preferred one first


@dataclasses.dataclass(frozen=True)
class Part:
    """One weight file.

    Attributes:
      folder: Where it lies in the folder of weights.
      stem: Its name without the suffix.
      root: The top-level subtree of the parameters that it belongs to.
      temporal: Whether it holds the temporal layers of that subtree, or all others.
    """

    folder: str
    stem: str
    root: str
    temporal: bool = False

    def holds(self, path: LeafPath) -> bool:
        """Whether the leaf at `path` belongs into this file."""
        return path[0] == self.root and self.temporal == any(name.startswith("motion_modules") for name in path)

    def find(self, directory: Path) -> Path | None:
        """The file of this part under `directory`, in whichever format it is there."""
        names = [f"{self.stem}{suffix}" for suffix in SUFFIXES]
        if self.root == "text":
            names.append("pytorch_model.bin")  # transformers' older name
        paths = (directory / self.folder / name for name in names)
        return next((path for path in paths if path.is_file()), None)


DIFFUSERS = "diffusion_pytorch_model"
PARTS = (
    Part(configs.UNET, DIFFUSERS, "unet"),
    Part("MagicAnimate/temporal_attention", "temporal_attention", "unet", temporal=True),
    Part(configs.APPEARANCE, DIFFUSERS, "appearance"),
    Part(configs.CONTROL, DIFFUSERS, "control"),
    Part(configs.AUTOENCODER, DIFFUSERS, "autoencoder"),
    Part(configs.TEXT, "model", "text"),
)
PARTS_FACT = "parts"  # the fact of a stamp that has a fingerprint for each folder
TOKENIZER = f"{configs.STABLE_DIFFUSION}/tokenizer"
POSITION_IDS = "text_model.embeddings.position_ids"  # 0, 1, 2, ...: older transformers keep them among the weights


# -- Loading


def load_pretrained(directory: str | Path, dtype: jnp.dtype | str = jnp.float32) -> Model:
    """Load the published layout.

    `temporal_attention.ckpt` may hold the whole video UNet. Then its tensors replace Stable Diffusion's, and the log
    says how many did.

    Args:
      directory: The folder of weights; `~` is the home folder.
      dtype: Of the parameters, in which the networks will compute.

    Returns:
      The model. While it is loaded, the memory in use is that of its parameters and of one tensor more. They wait in
        main memory, and an animation brings them to its device.

    Raises:
      InputError: The files do not fit together. The message lists all tensors that are missing, unexpected, of another
        shape or not finite. Or networks do not compute in this dtype.
    """
    directory, dtype = expand_home(directory), network_dtype(dtype)
    files = _open_files(directory, PARTS, configs.REQUIRED)
    published = configs.read_configs(directory)
    stamp = read_stamp(directory / STAMP_FILE) or {}
    flat = {path: host_array(x, dtype) for path, x in _read(directory, files, published.config)}
    return Model(
        config=published.config,
        params=flax.traverse_util.unflatten_dict(flat),
        tokenizer=_read_tokenizer(directory, published.config),
        schedule=published.schedule,
        size=published.size,
        source=str(directory),
        origin={name: x for name, x in stamp.items() if name in ORIGIN},
    )


def check_pretrained(directory: str | Path) -> None:
    """Check that a folder has the published layout: names and shapes of all tensors, which are not read themselves.

    Args:
      directory: The folder of weights; `~` is the home folder.

    Raises:
      InputError: A file is missing or damaged, or the files do not fit together.
    """
    directory = expand_home(directory)
    files = _open_files(directory, PARTS, configs.REQUIRED)
    config = configs.read_configs(directory).config
    _find_sources(directory, files, config)
    _read_tokenizer(directory, config)


def load_stable_diffusion(
    directory: str | Path, config: AnimatorConfig
) -> tuple[dict[LeafPath, np.ndarray], Tokenizer]:
    """Load what a training starts from.

    Args:
      directory: A folder in the published layout; `~` is the home folder. Stable Diffusion's files must be there.
        MagicAnimate's are used if they are there.
      config: Sizes of the networks. The JSON files of the folder are not read.

    Returns:
      The leaves of the parameter tree that the files hold, by path, in main memory and in the dtype of the files; and
      the tokenizer.

    Raises:
      InputError: A file is missing. Or tensors are missing, unexpected, not finite, or of a shape that `config` does
        not have; the message lists all.
    """
    directory = expand_home(directory)
    required = [part for part in PARTS if not part.folder.startswith("MagicAnimate/")]
    files = _open_files(directory, required, settings=())
    for part in PARTS:
        path = part.find(directory)
        if part not in files and path is not None:
            files[part] = open_tensors(path)
    return dict(_read(directory, files, config)), _read_tokenizer(directory, config)


def _open_files(directory: Path, parts: Sequence[Part], settings: Sequence[str]) -> dict[Part, TensorFile]:
    """Open the weight files of `parts`, and check that there is a config.json in the folders `settings`."""
    if not directory.is_dir():
        raise InputError(f"expected a folder of weights, found nothing at {directory}")
    paths = {part: part.find(directory) for part in parts}
    missing = [
        f"{part.folder}/{part.stem}.safetensors (or .bin, .ckpt)" for part, path in paths.items() if path is None
    ]
    missing += [f"{name}/config.json" for name in settings if not (directory / name / "config.json").is_file()]
    if missing:
        raise InputError("\n  ".join([f"{directory} is not the layout of published weights; missing:", *missing]))
    return {part: open_tensors(path) for part, path in paths.items() if path is not None}


def _read(
    directory: Path, files: dict[Part, TensorFile], config: AnimatorConfig
) -> Iterator[tuple[LeafPath, np.ndarray]]:
    """All leaves that the files hold, one after another, in their dtype."""
    sources, problems = _find_sources(directory, files, config), []
    sums: dict[str, dict[str, list]] = {}  # by folders, of tensors as they are in the files
    for path, (file, name) in sources.items():
        x = file.read(name)
        sums.setdefault(_folder_of(path), {}).update(array_sums({"/".join(path): from_published(path, x)}))
        if not np.isfinite(x.astype(np.float32, copy=False)).all():
            problems.append(f"{file.path.relative_to(directory)}: {name} holds NaN or infinity")
        yield path, from_published(path, x)
    if problems:
        raise InputError("\n  ".join([f"the weights under {directory} are damaged:", *problems]))
    _check_stamp(directory, {folder: hash_of(folder_sums) for folder, folder_sums in sums.items()})


def _find_sources(
    directory: Path, files: dict[Part, TensorFile], config: AnimatorConfig
) -> dict[LeafPath, tuple[TensorFile, str]]:
    """The file and the name of the tensor for each leaf. Raises InputError where the files do not fit together."""
    sources, problems = _match(files, flax.traverse_util.flatten_dict(parameter_shapes(config)))
    if problems:
        raise InputError("\n  ".join([f"the weights under {directory} do not fit together:", *problems]))
    return sources


def _folder_of(path: LeafPath) -> str:
    """The folder that a leaf is written to."""
    return next(part.folder for part in PARTS if part.holds(path))


def _check_stamp(directory: Path, found: dict[str, str]) -> None:
    """Compare fingerprints with those of the folder's stamp, which only folders that mafx wrote have."""
    stamp = read_stamp(directory / STAMP_FILE)
    if stamp is not None:
        advice = f"write the weights again, or remove {STAMP_FILE} if they were changed on purpose"
        known = {folder: stamp.get(PARTS_FACT, {}).get(folder) for folder in found}
        compare_facts(found, known, f"the folder of weights {directory}", advice)


def _match(
    files: dict[Part, TensorFile], shapes: dict[LeafPath, jax.ShapeDtypeStruct]
) -> tuple[dict[LeafPath, tuple[TensorFile, str]], list[str]]:
    """The file and the name of the tensor for each leaf, and all problems with all files, to be mended together."""
    sources: dict[LeafPath, tuple[TensorFile, str]] = {}
    problems = []
    for part, file in files.items():
        names, complaints = _match_file(part, file, shapes)
        problems += complaints
        replaced = len(names.keys() & sources.keys())
        if replaced:
            label = _label(part, file)
            log.info("%s holds the whole video UNet: %d of its tensors replace Stable Diffusion's", label, replaced)
        sources |= {path: (file, name) for path, name in names.items()}
    return sources, problems


def _match_file(
    part: Part, file: TensorFile, shapes: dict[LeafPath, jax.ShapeDtypeStruct]
) -> tuple[dict[LeafPath, str], list[str]]:
    """The name in `file` of the tensor for each leaf that it holds, and all problems."""
    label = _label(part, file)
    required = {published_name(path): path for path in shapes if part.holds(path)}
    # The temporal file may hold the rest of its UNet too.
    welcome = {published_name(path): path for path in shapes if part.temporal and path[0] == part.root}
    names, problems = _current_names(label, file)
    matched = {}
    for current, name in names.items():
        path = required.get(current) or welcome.get(current)
        if path is not None:
            matched[path] = name
        elif current != POSITION_IDS:
            problems.append(f"{label}: {name} {file.shapes[name]} is not a tensor of this network")
    for path, name in matched.items():
        expected = published_shape(path, shapes[path].shape)
        if file.shapes[name] != expected:
            leaf = "/".join(path)
            problems.append(f"{label}: {name} has shape {file.shapes[name]}, expected {expected} for {leaf}")
    for current, path in required.items():
        if current not in names:
            expected = published_shape(path, shapes[path].shape)
            problems.append(f"{label}: {current} {expected} is missing, needed for {'/'.join(path)}")
    return matched, problems


def _current_names(label: str, file: TensorFile) -> tuple[dict[str, str], list[str]]:
    """Current name -> name in the file, and a problem for each name that two tensors share."""
    names: dict[str, str] = {}
    problems = []
    for name in file.shapes:
        current = current_name(name)
        if current in names:
            problems.append(f"{label}: {name} and {names[current]} are the same tensor")
        names[current] = name
    return names, problems


def _label(part: Part, file: TensorFile) -> str:
    return f"{part.folder}/{file.path.name}"


def _read_tokenizer(directory: Path, config: AnimatorConfig) -> Tokenizer:
    folder = directory / TOKENIZER
    if not (folder / "vocab.json").is_file():
        log.warning("no vocabulary at %s: only the empty prompt can be used", folder)
        return Tokenizer.without_vocabulary(config.text.vocabulary, config.text.positions)
    return Tokenizer.from_directory(folder, config.text)


# -- Saving


def save_pretrained(model: Model, directory: str | Path) -> None:
    """Write a model in the published layout, which `load_pretrained` and the published PyTorch tools read.

    Reading it back gives parameters that are equal bit for bit.

    Args:
      model: The model; the files get the dtype of its parameters.
      directory: A new or empty folder; `~` is the home folder.

    Raises:
      InputError: The folder is not empty, or cannot be written; then nothing of it is left. Or the layout has no place
        for a part of the model: it is an ablation, or it has no temporal layers.
    """
    directory = expand_home(directory)
    for name, (published, *_) in {"appearance": APPEARANCES, "renders": RENDERS, "frames": FRAMES}.items():
        if (found := getattr(model.config, name)) != published:
            raise InputError(f"expected a model with networks.{name} {published!r}, found {found!r}")
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"expected a new or empty folder for the weights, found files in {directory}")
    partial = directory.absolute().with_name(f".{directory.name}.part")
    try:
        with partial_path(partial):
            _write_all(model, partial)
            os.replace(partial, directory)
    except OSError as error:
        raise InputError(f"cannot write the weights into {directory}: {error}") from error


def _write_all(model: Model, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # of an export that was killed
    configs.write_configs(directory, PublishedConfigs(model.config, model.schedule, model.size))
    _write_tokenizer(directory / TOKENIZER, model.tokenizer)
    leaves = sorted(flax.traverse_util.flatten_dict(model.params).items())
    parts: Facts = {}
    for part in PARTS:
        own = [(path, x) for path, x in leaves if part.holds(path)]
        _write_part(directory, part, own)
        parts[part.folder] = fingerprint({"/".join(path): x for path, x in own})
    write_stamp(directory / STAMP_FILE, model.stamp() | {PARTS_FACT: parts})


def _write_part(directory: Path, part: Part, leaves: Sequence[tuple[LeafPath, jax.Array]]) -> None:
    folder = directory / part.folder
    folder.mkdir(parents=True, exist_ok=True)
    tensors = ((published_name(path), to_published(path, np.asarray(x))) for path, x in leaves)
    if part.temporal:
        named = ((f"module.{name}", x) for name, x in tensors)
        write_torch_archive(folder / f"{part.stem}.ckpt", named, training=True)
        return
    if part.folder == configs.UNET:  # the only kind that MagicAnimate's loader opens there
        write_torch_archive(folder / f"{part.stem}.bin", tensors, training=False)
        return
    contents = dict(tensors)
    if part.root == "text":
        positions = len(contents["text_model.embeddings.position_embedding.weight"])
        contents[POSITION_IDS] = np.arange(positions)[None]
    write_safetensors(folder / f"{part.stem}.safetensors", contents)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    if tokenizer.vocabulary is None or tokenizer.merges is None:
        return
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(tokenizer.vocabulary, "utf-8")
    (folder / "merges.txt").write_text(tokenizer.merges, "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(configs.tokenizer_json(tokenizer), indent=2))
