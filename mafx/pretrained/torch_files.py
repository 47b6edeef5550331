"""Files of `torch.save`, without PyTorch: the zip archives of today, read and written, and older files, read."""

import contextlib
import io
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from mafx.errors import InputError, refusals
from mafx.files import Range, check_regular, check_value
from mafx.limits import JSON_BYTES
from mafx.pretrained.pickles import NEW_OBJECTS, OPCODES, Allowed, RestrictedUnpickler, scan_pickle
from mafx.pretrained.tensors import MAX_AXES, tensors_of

# -- Archives: a pickle with the structure, and one record of raw bytes per storage


class _Storage(NamedTuple):
    """A block of memory: `size` numbers of `dtype` in the archive's record `data/RECORD`."""

    dtype: np.dtype
    record: str
    size: int


class StoredTensor(NamedTuple):
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


class _StorageClass(NamedTuple):
    """A class of torch that stands for a dtype: a key of DTYPES."""

    name: str


def _make_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: object) -> StoredTensor:
    return StoredTensor(storage, offset, shape, strides)


def _make_parameter(tensor: StoredTensor, *_: object) -> StoredTensor:
    return tensor


ALLOWED: Allowed = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    ("torch._utils", "_rebuild_parameter"): _make_parameter,
    **{("torch", name): _StorageClass(name) for name in DTYPES},
}


class _TensorUnpickler(RestrictedUnpickler):
    """Builds `StoredTensor`s."""

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, record, _, size = pid
        if kind != "storage" or not isinstance(dtype, _StorageClass):
            raise pickle.UnpicklingError(f"it refers to {kind!r} outside the file")
        return _Storage(DTYPES[dtype.name], record, size)


class TorchObject:
    """What a zip archive of `torch.save` holds, whatever its structure.

    Attributes:
      path: The file.
      content: What was saved, with `StoredTensor`s in the place of tensors.
    """

    def __init__(self, path: Path, classes: Allowed | None = None):
        """Read the structure.

        Args:
          path: The file.
          classes: What stands for classes whose objects may be in it.

        Raises:
          InputError: The file is incomplete, or could execute code.
        """
        self.path = path
        check_regular(path)
        with self.refusals(), zipfile.ZipFile(path) as archive:
            _check_members(archive)
            self._root, self.content = _unpickle(archive, classes or {})

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Turn everything that reading can raise into an InputError."""
        try:
            with refusals(f"{self.path} was refused"):
                yield
        except InputError as error:
            if not isinstance(error.__cause__, zipfile.BadZipFile):
                raise
            reason = f"is not a whole zip archive of torch.save ({error.__cause__})"
            advice = "download it again, or save it anew with PyTorch 1.6 or later"
            raise InputError(f"{self.path} {reason}; {advice}") from error

    def check(self, archive: zipfile.ZipFile, name: str, tensor: StoredTensor) -> None:
        """Check that the open file has what a tensor claims; `name` is for messages."""
        _check_reach(self.path, name, tensor)
        storage = tensor.storage
        if archive.getinfo(self._record(storage)).file_size != storage.size * storage.dtype.itemsize:
            raise InputError(f"{self.path} was refused: the storage of {name} has not the size it claims")

    def values(self, archive: zipfile.ZipFile, tensor: StoredTensor) -> np.ndarray:
        """The numbers of a tensor that was checked."""
        values = np.frombuffer(archive.read(self._record(tensor.storage)), tensor.storage.dtype)
        return _view(values, tensor)

    def _record(self, storage: _Storage) -> str:
        return f"{self._root}data/{storage.record}"


def _check_reach(path: Path, name: str, tensor: StoredTensor) -> None:
    """Check that a tensor lies in its storage."""
    storage, offset, shape, strides = tensor
    where = f"{path}: {name}"
    check_value([storage.size, offset, *strides], tuple[int, ...], where)
    check_value([*shape], Annotated[tuple[int, ...], Range(0, MAX_AXES)], where)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # A stride of 0, or less than what lies below it, would make many numbers of few.
    outside = 0 not in shape and (last >= storage.size or math.prod(shape) > storage.size)
    if outside or min(storage.size, offset, *shape, *strides) < 0:
        raise InputError(f"{path} was refused: tensor {name} reaches outside its storage")


def _view(values: np.ndarray, tensor: StoredTensor) -> np.ndarray:
    """A tensor of the numbers of its storage."""
    strides = [n * values.itemsize for n in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides)


class TorchArchive(TorchObject):
    """A zip archive of `torch.save`; see `TensorFile`.

    It holds a state dict, or a dict with a state dict under one of the keys `STATE_KEYS`.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        with self.refusals(), zipfile.ZipFile(path) as archive:
            self._tensors = tensors_of(path, self.content, StoredTensor)
            for name, tensor in self._tensors.items():
                self.check(archive, name, tensor)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        with refusals(f"{self.path} is damaged at {name}; download it again"), zipfile.ZipFile(self.path) as archive:
            return self.values(archive, self._tensors[name])


def _check_members(archive: zipfile.ZipFile) -> None:
    """Refuse compressed members, which torch.save does not write, and members that lie over one another."""
    members = archive.infolist()
    if packed := next((x for x in members if x.compress_type != zipfile.ZIP_STORED or x.flag_bits & 1), None):
        raise pickle.UnpicklingError(f"{packed.filename!r} is compressed or encrypted, which torch.save does not do")
    size = Path(archive.filename or "").stat().st_size
    if any(x.file_size != x.compress_size for x in members) or sum(x.file_size for x in members) > size:
        raise pickle.UnpicklingError("its members have not the sizes that they claim")


