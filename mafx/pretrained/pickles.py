"""Pickles that are read without trust: looked through first, and interpreted with a list of what they may name."""

import pickle
import pickletools
from collections.abc import Mapping
from typing import Any, BinaryIO

Allowed = Mapping[tuple[str, str], Any]  # what stands for the classes and functions of some modules

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
NEW_OBJECTS = frozenset(("NEWOBJ",))  # makes an object without its function: for files of objects that are allowed
FILLS = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))  # what lies below them
MAX_VALUES = 1000  # in a tuple, with all tuples in it; a tensor needs about 20
MAX_OPERATIONS = 2**24  # a tensor needs about 30


class RestrictedUnpickler(pickle.Unpickler):
    """Interprets a pickle. Every name that is not allowed is refused, so nothing in the file is executed.

    Text of Python 2 is read as latin1, which keeps its bytes.
    """

    def __init__(self, file: BinaryIO, allowed: Allowed):
        super().__init__(file, encoding="latin1")
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of tensors needs")
        return self._allowed[module, name]


def scan_pickle(program: bytes | BinaryIO, opcodes: frozenset[str] = OPCODES) -> None:
    """Look through a pickle without interpreting it.

    It is followed how many values each tuple holds: hashing a deep one overflows the interpreter's stack, and one that
    holds another twice, over and over, takes for ever.

    Args:
      program: The pickle, or an open file of it. Of a file, one value at a time is in memory.
      opcodes: The operations that it may have.

    Raises:
      UnpicklingError: It has operations that no file of tensors needs, too many of them, a memo with gaps, or too large
        a tuple.
    """
    stack: list[int] = []  # the number of values in each; 0 is a mark
    memo: dict[object, int] = {}
    for count, (opcode, argument, place) in enumerate(pickletools.genops(program)):
        name, position = opcode.name, place or 0
        if count >= MAX_OPERATIONS:
            raise pickle.UnpicklingError(f"it has more than {MAX_OPERATIONS} operations")
        if name not in opcodes:
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
