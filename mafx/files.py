"""The door for files that are not pictures, videos or weights: text, JSON and arrays of NumPy.

Whatever a file holds, what comes out is what was asked for, or an InputError that names the file. JSON is checked
against a kind, which is written as a type: `int`, `tuple[str, ...]`, `dict[str, float]`, `float | None`,
`Annotated[int, Range(1, 8)]`, `Literal["a", "b"]`, or a dataclass of such fields. Where a field has a default, the file
may lack it. What the file has beyond the fields is ignored.
"""

import contextlib
import dataclasses
import functools
import json
import math
import re
import reprlib
import stat
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Union

import numpy as np

from mafx import limits
from mafx.errors import InputError, refusals

MAX_DEPTH = 32  # of JSON: objects and lists inside one another
MAX_INTEGER = 2**63 - 1  # of JSON, as arrays have it
LONGEST_NAME = 200  # of a file: 255 bytes are allowed, and suffixes are added
# What no name may have: other lines, halves of characters, folders.
UNFIT = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\ud800-\udfff/\\]")


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that are allowed, from `low` to `high`; of text, lists and objects, the lengths."""

    low: float
    high: float = math.inf

    def __contains__(self, x: float) -> bool:
        return self.low <= x <= self.high


Measured = NewType("Measured", float)  # nan where a measure is not defined; a plain float is finite


# -- Files


def check_regular(path: Path, what: str = "file") -> None:
    """Check that there is a file: a named pipe or a device blocks whoever reads it, or never ends.

    Args:
      path: Where it should be.
      what: The file in words.

    Raises:
      InputError: There is nothing, or something else.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: the name holds a null character
        raise InputError(f"there is no {what} at {path}") from error
    _check_mode(path, mode, what)


def _check_mode(path: Path, mode: int, what: str) -> None:
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise InputError(f"{path} is not a {what} that can be read: expected a file, found {found}")


def check_tree(folder: Path) -> None:
    """Check that a folder that another library reads holds files and folders only, and nothing that lies elsewhere.

    Files may come and go meanwhile.

    Raises:
      InputError: There is a pipe, a device, or a link that leads out of the folder.
    """
    for path in folder.rglob("*"):
        if path.is_symlink():
            check_inside(path, folder)
        if path.exists() and not path.is_dir():
            with contextlib.suppress(FileNotFoundError):
                _check_mode(path, path.stat().st_mode, "file")


def check_inside(path: Path, folder: Path) -> None:
    """Check that a path stays in a folder when its links and its `..` are followed.

    Raises:
      InputError: It leads elsewhere.
    """
    with refusals(f"{path} cannot be followed"):
        inside = path.resolve().is_relative_to(folder.resolve())
    if not inside:
        raise InputError(f"{path} leads out of {folder}; put the file itself there, not a link to it")


def check_name(name: str, where: object) -> None:
    """Check that a name from a file can be the name of a file: of one line, and without a folder.

    Raises:
      InputError: It cannot.
    """
    if not 0 < len(name) <= LONGEST_NAME or name.startswith(".") or UNFIT.search(name):
        raise InputError(f"{where}: expected a name without folders and of one line, found {_short(name)}")


def read_text(path: Path) -> str:
    """Read a file of UTF-8.

    Raises:
      InputError: It is missing, no file, too large, or no UTF-8.
    """
    check_regular(path)
    with refusals(f"{path} is not text that can be read"), path.open("rb") as file:
        content = file.read(limits.JSON_BYTES.value + 1)
        limits.JSON_BYTES.check(path, max(len(content), path.stat().st_size))
        return content.decode()


# -- JSON


def read_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """Read a file of JSON.

    Args:
      path: The file.
      kind: What it must hold, see the head of this module.

    Returns:
      A value of this kind; a dataclass is built.

    Raises:
      InputError: The file cannot be read, or holds something else.
    """
    return parse_json(read_text(path), path, kind)


def read_json_lines(path: Path, kind: Any = dict[str, Any]) -> list[Any]:
    """Read a file with JSON in every line, as `read_json` does."""
    lines = read_text(path).splitlines()
    return [parse_json(line, f"{path}, line {number}", kind) for number, line in enumerate(lines, 1)]


def parse_json(text: str | bytes, name: object, kind: Any = dict[str, Any]) -> Any:
    """Check and build what JSON says, as `read_json` does. `name` is what errors call the file."""
    with refusals(f"{name} is not readable JSON"):
        limits.JSON_BYTES.check(name, len(text))
        value = json.loads(text, object_pairs_hook=_object)
        _check_plain(value, depth=0)
    return check_value(value, kind, str(name))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it has the same name twice in one object")
    return content


def _check_plain(value: Any, depth: int) -> None:
    """Refuse what would fail later wherever it is used: deep nesting, huge integers, halves of characters."""
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise ValueError("it has an integer of more than 64 bits")
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, depth + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            name.encode()
            _check_plain(item, depth + 1)