def _unpickle(archive: zipfile.ZipFile, classes: Allowed) -> tuple[str, Any]:
    """The archive's root folder, which ends with a slash, and the content of its pickle."""
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise pickle.UnpicklingError("it holds no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    byteorder = f"{root}byteorder"
    if byteorder in names and archive.read(byteorder) != b"little":
        raise pickle.UnpicklingError("it was written big-endian")
    JSON_BYTES.check(pickles[0], archive.getinfo(pickles[0]).file_size)
    program = archive.read(pickles[0])
    scan_pickle(program, OPCODES | NEW_OBJECTS if classes else OPCODES)
    return root, _TensorUnpickler(io.BytesIO(program), {**ALLOWED, **classes}).load()


# -- Files before PyTorch 1.6: five pickles, and then the storages, each behind its number of numbers

OLD_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # the first pickle, a number
OLD_VERSION = 1001  # the second one
COUNT_BYTES = 8
OLD_ALLOWED: Allowed = {
    **ALLOWED,
    ("torch._utils", "_rebuild_tensor"): _make_tensor,
    **{("torch.cuda", name): _StorageClass(name) for name in DTYPES},
}


def is_old_torch_file(path: Path) -> bool:
    """Whether a file begins as `torch.save` wrote it before PyTorch 1.6."""
    check_regular(path)
    with refusals(f"{path} cannot be read"), path.open("rb") as file:
        return file.read(len(OLD_START)) == OLD_START


class _OldUnpickler(_TensorUnpickler):
    """Builds `StoredTensor`s, and collects all storages by their records."""

    def __init__(self, file: BinaryIO, storages: dict[str, _Storage]):
        super().__init__(file, OLD_ALLOWED)
        self._storages = storages

    def persistent_load(self, pid: tuple) -> _Storage:
        *known, view = pid
        storage = super().persistent_load(tuple(known))
        if view is not None or self._storages.setdefault(storage.record, storage) != storage:
            raise pickle.UnpicklingError(f"its storage {storage.record} is two storages")
        return storage


class OldTorchFile:
    """A file of `torch.save` before PyTorch 1.6; see `TensorFile`. It holds what a `TorchArchive` does."""

    def __init__(self, path: Path):
        self.path = path
        check_regular(path)
        storages: dict[str, _Storage] = {}
        with refusals(f"{path} was refused"), path.open("rb") as file:
            pickles = io.BytesIO(file.read(JSON_BYTES.value))
            _, version, system, content, records = (_next_object(pickles, storages) for _ in range(5))
            if version != OLD_VERSION or not system["little_endian"]:
                raise pickle.UnpicklingError("it was written big-endian, or in a version that is not known")
            self._places = _place_storages(file, pickles.tell(), records, storages)
            self._tensors = tensors_of(path, content, StoredTensor)
            for name, tensor in self._tensors.items():
                _check_reach(path, name, tensor)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        storage = tensor.storage
        with refusals(f"{self.path} is damaged at {name}; download it again"):
            values = np.fromfile(self.path, storage.dtype, storage.size, offset=self._places[storage.record])
            return _view(values, tensor)


def _next_object(file: BinaryIO, storages: dict[str, _Storage]) -> Any:
    """Interpret the pickle that begins here, after it was looked through."""
    begin = file.tell()
    scan_pickle(file)
    file.seek(begin)
    return _OldUnpickler(file, storages).load()


def _place_storages(file: BinaryIO, begin: int, records: Any, storages: Mapping[str, _Storage]) -> dict[str, int]:
    """Where the numbers of each storage begin in the file. Storages begin at `begin`, in the order of `records`."""
    size = file.seek(0, os.SEEK_END)
    places: dict[str, int] = {}
    for record in check_value(records, tuple[str, ...], "the order of its storages"):
        file.seek(begin)
        count = int.from_bytes(file.read(COUNT_BYTES), "little")
        if record not in storages or record in places or storages[record].size != count:
            raise pickle.UnpicklingError(f"its storage {record} has not the size it claims")
        places[record] = begin + COUNT_BYTES
        begin = places[record] + count * storages[record].dtype.itemsize
        if begin > size:
            raise ValueError(f"it ends within its storages, after {size} bytes; download it again")
    if places.keys() != storages.keys():
        raise pickle.UnpicklingError("it lacks storages that its tensors need")
    return places


# -- Writing archives


def write_torch_archive(path: Path, tensors: Iterable[tuple[str, np.ndarray]], *, training: bool = True) -> None:
    """Write `{name: tensor}` as `torch.save` would.

    Args:
      path: The file; its stem names the archive's root folder.
      tensors: Names and arrays of a dtype in `DTYPES`. They are taken one at a time.
      training: Whether it looks like the checkpoint of a training, `{"state_dict": {name: tensor}, "global_step": 0}`.
    """
    root = path.stem
    # The pickle, opcode by opcode as the standard library's pickletools documents them: protocol 2, and an empty dict
    # of all tensors, each built by a call of _rebuild_tensor_v2; or another one around it.
    program = [b"\x80\x02}", *([_text("state_dict"), b"}"] if training else []), b"("]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for i, (name, x) in enumerate(tensors):
            program += [_text(name), *_tensor_program(str(i), np.asarray(x, order="C"))]
            archive.writestr(f"{root}/data/{i}", x.tobytes())
        program += [b"us", _text("global_step"), _integer(0), b"s."] if training else [b"u."]
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
