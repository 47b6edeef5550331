"""A run as it lies in its work folder: its config, its sizes, its vocabulary, its model."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import mafx
from mafx.commands import expand_home
from mafx.data.clips import Clip, fingerprint_clips
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError, refusals
from mafx.files import Range, check_finite, check_value, read_json
from mafx.low_rank import Update, add_update, base_fingerprint, pairs_of, weights_of
from mafx.model import Model, network_dtype
from mafx.models.animator import SIZES, AnimatorConfig
from mafx.models.text import Tokenizer
from mafx.models.unet import REMAT
from mafx.placing import host_array, host_sharding
from mafx.stamps import Facts, write_whole
from mafx.training.checkpoints import read_parameters
from mafx.trees import unflatten

CONFIG_FILE = "config.json"
VOCABULARY_FILES = ("vocab.json", "merges.txt")
# What a checkpoint does not fit to, or is not continued by, when it changes.
KEPT_FIELDS = ("stage", "model", "train_only", "dtype", "batch", "accumulate", "moments_dtype")


def model_sizes(config: ml_collections.ConfigDict) -> AnimatorConfig:
    """The sizes of a run's networks, with what its config changes about them."""
    sizes = SIZES[config.model]
    unet = dataclasses.replace(sizes.unet, remat=config.remat)
    return dataclasses.replace(sizes, unet=unet, **config.networks)


Side = Annotated[int, Range(1, 16384)]
Count = Annotated[int, Range(1, 2**31)]


@dataclasses.dataclass(frozen=True)
class DataFile:
    """What must be known of the data of a run."""

    name: str
    size: tuple[Side, Side]
    path: str = ""
    train_clips: Count | None = None
    test_clips: Count | None = None
    train_frames: Count | None = None


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """What must be known of a run to use its model; the config holds more, for its training."""

    model: str
    remat: str
    networks: dict[str, str]
    schedule: Schedule
    data: DataFile
    show_guidance: Annotated[float, Range(0, 1e6)]


def run_facts(config: ml_collections.ConfigDict, clips: Sequence[Clip], images: Sequence[Clip]) -> Facts:
    """What a run must have in common with the checkpoints that it goes on from.

    Args:
      config: Of the run.
      clips: What it trains on.
      images: Its image set.
    """
    fields = {f"config.{name}": json.loads(config[name].to_json()) for name in ("networks", "schedule")}
    fields |= {f"config.{name}": config[name] for name in KEPT_FIELDS}
    if config.low_rank.rank:
        fields["config.low_rank"] = json.loads(config.low_rank.to_json())
    data = {"config.data": fingerprint_clips(clips), "config.images": fingerprint_clips(images)}
    return fields | data | {"version": mafx.__version__}


def origin_of(stamp: Facts) -> Facts:
    """What a model says of the checkpoint that it is from."""
    return {
        "run": stamp["run"],
        "step": stamp["step"],
        "trained_on": stamp["config.data"],
        "batch": stamp["config.batch"],
    }


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config that a work folder was last trained with. Raises InputError where there is none that can be used."""
    path = workdir / CONFIG_FILE
    if not path.exists():
        raise InputError(f"expected a work folder of train.py, found no {CONFIG_FILE} in {workdir}")
    return usable_config(read_json(path), str(path))


def usable_config(content: dict, where: str) -> ml_collections.ConfigDict:
    """The config of a run, from what a file says. Raises InputError where no model can be made by it."""
    check_value(content, ConfigFile, where)
    if content["model"] not in SIZES:
        raise InputError(f"{where}: model: expected one of {', '.join(SIZES)}, found {content['model']!r}")
    if content["remat"] not in REMAT:
        raise InputError(f"{where}: remat: expected one of {', '.join(REMAT)}, found {content['remat']!r}")
    with refusals(f"{where} is no config of this version of mafx"):
        config = ml_collections.ConfigDict(content)
        model_sizes(config)
        Schedule(**config.schedule)
        return config


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Say in the work folder what it is trained with."""
    write_whole(workdir / CONFIG_FILE, config.to_json_best_effort(indent=2) + "\n")


def load_run(workdir: str | Path, dtype: jnp.dtype | str = jnp.float32, checkpoint: int | str = "latest") -> Model:
    """The model of a run, ready to be animated or saved by `save_pretrained`.

    Args:
      workdir: The work folder of train.py.
      dtype: Of the parameters.
      checkpoint: Number of a step, "latest", or "best" (by the scores of held-out clips).

    Raises:
      InputError: Where there is no such run or checkpoint, or networks do not compute in this dtype.
    """
    workdir, dtype = expand_home(workdir), network_dtype(dtype)
    flat, stamp = read_parameters(workdir, checkpoint, lambda flat: dict.fromkeys(flat, host_sharding()))
    config = usable_config(stamp["config"], f"the config of a checkpoint of {workdir}")
    flat, sizes = add_update(flat), model_sizes(config)
    for name, x in flat.items():
        check_finite(np.asarray(x), f"{workdir}: {name}")
    return Model(
        config=sizes,
        params=unflatten({name: host_array(x, dtype) for name, x in flat.items()}),
        tokenizer=make_tokenizer(sizes, workdir),
        schedule=Schedule(**config.schedule),
        size=tuple(config.data.size),
        source=f"{workdir} ({checkpoint} checkpoint)",
        origin=origin_of(stamp),
    )


def load_update(workdir: str | Path, checkpoint: int | str = "latest") -> Update:
    """The low-rank update that a run has trained, to be kept in a file of its own.

    Raises:
      InputError: Where there is no such run or checkpoint, or it trained none.
    """
    workdir = expand_home(workdir)
    flat, _ = read_parameters(workdir, checkpoint, lambda flat: dict.fromkeys(flat, host_sharding()))
    if not (pairs := pairs_of(flat)):
        raise InputError(f"expected a run with config.low_rank.rank above 0, found {workdir}, which trained weights")
    base = base_fingerprint(weights_of(flat))
    return Update({name: (np.asarray(a), np.asarray(b)) for name, (a, b) in pairs.items()}, base)


def keep_vocabulary(texts: dict[str, str], workdir: Path) -> None:
    """Write the files of a vocabulary, by their names, into the work folder that all processes share."""
    if jax.process_index() == 0:
        for name, text in texts.items():
            write_whole(workdir / name, text)


def make_tokenizer(sizes: AnimatorConfig, workdir: Path) -> Tokenizer:
    """The tokenizer of a run: with the vocabulary that its first stage was started with, if it had one."""
    if (workdir / VOCABULARY_FILES[0]).is_file():
        return Tokenizer.from_directory(workdir, sizes.text)
    return Tokenizer.without_vocabulary(sizes.text.vocabulary, sizes.text.positions)
