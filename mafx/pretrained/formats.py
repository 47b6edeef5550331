"""Files of tensors as PyTorch users keep them: safetensors, and the zip archives of `torch.save`.

Both are read and written without PyTorch. Opening a file reads the names, shapes and dtypes of its tensors. Each tensor
is then read alone, so that loading needs the memory of one tensor beyond what the caller keeps.
"""

import contextlib
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from mafx.errors import InputError


class TensorFile(Protocol):
    """An open file of named tensors.

    Attributes:
      path: The file.
      shapes: Names of the tensors and their shapes.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """Read one tensor in its own dtype.

        Raises:
          InputError: The file is damaged at this tensor, or the tensor is not what the file claims.
        """
        ...


def open_tensors(path: Path) -> TensorFile:
    """Open a file of tensors.

    Args:
      path: A `.safetensors` file, or one that `torch.save` of PyTorch 1.6 or later wrote (`.bin`, `.ckpt`, `.pt`,
        `.pth`).

    Raises:
      InputError: The file is incomplete, or could execute code.
    """
    return Safetensors(path) if path.suffix == ".safetensors" else TorchArchive(path)


class Safetensors:
    """A `.safetensors` file; see `TensorFile`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safetensors.safe_open(path, "np") as file:
                names = list(file.keys())
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a whole safetensors file ({error}); download it again") from error

    def read(self, name: str) -> np.ndarray:
        # The file is opened for each tensor: memory maps keep every page in memory that was read through them.
        with safetensors.safe_open(self.path, "np") as file:
            return file.get_tensor(name)


# -- Archives of torch.save: a pickle with the structure, and one record of raw bytes per storage


class _Storage(NamedTuple):
    """A block of memory: `size` numbers of `dtype` in the archive's record `data/RECORD`."""

    dtype: np.dtype
    record: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage. Offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def _make_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: object) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _make_parameter(tensor: _Tensor, *_: object) -> _Tensor:
    return tensor


ALLOWED: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    ("torch._utils", "_rebuild_parameter"): _make_parameter,
}


class _TensorUnpickler(pickle.Unpickler):
    """Builds `_Tensor`s. Every name that is not needed for that is refused, so nothing in the file is executed."""

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of tensors needs")
        return ALLOWED[module, name]

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, record, _, size = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r} outside the file")
        return _Storage(dtype, record, size)


class TorchArchive:
    """A zip archive of `torch.save`; see `TensorFile`.

    It holds a state dict, or a dict with a state dict under the key `state_dict`.
    """

    def __init__(self, path: Path):
        self.path = path
        with _refusals(path), zipfile.ZipFile(path) as archive:
            self._root, content = _unpickle(archive)
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        if not isinstance(content, Mapping):
            raise InputError(f"{path} was refused: expected a dict of tensors, found {type(content).__name__}")
        self._tensors = {str(name): tensor for name, tensor in content.items() if isinstance(tensor, _Tensor)}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        storage, offset, shape, strides = self._tensors[name]
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= storage.size):
            raise InputError(f"{self.path} was refused: tensor {name} reaches outside its storage")
        itemsize = storage.dtype.itemsize
        try:
            with zipfile.ZipFile(self.path) as archive:
                record = archive.getinfo(f"{self._root}data/{storage.record}")
                # Compressed records could be a zip bomb, and torch.save compresses none.
                if record.compress_type != zipfile.ZIP_STORED or record.file_size != storage.size * itemsize:
                    raise InputError(f"{self.path} was refused: the storage of {name} has not the size it claims")
                values = np.frombuffer(archive.read(record), storage.dtype)
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{self.path} is damaged at {name} ({error}); download it again") from error
        return np.lib.stride_tricks.as_strided(values[offset:], shape, [n * itemsize for n in strides])


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn everything that opening an archive can raise into an InputError."""
    try:
        yield
    except zipfile.BadZipFile as error:
        advice = "download it again, or save it anew with PyTorch 1.6 or later"
        raise InputError(f"{path} is not a whole zip archive of torch.save ({error}); {advice}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a hostile or broken pickle can raise anything
        raise InputError(f"{path} was refused: {error}") from error


def _unpickle(archive: zipfile.ZipFile) -> tuple[str, object]:
    """The archive's root folder, which ends with a slash, and the content of its pickle."""
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("it holds no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = f"{root}byteorder"
    if byteorder in names and archive.read(byteorder) != b"little":
        raise pickle.UnpicklingError("it was written big-endian")
    with archive.open(pickles[0]) as file:
        return root, _TensorUnpickler(file).load()


# -- Writing


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a `.safetensors` file, marked as PyTorch's as the published tools demand."""
    contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"})


def write_torch_archive(path: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write `{"state_dict": {name: tensor}, "global_step": 0}` as `torch.save` would.

    Args:
      path: The file; its stem names the archive's root folder.
      tensors: Names and arrays of a dtype in `DTYPES`. They are taken one at a time.
    """
    root = path.stem
    # The pickle, opcode by opcode as the standard library's pickletools documents them: protocol 2, an empty dict, and
    # in it "state_dict": a dict of all tensors, each built by a call of _rebuild_tensor_v2.
    program = [b"\x80\x02}", _text("state_dict"), b"}("]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i, (name, x) in enumerate(tensors):
            program += [_text(name), *_tensor_program(str(i), np.asarray(x, order="C"))]
            archive.writestr(f"{root}/data/{i}", x.tobytes())
        program += [b"us", _text("global_step"), _integer(0), b"s."]
        archive.writestr(f"{root}/data.pkl", b"".join(program))
        archive.writestr(f"{root}/byteorder", "little")
        archive.writestr(f"{root}/version", "3\n")


def _tensor_program(record: str, x: np.ndarray) -> list[bytes]:
    """The opcodes that build one tensor: a storage, offset 0, shape, strides, requires_grad False, no hooks."""
    storage_class = next(name for name, dtype in DTYPES.items() if dtype == x.dtype)
    return [
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        *(b"(", _text("storage"), f"ctorch\n{storage_class}\n".encode()),
        *(_text(record), _text("cpu"), _integer(x.size), b"tQ"),
        _integer(0),
        *(b"(", *map(_integer, x.shape), b"t"),
        *(b"(", *(_integer(stride // x.itemsize) for stride in x.strides), b"t"),
        b"\x89ccollections\nOrderedDict\n)RtR",
    ]


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)
