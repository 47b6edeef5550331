"""Files of tensors as PyTorch users keep them: safetensors, and the zip archives of `torch.save`.

Both are read and written without PyTorch. Opening a file reads the names, shapes and dtypes of its tensors. Each tensor
is then read alone, so that loading needs the memory of one tensor beyond what the caller keeps.
"""

import contextlib
import dataclasses
import io
import math
import os
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

import ml_dtypes
import numpy as np
import safetensors.numpy

from mafx.errors import InputError, refusals
from mafx.files import Range, check_regular, check_value, parse_json
from mafx.limits import JSON_BYTES

MAX_AXES = 8  # of a tensor
LONGEST_NAME = 500  # of a tensor


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


# The dtypes of safetensors that networks are kept in.
SAFETENSORS_DTYPES: dict[str, np.dtype] = {
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
Natural = Annotated[int, Range(0)]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tensor as the header of a safetensors file has it: its numbers lie between two offsets of the data."""

    dtype: str
    shape: Annotated[tuple[Natural, ...], Range(0, MAX_AXES)]
    data_offsets: tuple[Natural, Natural]


class Safetensors:
    """A `.safetensors` file; see `TensorFile`.

    The library `safetensors` accepts names that appear twice, and dtypes that NumPy does not have. So the header, which
    is JSON, is read like all JSON.
    """

    def __init__(self, path: Path):
        self.path = path
        check_regular(path)
        with refusals(f"{path} is not a whole safetensors file; download it again"):
            self._start, entries = _read_header(path)
            self._entries = _check_entries(path, entries, path.stat().st_size - self._start)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        with refusals(f"{self.path} is damaged at {name}; download it again"):
            count, offset = math.prod(entry.shape), self._start + entry.data_offsets[0]
            x = np.fromfile(self.path, SAFETENSORS_DTYPES[entry.dtype], count, offset=offset)
            return x.reshape(entry.shape)


def _read_header(path: Path) -> tuple[int, dict[str, Entry]]:
    """Where the data begin, and what they are."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size - 8:
            raise ValueError("it ends within its header")
        JSON_BYTES.check(f"the header of {path}", length)
        header = file.read(length)
    content = parse_json(header, f"the header of {path}")
    content.pop("__metadata__", None)
    return 8 + length, check_value(content, dict[str, Entry], str(path))


def _check_entries(path: Path, entries: dict[str, Entry], size: int) -> dict[str, Entry]:
    """Check that tensors have known dtypes, and lie in the data without overlaps and as large as their shapes say."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        _check_tensor_name(path, name)
        if entry.dtype not in SAFETENSORS_DTYPES:
            expected = ", ".join(SAFETENSORS_DTYPES)
            found = ascii(entry.dtype)[:LONGEST_NAME]
            raise InputError(f"{path}: expected tensors of one of the dtypes {expected}, found {name} of {found}")
        first, last = entry.data_offsets
        if first < end or last - first != math.prod(entry.shape) * SAFETENSORS_DTYPES[entry.dtype].itemsize:
            raise ValueError(f"{name} has not the place that its shape needs")
        end = last
    if end > size:
        raise ValueError(f"{end} bytes of tensors are announced, {size} are there")
    return entries


def _check_tensor_name(path: Path, name: str) -> None:
    if not (name.isprintable() and 0 < len(name) <= LONGEST_NAME):
        raise InputError(f"{path}: expected names of tensors of one line, found {ascii(name)[:LONGEST_NAME]}")


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


class _StorageClass(NamedTuple):
    """A class of torch that stands for a dtype: a key of DTYPES."""

    name: str


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
            return _StorageClass(name)
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of tensors needs")
        return ALLOWED[module, name]

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, record, _, size = pid
        if kind != "storage" or not isinstance(dtype, _StorageClass):
            raise pickle.UnpicklingError(f"it refers to {kind!r} outside the file")
        return _Storage(DTYPES[dtype.name], record, size)


# What torch.save writes. Text that must be interpreted and objects that set themselves up are not among it.
OPCODES = frozenset(
    (
        *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINPERSID", "POP", "POP_MARK", "DUP"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT"),
        *("SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
    )
)
FILLS = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))  # what lies below them
MAX_VALUES = 1000  # in a tuple, with all tuples in it; a tensor needs about 20


def scan_pickle(program: bytes) -> None:
    """Look through a pickle without interpreting it.

    It is followed how many values each tuple holds: hashing a deep one overflows the interpreter's stack, and one that
    holds another twice, over and over, takes for ever.

    Raises:
      UnpicklingError: It has operations that no file of tensors needs, a memo with gaps, or too large a tuple.
    """
    stack: list[int] = []  # the number of values in each; 0 is a mark
    memo: dict[object, int] = {}
    for opcode, argument, place in pickletools.genops(program):
        name, position = opcode.name, place or 0
        if name not in OPCODES:
            raise pickle.UnpicklingError(f"it has the operation {name}, which no file of tensors needs")
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if name == "MEMOIZE" else argument or 0
            if index > position:
                raise pickle.UnpicklingError(f"it has a memo of {index} places in {position} bytes")
            memo[index] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            _follow(opcode, stack)
        if stack and stack[-1] > MAX_VALUES:
            raise pickle.UnpicklingError(f"it has a tuple of more than {MAX_VALUES} values")


def _follow(opcode: pickletools.OpcodeInfo, stack: list[int]) -> None:
    """Do to a stack of numbers of values what an operation does to a stack of values."""
    if opcode.name in ("MARK", "DUP"):
        stack.append(0 if opcode.name == "MARK" else stack[-1])
        return
    needed, taken = list(opcode.stack_before), 0
    if pickletools.markobject in needed:
        while values := stack.pop():
            taken += values
        needed = needed[: needed.index(pickletools.markobject)]
    for _ in needed:
        taken += stack.pop()
    changeable = opcode.name in FILLS or opcode.name.startswith("EMPTY")  # cannot be hashed: counts as one value
    stack += [1 if changeable else 1 + taken for _ in opcode.stack_after]


class TorchArchive:
    """A zip archive of `torch.save`; see `TensorFile`.

    It holds a state dict, or a dict with a state dict under the key `state_dict`.
    """

    def __init__(self, path: Path):
        self.path = path
        check_regular(path)
        with _refusals(path), zipfile.ZipFile(path) as archive:
            _check_members(archive)
            self._root, content = _unpickle(archive)
            if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
                content = content["state_dict"]
            if not isinstance(content, Mapping):
                raise InputError(f"{path} was refused: expected a dict of tensors, found {type(content).__name__}")
            self._tensors = {name: x for name, x in content.items() if isinstance(x, _Tensor)}
            for name, tensor in self._tensors.items():
                _check_tensor_name(path, name)
                self._check_tensor(archive, name, tensor)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    def _check_tensor(self, archive: zipfile.ZipFile, name: str, tensor: _Tensor) -> None:
        storage, offset, shape, strides = tensor
        where = f"{self.path}: {name}"
        check_value([storage.size, offset, *strides], tuple[int, ...], where)
        check_value([*shape], Annotated[tuple[int, ...], Range(0, MAX_AXES)], where)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        # A stride of 0, or less than what lies below it, would make many numbers of few.
        outside = 0 not in shape and (last >= storage.size or math.prod(shape) > storage.size)
        if outside or min(storage.size, offset, *shape, *strides) < 0:
            raise InputError(f"{self.path} was refused: tensor {name} reaches outside its storage")
        record = archive.getinfo(f"{self._root}data/{storage.record}")
        if record.file_size != storage.size * storage.dtype.itemsize:
            raise InputError(f"{self.path} was refused: the storage of {name} has not the size it claims")

    def read(self, name: str) -> np.ndarray:
        storage, offset, shape, strides = self._tensors[name]
        with refusals(f"{self.path} is damaged at {name}; download it again"), zipfile.ZipFile(self.path) as archive:
            values = np.frombuffer(archive.read(f"{self._root}data/{storage.record}"), storage.dtype)
        return np.lib.stride_tricks.as_strided(values[offset:], shape, [n * values.itemsize for n in strides])


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn everything that opening an archive can raise into an InputError."""
    try:
        with refusals(f"{path} was refused"):
            yield
    except InputError as error:
        if not isinstance(error.__cause__, zipfile.BadZipFile):
            raise
        advice = "download it again, or save it anew with PyTorch 1.6 or later"
        raise InputError(f"{path} is not a whole zip archive of torch.save ({error.__cause__}); {advice}") from error


def _check_members(archive: zipfile.ZipFile) -> None:
    """Refuse compressed members, which torch.save does not write, and members that lie over one another."""
    members = archive.infolist()
    if packed := next((x for x in members if x.compress_type != zipfile.ZIP_STORED or x.flag_bits & 1), None):
        raise pickle.UnpicklingError(f"{packed.filename!r} is compressed or encrypted, which torch.save does not do")
    size = Path(archive.filename or "").stat().st_size
    if any(x.file_size != x.compress_size for x in members) or sum(x.file_size for x in members) > size:
        raise pickle.UnpicklingError("its members have not the sizes that they claim")


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
    JSON_BYTES.check(pickles[0], archive.getinfo(pickles[0]).file_size)
    program = archive.read(pickles[0])
    scan_pickle(program)
    return root, _TensorUnpickler(io.BytesIO(program)).load()


# -- Writing


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a `.safetensors` file, marked as PyTorch's as the published tools demand."""
    contiguous = {name: np.asarray(x, order="C") for name, x in tensors.items()}
    try:
        safetensors.numpy.save_file(contiguous, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # it has no other word for a full disk
        raise OSError(str(error)) from error
    umask = os.umask(0)  # can only be asked by setting it
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # the library lets only its user read


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
