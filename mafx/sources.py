"""Where models come from: the bundled one, a run, a folder of published weights. All look alike from here on."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections

from mafx.bundled import SUITABLE, bundled_config, load_bundled
from mafx.commands import expand_home
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.low_rank import apply_update, is_base, read_update
from mafx.media import Size
from mafx.model import Model
from mafx.models.animator import AnimatorConfig
from mafx.models.kernels import fast_dtype
from mafx.pretrained.configs import read_configs
from mafx.pretrained.layout import load_pretrained
from mafx.training.runs import CONFIG_FILE, load_run, model_sizes, read_config

BUNDLED = "bundled"  # the name of the bundled model among several
UPDATE_SUFFIX = ".safetensors"
log = logging.getLogger("mafx")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model that can be loaded, and what is known of it before.

    Attributes:
      name: For people to read.
      config: Sizes of the networks.
      schedule: The noise schedule.
      size: Rows and columns in pixels that the model was trained at.
      settings: Settings that should differ from the defaults of `mafx.Settings`.
      data: What the model was trained on, `config.data` of its training; None where that is not known.
      load: Loads the model in a dtype.
      flags: Flags of sample.py by which it is found.
    """

    name: str
    config: AnimatorConfig
    schedule: Schedule
    size: Size
    settings: dict[str, Any]
    data: ml_collections.ConfigDict | None
    load: Callable[[str], Model]
    flags: tuple[str, ...] = ()


def find_source(
    pretrained: str | None, workdir: str | None, checkpoint: str = "latest", lora: str | None = None
) -> Source:
    """The model of a folder of published weights, of a work folder, or, without both, the bundled one.

    Where `lora` names a file, its low-rank update is added, see `mafx.low_rank`.

    Raises:
      InputError: Where both are given, or a folder or file is not what it should be.
    """
    source = _find_model(pretrained, workdir, checkpoint)
    return _with_update(source, expand_home(lora)) if lora else source


def _find_model(pretrained: str | None, workdir: str | None, checkpoint: str) -> Source:
    if pretrained and workdir:
        raise InputError("expected one of --pretrained and --workdir, found both")
    if pretrained:
        return _pretrained_source(expand_home(pretrained))
    if workdir:
        return _run_source(expand_home(workdir), checkpoint)
    return _trained_source("the bundled model, which knows puppets only", bundled_config(), load_bundled, **SUITABLE)


def find_sources(folder: str | None) -> dict[str, Source]:
    """The bundled model, and those of the sub-folders of a folder, by their names.

    A sub-folder is the work folder of a run, or has published weights. A file MODEL.PERSON.safetensors is a low-rank
    update of the model of that name, and makes one named MODEL.PERSON. What is none of them is left out, and said.

    Raises:
      InputError: There is no such folder, or no model in it.
    """
    found = {BUNDLED: find_source(None, None)}
    if folder is None:
        return found
    path = expand_home(folder)
    if not path.is_dir():
        raise InputError(f"expected a folder of models, found nothing at {path}")
    for inner in sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith(".")):
        is_run = (inner / CONFIG_FILE).exists()
        try:
            found[inner.name] = _run_source(inner, "latest") if is_run else _pretrained_source(inner)
        except InputError as error:
            log.warning("%s is left out: %s", inner, error)
    models = dict(found)
    for file in sorted(path.glob(f"[!.]*{UPDATE_SUFFIX}")):
        try:
            found[file.stem] = _with_update(_model_of(file, models), file)
        except InputError as error:
            log.warning("%s is left out: %s", file, error)
    if len(found) == 1:
        raise InputError(f"expected runs or published weights in the sub-folders of {path}, found none")
    return found


def _model_of(file: Path, models: dict[str, Source]) -> Source:
    """The model to which a file's name says that its update belongs."""
    name = file.stem.rpartition(".")[0]
    if name not in models:
        expected = " or ".join(f"{model}.PERSON{UPDATE_SUFFIX}" for model in models)
        raise InputError(f"expected a low-rank update to be named {expected}, found {file.name}")
    return models[name]


def _pretrained_source(folder: Path) -> Source:
    published = read_configs(folder)
    return Source(
        name=str(folder),
        config=published.config,
        schedule=published.schedule,
        size=published.size,
        settings={},
        data=None,
        load=functools.partial(load_pretrained, folder),
        flags=("--pretrained", str(folder)),
    )


def _run_source(workdir: Path, checkpoint: str) -> Source:
    load = functools.partial(load_run, workdir, checkpoint=checkpoint)
    source = _trained_source(f"{workdir} ({checkpoint} checkpoint)", read_config(workdir), load)
    return dataclasses.replace(source, flags=("--workdir", str(workdir), "--checkpoint", checkpoint))


def _trained_source(
    name: str, config: ml_collections.ConfigDict, load: Callable[[str], Model], **settings: Any
) -> Source:
    """A model that mafx trained with a config, and settings that suit it."""
    return Source(
        name=name,
        config=model_sizes(config),
        schedule=Schedule(**config.schedule),
        size=tuple(config.data.size),
        settings={"guidance_scale": config.show_guidance, **settings},
        data=config.data,
        load=load,
    )


def _with_update(source: Source, path: Path) -> Source:
    """A source whose models have the low-rank update of a file added."""
    update = read_update(path)
    name = f"{source.name} with {path}"

    def load(dtype: str) -> Model:
        model = source.load(dtype)
        if not is_base(model, update):
            log.warning("%s was trained on other weights than those of %s.", path, source.name)
        return dataclasses.replace(apply_update(model, update), source=name)

    return dataclasses.replace(source, name=name, load=load, flags=(*source.flags, "--lora", str(path)))


def default_dtype() -> str:
    """What networks compute in by default. On a CPU, 16 bits gain no speed."""
    return "float32" if jax.default_backend() == "cpu" else fast_dtype()
