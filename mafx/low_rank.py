"""Low-rank updates of kernels: W + a b, where only a and b are trained (*LoRA*, arXiv 2106.09685).

The networks know nothing of them: they are given the sums. A kernel `... columns` counts as a matrix whose rows are all
its axes but the last; a is `rows rank`, b is `rank columns`. The paper's factor alpha / rank is part of b. Among flat
parameters the pair of a kernel NAME is "low_rank/NAME/a" and "low_rank/NAME/b".
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mafx.errors import InputError
from mafx.files import check_finite
from mafx.model import Model
from mafx.placing import host_array
from mafx.pretrained.safetensors_files import Safetensors, write_safetensors
from mafx.stamps import fingerprint
from mafx.trees import flatten, unflatten

ROOT = "low_rank/"
HALVES = ("a", "b")
BASE = "base"  # in the header of a file, see `Update`
Pair = tuple[Any, Any]


def update_shapes(shapes: Mapping[str, Any], pattern: str, rank: int) -> dict[str, Any]:
    """The arrays of an update, float32, by their flat names.

    Args:
      shapes: All parameters of a model by their flat names.
      pattern: A regular expression. An update changes all kernels in whose name it is found.
      rank: Of the update.

    Raises:
      InputError: It is found in none.
    """
    made = {}
    for name, x in shapes.items():
        if name.endswith("/kernel") and re.search(pattern, name):
            made[f"{ROOT}{name}/a"] = jax.ShapeDtypeStruct((x.size // x.shape[-1], rank), jnp.float32)
            made[f"{ROOT}{name}/b"] = jax.ShapeDtypeStruct((rank, x.shape[-1]), jnp.float32)
    if not made:
        raise InputError(f"config.low_rank.kernels: {pattern!r} is found in the name of no kernel")
    return made


def pairs_of(flat: Mapping[str, Any]) -> dict[str, Pair]:
    """The pairs among flat parameters, by the names of their kernels."""
    names = [name[len(ROOT) : -len("/a")] for name in flat if name.startswith(ROOT) and name.endswith("/a")]
    return {name: (flat[f"{ROOT}{name}/a"], flat[f"{ROOT}{name}/b"]) for name in names}


def weights_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat parameters without an update among them."""
    return {name: x for name, x in flat.items() if not name.startswith(ROOT)}


def add_update(flat: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Flat parameters as the networks take them: an update among them is added to its kernels, and gone."""
    weights = weights_of(flat)
    return weights | {name: add_pair(weights[name], pair) for name, pair in pairs_of(flat).items()}


def add_pair(kernel: Any, pair: Pair) -> Any:
    """One kernel with its update, in the kernel's dtype."""
    a, b = pair
    return kernel + (a @ b).reshape(kernel.shape).astype(kernel.dtype)


# -- As a file


@dataclasses.dataclass(frozen=True)
class Update:
    """An update as a file holds it.

    Attributes:
      pairs: float32 a and b by the names of their kernels.
      base: Fingerprint of the weights that it was trained on; empty where it is not known, see `base_fingerprint`.
    """

    pairs: dict[str, Pair]
    base: str


def base_fingerprint(weights: Mapping[str, Any]) -> str:
    """What tells the weights that an update belongs to from others, alike for float32 and bfloat16.

    It is empty for float16, from which what the same weights are in bfloat16 does not follow.
    """
    arrays = {name: np.asarray(x) for name, x in weights.items()}
    if any(x.dtype == np.float16 for x in arrays.values()):
        return ""
    return fingerprint({name: x.astype(jnp.bfloat16) for name, x in arrays.items()})


def is_base(model: Model, update: Update) -> bool:
    """Whether an update was trained on these weights; true where that cannot be told."""
    if not update.base:
        return True
    return base_fingerprint(flatten(model.params)) in ("", update.base)


def write_update(path: Path, update: Update) -> None:
    """Write an update as a `.safetensors` file with tensors NAME.a and NAME.b."""
    tensors = {
        f"{name}.{half}": np.asarray(x, np.float32)
        for name, pair in update.pairs.items()
        for half, x in zip(HALVES, pair, strict=True)
    }
    write_safetensors(path, tensors, {BASE: update.base})


def read_update(path: Path) -> Update:
    """Read what `write_update` has written.

    Raises:
      InputError: The file is none of these.
    """
    file = Safetensors(path)
    names = sorted({name.rpartition(".")[0] for name in file.shapes})
    expected = {f"{name}.{half}" for name in names for half in HALVES}
    if BASE not in file.metadata or expected != set(file.shapes) or any(len(x) != 2 for x in file.shapes.values()):
        raise InputError(f"expected a low-rank update of mafx, with matrices NAME.a and NAME.b, found {path}")

    def read(name: str) -> np.ndarray:
        return check_finite(file.read(name).astype(np.float32), f"{path}: {name}")

    return Update({name: (read(f"{name}.a"), read(f"{name}.b")) for name in names}, file.metadata[BASE])


def apply_update(model: Model, update: Update) -> Model:
    """A model with an update added to its weights, which are then like any others.

    Raises:
      InputError: The update is for networks of other sizes.
    """
    weights = flatten(model.params)
    for name, (a, b) in update.pairs.items():
        expected = weights[name].shape if name in weights else None
        fits = expected and (*a.shape, *b.shape) == (math.prod(expected[:-1]), len(b), a.shape[1], expected[-1])
        if not fits:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            found = "is not there" if expected is None else f"has the shape {list(expected)}"
            raise InputError(f"expected an update of this model, found one of {shapes} for {name}, which {found}")
    changed = {
        name: host_array(add_pair(np.asarray(weights[name], np.float32), pair), model.dtype)
        for name, pair in update.pairs.items()
    }
    return dataclasses.replace(model, params=unflatten(weights | changed))
