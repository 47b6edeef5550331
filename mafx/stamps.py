"""Stamps: small JSON files that say what a thing on disk belongs to. They lie beside it and are compared at every use.

A stamp has facts by their names: the run, the step, fingerprints of weights and of data, the dtype, the version. A
checksum of these facts tells whether the stamp itself is whole.
"""

import functools
import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mafx.errors import InputError
from mafx.files import read_json
from mafx.interrupts import partial_path

STAMP_FILE = "stamp.json"
CHECKSUM = "checksum"
DIGITS = 16  # of a fingerprint, hexadecimal
BLOCK = 2**17  # numbers that are summed at once, which stay in the caches of a core
MULTIPLIERS = 0x85EBCA6B, 0xC2B2AE35  # of MurmurHash3's end

Facts = dict[str, Any]


def new_run() -> str:
    """A name that no other run has."""
    return secrets.token_hex(6)


# -- Stamps


def write_stamp(path: Path, facts: Facts) -> None:
    """Write facts that JSON has words for."""
    write_whole(path, json.dumps(seal(facts), indent=2) + "\n")


def read_stamp(path: Path) -> Facts | None:
    """The facts of a stamp, None where there is no such file. Raises InputError where it is damaged."""
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except InputError as error:
        raise _damaged(path) from error
    return unseal(content, path)


def seal(facts: Facts) -> Facts:
    """The facts, as JSON gives them back, with their checksum."""
    plain = json.loads(json.dumps(facts))
    return plain | {CHECKSUM: hash_of(plain)}


def unseal(content: Any, path: Path) -> Facts:
    """The facts of what `seal` has made. Raises InputError where they are others by now; `path` is where they lie."""
    if not isinstance(content, dict) or CHECKSUM not in content:
        raise _damaged(path)
    facts = {name: x for name, x in content.items() if name != CHECKSUM}
    if hash_of(facts) != content[CHECKSUM]:
        raise _damaged(path)
    return facts


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged: expected a stamp of mafx with the checksum of what it says; remove it")


def compare_facts(found: Facts, expected: Facts, what: str, advice: str) -> None:
    """Compare what a stamp says with what is expected of it. Of the version, patch releases are alike.

    Args:
      found: Facts of a stamp.
      expected: Some of the same names.
      what: The stamped thing, which begins the message.
      advice: What to do, which ends the message.

    Raises:
      InputError: A fact is another one. The message has its name and both values.
    """
    for name, value in json.loads(json.dumps(expected)).items():
        if _compared(name, found.get(name)) != _compared(name, value):
            raise InputError(f"{what} has {name} {_short(found.get(name))}, expected {_short(value)}; {advice}")


def _compared(name: str, value: Any) -> Any:
    """What of a fact must be the same: of a version, what stands before the second dot."""
    return value.split(".")[:2] if name == "version" and isinstance(value, str) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a hidden name first, so that it is complete or absent."""
    part = path.with_name(f".{path.name}.part")
    with partial_path(part):
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)


# -- Fingerprints


def hash_of(value: Any) -> str:
    """Digits that change with a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def fingerprint(arrays: Mapping[str, Any]) -> str:
    """Digits that change with every bit of arrays, with their names, shapes and dtypes.

    Args:
      arrays: NumPy's or JAX's, by names. They may be spread over any mesh, which changes nothing; with several
        processes, all call this.
    """
    return hash_of(array_sums(arrays))


def array_sums(arrays: Mapping[str, Any]) -> dict[str, list]:
    """What `fingerprint` knows of each array: its dtype, its shape, a sum of its bits."""
    return {name: [str(x.dtype), list(x.shape), _sum_bits(x)] for name, x in arrays.items()}


def _sum_bits(x: Any) -> int:
    on_host = isinstance(x, np.ndarray | np.generic)
    if on_host or (x.is_fully_addressable and next(iter(x.devices())).platform == "cpu"):
        return _sum_blocks(np.asarray(x))  # nothing need be compiled there
    import jax  # noqa: PLC0415 (slow to import, and reading data does without)

    return int(_summed_on_device()(jax.device_put(x, x.sharding.with_memory_kind("device"))))


def _sum_blocks(x: np.ndarray) -> int:
    """The weighted sum of an array in main memory, block by block along its longest axis."""
    if x.size <= BLOCK:
        return int(_weighted_sum(x, np))
    axis = int(np.argmax(x.shape))
    rows = max(1, BLOCK * x.shape[axis] // x.size)
    firsts = range(0, x.shape[axis], rows)
    blocks = (x[(slice(None),) * axis + (slice(first, first + rows),)] for first in firsts)
    sums = (int(_weighted_sum(block, np, {axis: first})) for first, block in zip(firsts, blocks, strict=True))
    return sum(sums) % 2**32


@functools.cache
def _summed_on_device():
    import jax  # noqa: PLC0415
    import jax.numpy as jnp  # noqa: PLC0415

    return jax.jit(functools.partial(_weighted_sum, xp=jnp))


def _weighted_sum(x, xp, first: Mapping[int, int] | None = None):
    """The sum over all elements of their bits times an odd number that depends on their place, modulo 2^32.

    A changed element changes it, since odd numbers have inverses. It depends on the array only, not on how it is
    spread over devices. `xp` is NumPy or JAX's version of it. Of a block, `first` says where it begins, by axes.
    """
    bits = x.view(f"uint{8 * x.dtype.itemsize}").astype(xp.uint32)
    place = xp.zeros((1,) * x.ndim, xp.uint32)
    for axis, size in enumerate(x.shape):
        begin = (first or {}).get(axis, 0)
        steps = xp.arange(begin, begin + size, dtype=xp.uint32).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        place = (place ^ (place >> xp.uint32(15))) * xp.uint32(MULTIPLIERS[0]) + steps * xp.uint32(MULTIPLIERS[1])
    weights = (place ^ (place >> xp.uint32(16))) * xp.uint32(2 * MULTIPLIERS[1] % 2**32) + xp.uint32(1)
    return xp.sum(bits * weights, dtype=xp.uint32)
