"""Tensor files of the PyTorch world, read and written without PyTorch: safetensors, and the zip archives of `torch.save`.

Both open lazily: names, shapes and dtypes first, then one tensor at a time, so that loading needs the memory of one tensor beyond what it keeps.
"""

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from mafx.errors import InputError


class TensorFile(Protocol):
    """An open file of named tensors."""

    path: Path
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray: ...


def open_tensors(path: Path) -> TensorFile:
    """Open `.safetensors`, or `.bin`, `.ckpt`, `.pt`, `.pth` as `torch.save` writes them. Raises InputError where the file is broken or unsafe."""
    return Safetensors(path) if path.suffix == ".safetensors" else TorchArchive(path)


class Safetensors:
    """A `.safetensors` file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safetensors.safe_open(path, "np") as file:
                self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, not a dict
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a whole safetensors file ({error}); download it again") from error

    def read(self, name: str) -> np.ndarray:
        # opened anew, so that pages of tensors read before do not stay mapped
        with safetensors.safe_open(self.path, "np") as file:
            return file.get_tensor(name)


class _Storage(NamedTuple):
    dtype: np.dtype
    record: str
    size: int


class _Tensor(NamedTuple):
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


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensor descriptions, and refuses every name that is not needed for that: nothing in the file is executed."""

    def find_class(self, module: str, name: str):
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of tensors needs")
        return allowed[module, name]

    def persistent_load(self, pid):
        kind, dtype, record, _, size = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r} outside the file")
        return _Storage(dtype, record, size)


class TorchArchive:
    """A zip archive of `torch.save`: a state dict, or a dict that holds one under `state_dict`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise pickle.UnpicklingError("it holds no data.pkl")
                self._root = pickles[0].removesuffix("data.pkl")
                if (
                    f"{self._root}byteorder" in archive.namelist()
                    and archive.read(f"{self._root}byteorder") != b"little"
                ):
                    raise pickle.UnpicklingError("it was written big-endian")
                with archive.open(pickles[0]) as file:
                    content = _TensorUnpickler(file).load()
        except zipfile.BadZipFile as error:
            advice = "download it again, or save it anew with PyTorch 1.6 or later"
            raise InputError(f"{path} is not a whole zip archive of torch.save ({error}); {advice}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        except Exception as error:  # a hostile or broken pickle can raise anything
            raise InputError(f"{path} was refused: {error}") from error
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
        try:
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(f"{self._root}data/{storage.record}")
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != storage.size * storage.dtype.itemsize:
                    raise InputError(f"{self.path} was refused: the storage of {name} has not the size it claims")
                values = np.frombuffer(archive.read(info), storage.dtype)
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise InputError(f"{self.path} is damaged at {name} ({error}); download it again") from error
        return np.lib.stride_tricks.as_strided(values[offset:], shape, [n * storage.dtype.itemsize for n in strides])


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(x) for name, x in tensors.items()}, path, metadata={"format": "pt"}
    )


def write_torch_archive(path: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write `{"state_dict": {name: tensor}, "global_step": 0}` as `torch.save` would, one tensor at a time."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    root, program = path.stem, [b"\x80\x02}", _text("state_dict"), b"}("]  # protocol 2; see pickletools for the opcodes
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i, (name, x) in enumerate(tensors):
            strides = [stride // x.itemsize for stride in np.ascontiguousarray(x).strides]
            storage = [
                _text("storage"),
                f"ctorch\n{names[x.dtype]}\n".encode(),
                _text(str(i)),
                _text("cpu"),
                _integer(x.size),
            ]
            program += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", b"(", *storage, b"tQ", _integer(0)]
            program += [
                b"(",
                *map(_integer, x.shape),
                b"t(",
                *map(_integer, strides),
                b"t\x89ccollections\nOrderedDict\n)RtR",
            ]
            archive.writestr(f"{root}/data/{i}", x.tobytes())
        program += [b"us", _text("global_step"), _integer(0), b"s."]
        archive.writestr(f"{root}/data.pkl", b"".join(program))
        archive.writestr(f"{root}/byteorder", "little")
        archive.writestr(f"{root}/version", "3\n")


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)
