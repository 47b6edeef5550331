"""Where models come from: the bundled one, a run, a folder of published weights. All look alike from here on."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mafx.bundled import bundled_config, load_bundled
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.media import Size
from mafx.model import Model
from mafx.models.animator import AnimatorConfig
from mafx.pretrained.configs import read_configs
from mafx.pretrained.layout import load_pretrained
from mafx.training.runs import load_run, model_sizes, read_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model that can be loaded, and what is known of it before.

    Attributes:
      name: For people to read.
      config: Sizes of the networks.
      schedule: The noise schedule.
      size: Rows and columns in pixels that the model was trained at.
      settings: Settings that should differ from the defaults of `mafx.Settings`.
      load: Loads the model in a dtype.
    """

    name: str
    config: AnimatorConfig
    schedule: Schedule
    size: Size
    settings: dict[str, Any]
    load: Callable[[str], Model]


def find_source(pretrained: str | None, workdir: str | None, checkpoint: str = "latest") -> Source:
    """The model of a folder of published weights, of a work folder, or, without both, the bundled one.

    Raises:
      InputError: Where both are given, or the folder is not what it should be.
    """
    if pretrained and workdir:
        raise InputError("expected one of --pretrained and --workdir, found both")
    if pretrained:
        return _pretrained_source(Path(pretrained).expanduser())
    if workdir:
        return _run_source(Path(workdir).expanduser(), checkpoint)
    config = bundled_config()
    return Source(
        name="the bundled model, which knows puppets only",
        config=model_sizes(config),
        schedule=Schedule(**config.schedule),
        size=tuple(config.data.size),
        settings={"guidance_scale": config.show_guidance, "steps": 1},
        load=load_bundled,
    )


def _pretrained_source(folder: Path) -> Source:
    published = read_configs(folder)
    return Source(
        name=str(folder),
        config=published.config,
        schedule=published.schedule,
        size=published.size,
        settings={},
        load=functools.partial(load_pretrained, folder),
    )


def _run_source(workdir: Path, checkpoint: str) -> Source:
    config = read_config(workdir)
    return Source(
        name=f"{workdir} ({checkpoint} checkpoint)",
        config=model_sizes(config),
        schedule=Schedule(**config.schedule),
        size=tuple(config.data.size),
        settings={"guidance_scale": config.show_guidance},
        load=functools.partial(load_run, workdir, checkpoint=checkpoint),
    )


def default_dtype() -> str:
    """What networks compute in by default. On a CPU, 16 bits gain no speed."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
