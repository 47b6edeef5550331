"""Files of safetensors, read and written."""

import dataclasses
import math
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

from mafx.errors import InputError, refusals
from mafx.files import check_regular, check_value, parse_json
from mafx.limits import JSON_BYTES
from mafx.pretrained.tensors import LONGEST_NAME, Natural, Shape, check_tensor_name

# Those that networks are kept in.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor as the header of a safetensors file has it: its numbers lie between two offsets of the data."""

    dtype: str
    shape: Shape
    data_offsets: tuple[Natural, Natural]


class Safetensors:
    """A `.safetensors` file; see `TensorFile`.

    The library `safetensors` accepts names that appear twice, and dtypes that NumPy does not have. So the header, which
    is JSON, is read like all JSON.

    Attributes:
      metadata: What the header says besides.
    """

    def __init__(self, path: Path):
        self.path = path
        check_regular(path)
        with refusals(f"{path} is not a whole safetensors file; download it again"):
            self._start, entries, self.metadata = _read_header(path)
            self._entries = _check_entries(path, entries, path.stat().st_size - self._start)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        with refusals(f"{self.path} is damaged at {name}; download it again"):
            count, offset = math.prod(entry.shape), self._start + entry.data_offsets[0]
            x = np.fromfile(self.path, DTYPES[entry.dtype], count, offset=offset)
            return x.reshape(entry.shape)


def _read_header(path: Path) -> tuple[int, dict[str, Entry], dict[str, str]]:
    """Where the data begin, what they are, and what is said besides."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size - 8:
            raise ValueError("it ends within its header")
        JSON_BYTES.check(f"the header of {path}", length)
        header = file.read(length)
    content = parse_json(header, f"the header of {path}")
    metadata = {name: str(x) for name, x in (content.pop("__metadata__", None) or {}).items()}
    return 8 + length, check_value(content, dict[str, Entry], str(path)), metadata


def _check_entries(path: Path, entries: dict[str, Entry], size: int) -> dict[str, Entry]:
    """Check that tensors have known dtypes, and lie in the data without overlaps and as large as their shapes say."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        check_tensor_name(path, name)
        if entry.dtype not in DTYPES:
            expected = ", ".join(DTYPES)
            found = ascii(entry.dtype)[:LONGEST_NAME]
            raise InputError(f"{path}: expected tensors of one of the dtypes {expected}, found {name} of {found}")
        first, last = entry.data_offsets
        if first < end or last - first != math.prod(entry.shape) * DTYPES[entry.dtype].itemsize:
            raise ValueError(f"{name} has not the place that its shape needs")
        end = last
    if end > size:
        raise ValueError(f"{end} bytes of tensors are announced, {size} are there")
    return entries


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write a `.safetensors` file, marked as PyTorch's as the published tools demand. Its header has `metadata` too."""
    contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    try:
        safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"} | (metadata or {}))
    except safetensors.SafetensorError as error:  # it has no other word for a full disk
        raise OSError(str(error)) from error
    umask = os.umask(0)  # can only be asked by setting it
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # the library lets only its user read
