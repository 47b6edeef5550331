"""A run as it lies in its work folder: its config, its sizes, its vocabulary, its model."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import ml_collections

from mafx.commands import expand_home
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.model import Model
from mafx.models.animator import SIZES, AnimatorConfig
from mafx.models.text import Tokenizer
from mafx.placing import host_array, host_sharding
from mafx.training.checkpoints import read_parameters
from mafx.training.step import unflatten

CONFIG_FILE = "config.json"
VOCABULARY_FILES = ("vocab.json", "merges.txt")


def model_sizes(config: ml_collections.ConfigDict) -> AnimatorConfig:
    """The sizes of a run's networks, with what its config changes about them."""
    sizes = SIZES[config.model]
    unet = dataclasses.replace(sizes.unet, remat=config.remat)
    return dataclasses.replace(sizes, unet=unet, **config.networks)


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config that a work folder was last trained with. Raises InputError where there is none."""
    try:
        return ml_collections.ConfigDict(json.loads((workdir / CONFIG_FILE).read_text()))
    except OSError as error:
        raise InputError(f"expected a work folder of train.py, found no {CONFIG_FILE} in {workdir}") from error


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Say in the work folder what it is trained with."""
    (workdir / CONFIG_FILE).write_text(config.to_json_best_effort(indent=2))


def load_run(workdir: str | Path, dtype: jnp.dtype | str = jnp.float32, checkpoint: int | str = "latest") -> Model:
    """The model of a run, ready to be animated or saved by `save_pretrained`.

    Args:
      workdir: The work folder of train.py.
      dtype: Of the parameters.
      checkpoint: Number of a step, "latest", or "best" (by the scores of held-out clips).

    Raises:
      InputError: Where there is no such run or checkpoint.
    """
    workdir = expand_home(workdir)
    flat, config = read_parameters(workdir, checkpoint, lambda flat: dict.fromkeys(flat, host_sharding()))
    sizes = model_sizes(config)
    return Model(
        config=sizes,
        params=unflatten({name: host_array(x, dtype) for name, x in flat.items()}),
        tokenizer=make_tokenizer(sizes, workdir),
        schedule=Schedule(**config.schedule),
        size=tuple(config.data.size),
        source=f"{workdir} ({checkpoint} checkpoint)",
    )


def make_tokenizer(sizes: AnimatorConfig, workdir: Path) -> Tokenizer:
    """The tokenizer of a run: with the vocabulary that its first stage was started with, if it had one."""
    if (workdir / VOCABULARY_FILES[0]).is_file():
        return Tokenizer.from_directory(workdir, sizes.text.positions)
    return Tokenizer.without_vocabulary(sizes.text.vocabulary, sizes.text.positions)
