"""The model in the box: trained on puppets, from nothing, by this project (README.md beside this file says how, and how good it is).

`puppets.npz` has its parameters in half precision, `config.json` the config of its last stage, `training.jsonl` what training reported, `scores.json`
its evaluation on held-out clips.
"""

import json
from pathlib import Path

import flax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mafx.diffusion.schedule import Schedule
from mafx.model import Model
from mafx.models.animator import SIZES
from mafx.models.text import Tokenizer

FOLDER = Path(__file__).parent


def bundled_config() -> ml_collections.ConfigDict:
    """What it was trained with."""
    return ml_collections.ConfigDict(json.loads((FOLDER / "config.json").read_text()))


def load_bundled(dtype: jnp.dtype | str = jnp.float32) -> Model:
    """The model in the box, ready to animate puppets of 32x32 pixels."""
    config = bundled_config()
    sizes = SIZES[config.model]
    with np.load(FOLDER / "puppets.npz") as file:
        params = {name: jnp.asarray(file[name], dtype) for name in file.files}
    tokenizer = Tokenizer.without_vocabulary(sizes.text.vocabulary, sizes.text.positions)
    return Model(sizes, flax.traverse_util.unflatten_dict(params, sep="/"), tokenizer, Schedule(**config.schedule))


def save_bundled(model: Model, config: ml_collections.ConfigDict, folder: Path = FOLDER) -> None:
    """Write a model of one of `SIZES` as the one in the box."""
    flat = flax.traverse_util.flatten_dict(model.params, sep="/")
    np.savez_compressed(folder / "puppets.npz", **{name: np.asarray(x, np.float16) for name, x in flat.items()})
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