def check_value(value: Any, kind: Any, where: str) -> Any:
    """Check a value of JSON, and build what `kind` says.

    Args:
      value: Dicts, lists, text, numbers, booleans and None.
      kind: See the head of this module.
      where: The file, and the place in it.

    Returns:
      The value. Lists are tuples, whole numbers are floats, dicts are dataclasses where `kind` says so.

    Raises:
      InputError: The value is of another kind.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _check_fields(value, kind, where)
    if origin in (Union, types.UnionType):
        return _check_union(value, arguments, where)
    if origin is Annotated:
        return _check_range(check_value(value, arguments[0], where), arguments[1], kind, where)
    if origin is Literal:
        _demand(any(value == x and type(value) is type(x) for x in arguments), value, kind, where)
        return value
    if origin is list:
        _demand(isinstance(value, list), value, kind, where)
        return [check_value(x, arguments[0], f"{where}[{i}]") for i, x in enumerate(value)]
    if origin is tuple:
        _demand(isinstance(value, list | tuple), value, kind, where)
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        _demand(len(value) == len(kinds), value, kind, where)
        return tuple(check_value(x, k, f"{where}[{i}]") for i, (x, k) in enumerate(zip(value, kinds, strict=True)))
    if origin is dict:
        _demand(isinstance(value, dict), value, kind, where)
        return {name: check_value(x, arguments[1], f"{where}: {_short(name)}") for name, x in value.items()}
    if kind in (float, Measured):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _demand(number and (kind is Measured or math.isfinite(value)), value, kind, where)
        return float(value)
    _demand(isinstance(value, kind) and not (kind is int and isinstance(value, bool)), value, kind, where)
    return value


def _check_fields(value: Any, kind: Any, where: str) -> Any:
    _demand(isinstance(value, dict), value, kind, where)
    fields = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            fields[field.name] = check_value(value[field.name], _hints(kind)[field.name], f"{where}: {field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where} lacks the setting {field.name!r}")
    with refusals(where):
        return kind(**fields)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _check_union(value: Any, kinds: tuple, where: str) -> Any:
    *others, last = sorted(kinds, key=lambda kind: kind is not type(None))  # complaints are those about the last
    for kind in others:
        try:
            return check_value(value, kind, where)
        except InputError:
            continue
    return check_value(value, last, where)


def _check_range(value: Any, allowed: Range, kind: Any, where: str) -> Any:
    _demand((len(value) if isinstance(value, str | tuple | dict) else value) in allowed, value, kind, where)
    return value


def _demand(fits: bool, value: Any, kind: Any, where: str) -> None:
    if not fits:
        raise InputError(f"{where}: expected {describe(kind)}, found {_short(value)}")


_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Measured: "a number",
    str: "text",
    type(None): "null",
    Any: "anything",
}


def describe(kind: Any) -> str:
    """A kind of value in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe, arguments))
    if origin is Annotated:
        low, high = arguments[1].low, arguments[1].high
        bounds = f"{low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
        return f"{describe(arguments[0])} ({bounds})"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} items"
    return f"a list of {describe(arguments[0])}" if origin in (list, tuple) else "a JSON object"


def _short(value: object) -> str:
    """A value for a message: its type where it holds others, else a line of it."""
    return type(value).__name__ if isinstance(value, dict) else reprlib.repr(value)


# -- Arrays


def read_array(path: Path, dtype: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Map a file of NumPy (.npy) into memory. Its numbers are read when they are used.

    Args:
      path: The file.
      dtype: What its header must say.
      shape: Likewise; None allows any.

    Raises:
      InputError: It is missing, damaged, or of another shape or dtype.
    """
    check_regular(path)
    with refusals(f"{path} is not an array that can be read; remove it, so that it is made anew"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or shape not in (None, array.shape):
            found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
            raise InputError(f"expected {np.dtype(dtype)} {shape or 'of any shape'} in {path}, found {found}")
        return array


def read_arrays(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """Read a file of several arrays of numbers (.npz).

    Args:
      path: The file.
      max_bytes: The largest size of all arrays together.

    Raises:
      InputError: It is missing, damaged, too large, or holds something that is not finite.
    """
    check_regular(path)
    with refusals(f"{path} does not hold arrays that can be read"), np.load(path, allow_pickle=False) as file:
        if sum(member.file_size for member in file.zip.infolist()) > max_bytes:
            raise InputError(f"{path}: expected at most {max_bytes} bytes of arrays, found more")
        return {name: check_finite(file[name], f"{path}: {name}") for name in file.files}


def check_finite(array: np.ndarray, where: str) -> np.ndarray:
    """The array, if it holds numbers and all are finite.

    Raises:
      InputError: Something else is in it.
    """
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(f"{where}: expected numbers, found {array.dtype}")
    if not np.isfinite(array).all():
        raise InputError(f"{where} holds NaN or infinity")
    return array
