"""The bundled model: a small model that this project trained on drawn puppets. README.md says how, and how good it is.

`puppets.npz` holds its parameters in half precision, `config.json` the config of its last training stage,
`stamp.json` what they belong to, `training.jsonl` the log of all stages, `scores.json` its evaluation on held-out
clips.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.files import read_arrays, read_json
from mafx.model import ORIGIN, Model, network_dtype
from mafx.models.animator import SIZES
from mafx.models.text import Tokenizer
from mafx.placing import host_array
from mafx.stamps import STAMP_FILE, compare_facts, fingerprint, read_stamp, write_stamp
from mafx.trees import flatten, unflatten

FOLDER = Path(__file__).parent
SUITABLE: dict[str, Any] = {"steps": 4}  # settings that differ from the defaults of `mafx.Settings`
MAX_BYTES = 2**28  # of the parameters


def bundled_config() -> ml_collections.ConfigDict:
    """The config that the bundled model was trained with, in its last stage."""
    return ml_collections.ConfigDict(read_json(FOLDER / "config.json"))


def load_bundled(dtype: jnp.dtype | str = jnp.float32) -> Model:
    """Load the bundled model. It animates puppets of 64x64 pixels and knows nothing of real people.

    Args:
      dtype: Of the parameters, in which the networks will compute: a dtype, or its name.

    Raises:
      InputError: Networks do not compute in this dtype.
    """
    config, dtype = bundled_config(), network_dtype(dtype)
    sizes = SIZES[config.model]
    stamp, flat = read_stamp(FOLDER / STAMP_FILE) or {}, _read_arrays(FOLDER / "puppets.npz")
    compare_facts(stamp, {"weights": fingerprint(flat)}, "the bundled model", "install mafx again")
    params = {name: host_array(x, dtype) for name, x in flat.items()}
    rows, columns = config.data.size
    return Model(
        config=sizes,
        params=unflatten(params),
        tokenizer=Tokenizer.without_vocabulary(sizes.text.vocabulary, sizes.text.positions),
        schedule=Schedule(**config.schedule),
        size=(rows, columns),
        source="the bundled model (puppets)",
        origin={name: x for name, x in stamp.items() if name in ORIGIN},
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(path, MAX_BYTES)
    except InputError as error:
        raise InputError(f"expected the bundled model in {path}, found a damaged file; install mafx again") from error


def save_bundled(model: Model, config: ml_collections.ConfigDict, folder: Path = FOLDER) -> None:
    """Write the parameters and the config of the bundled model.

    Args:
      model: The model. Its sizes are `SIZES[config.model]`. Its parameters are rounded to half precision.
      config: What it was trained with, in its last stage.
      folder: Where the files go.
    """
    flat = flatten(model.params)
    arrays: dict[str, Any] = {name: np.asarray(x, np.float16) for name, x in flat.items()}
    np.savez_compressed(folder / "puppets.npz", **arrays)
    write_stamp(folder / STAMP_FILE, model.stamp() | {"weights": fingerprint(arrays), "dtype": "float16"})
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
