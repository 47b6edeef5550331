"""Pickles of NumPy arrays, which model zoos have."""

import math
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np

from mafx.errors import InputError, refusals
from mafx.files import check_regular, check_value
from mafx.pretrained.pickles import Allowed, RestrictedUnpickler, scan_pickle
from mafx.pretrained.tensors import Shape, tensors_of

ARRAY_DTYPES = {x: np.dtype(x) for x in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")}
NATIVE_ORDERS = ("<", "|")  # the first byte is the least, or there is one only


class _PickledDtype:
    """A dtype of NumPy as pickles have it: a name such as "f4", and a state with the order of bytes."""

    def __init__(self, name: str, *_: object):
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _PickledArray:
    """An array of NumPy as pickles have it: shape, dtype, whether columns come first, and bytes."""

    def __setstate__(self, state: tuple) -> None:
        _, self.shape, self.dtype, self.column_major, self.content = state


def _make_array(kind: type, *_: object) -> _PickledArray:
    if kind is not _PickledArray:
        raise pickle.UnpicklingError("it has an array of an unknown kind")
    return _PickledArray()


ALLOWED_FOR_ARRAYS: Allowed = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("numpy.core.multiarray", "_reconstruct"): _make_array,
    ("numpy._core.multiarray", "_reconstruct"): _make_array,
}


class ArrayPickle:
    """A pickle of arrays of NumPy, in protocol 2 to 4 and from Python 2 or 3; see `TensorFile`.

    It holds a dict of arrays, or a dict with such a dict under one of the keys `STATE_KEYS`.
    """

    def __init__(self, path: Path):
        self.path = path
        check_regular(path)
        with refusals(f"{path} was refused"), path.open("rb") as file:
            scan_pickle(file)
            file.seek(0)
            content = RestrictedUnpickler(file, ALLOWED_FOR_ARRAYS).load()
            tensors = tensors_of(path, content, _PickledArray)
            self._arrays = {name: _array_of(f"{path}: {name}", x) for name, x in tensors.items()}
        self.shapes = {name: x.shape for name, x in self._arrays.items()}

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


def _array_of(where: str, pickled: _PickledArray) -> np.ndarray:
    """The array, without a copy of its bytes."""
    shape = check_value([*pickled.shape], Shape, where)
    dtype, order = pickled.dtype.name, pickled.dtype.order
    if dtype not in ARRAY_DTYPES or order not in NATIVE_ORDERS:
        raise InputError(f"{where}: expected one of the dtypes {', '.join(ARRAY_DTYPES)}, found {ascii(dtype)[:50]}")
    content = pickled.content
    content = content.encode("latin1") if isinstance(content, str) else content
    values = np.frombuffer(content, ARRAY_DTYPES[dtype])
    if values.size != math.prod(shape):
        raise InputError(f"{where}: expected as many numbers as its shape {shape} has, found {values.size}")
    return values.reshape(shape, order="F" if pickled.column_major else "C")
