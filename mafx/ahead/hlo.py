"""XLA's optimised programs, read as text: computations, instructions, the bytes of arrays, how often loops run."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ITEM_BYTES = {"pred": 1, "bf16": 2}  # others have their bits in their names: f8e4m3fn, s32
COMPUTATION = re.compile(r"(ENTRY )?%([\w.-]+) \(")
INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.-]+) = ")
OPCODE = re.compile(r"\s*([\w-]+)\(")
OPERAND = re.compile(r"%([\w.-]+)")
ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
TILE = re.compile(r"T\(([\d,]*)\)")
RENAMING = ("bitcast", "copy", "convert", "reshape")  # what these give is what another instruction has made


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array.

    Attributes:
      dtype: As XLA names it.
      shape: Number of elements along each axis.
      size: Bytes in memory. Where memory is laid out in tiles, the last ones are filled up.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def items_size(self) -> int:
        """Bytes of its elements alone."""
        return math.ceil(item_bytes(self.dtype) * math.prod(self.shape))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: Its name within the computation.
      arrays: The arrays that it gives, those of a tuple one after the other.
      opcode: What it does.
      operands: Names of the instructions that it takes.
      inside: The text between its parentheses.
      attributes: The text behind them.
      root: Whether the computation gives what it gives.
    """

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str
    attributes: str
    root: bool

    @property
    def size(self) -> int:
        """Bytes of all its arrays."""
        return sum(array.size for array in self.arrays)

    @property
    def op_name(self) -> str:
        """The path of names that JAX gives to the operation: "jit(run_steps)/while/body/Animator.denoise/..."."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match[1] if match else ""

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern among the attributes, None where there is no match."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None

    def numbers(self, pattern: str) -> tuple[int, ...]:
        """All numbers in the first group of a pattern among the attributes."""
        return tuple(map(int, re.findall(r"-?\d+", self.attribute(pattern) or "")))

    def called(self, attribute: str) -> str | None:
        """Name of the computation that an attribute names."""
        return self.attribute(rf"\b{attribute}=%([\w.-]+)")


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: All computations, by name.
      entry: Name of the first.
    """

    computations: dict[str, Computation]
    entry: str

    def __getitem__(self, name: str | None) -> Computation:
        return self.computations[name or ""]


# -- Reading


def read_module(text: str) -> Module:
    """A program from its text.

    Raises:
      ValueError: Where there is no entry.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in _whole_lines(text):
        if head := COMPUTATION.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (start := INSTRUCTION.match(line)):
            current[start[2]] = _read_instruction(start[2], bool(start[1]), line[start.end() :])
    if not entry:
        raise ValueError("expected the text of an optimised program, found no entry in it")
    return Module(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, where an instruction whose attributes hold line breaks is one."""
    pending = ""
    for line in text.splitlines():
        begins = line == "}" or INSTRUCTION.match(line) or COMPUTATION.match(line) or not line
        if begins and pending:
            yield pending
            pending = ""
        pending = pending + line if pending else line
    if pending:
        yield pending


def _read_instruction(name: str, root: bool, text: str) -> Instruction:
    """The instruction whose text stands behind the equals sign."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    types, text = text[:end], text[end:]
    opcode = OPCODE.match(text)
    if opcode is None:
        raise ValueError(f"expected an operation behind the type of {name}, found {text[:80]!r}")
    end = _closing(text, opcode.end() - 1)
    inside, attributes = text[opcode.end() : end - 1], text[end:]
    operands = () if opcode[1] == "constant" else tuple(OPERAND.findall(inside))
    return Instruction(name, tuple(read_arrays(types)), opcode[1], operands, inside, attributes, root)


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    raise ValueError(f"expected a closing parenthesis, found none in {text[start : start + 80]!r}")


def read_arrays(types: str) -> Iterator[Array]:
    """The arrays in the text of a type, such as "(f32[4,2]{1,0}, bf16[8])"."""
    for dtype, sides, order, layout in ARRAY.findall(types):
        shape = tuple(map(int, re.findall(r"\d+", sides)))
        tile = TILE.search(layout)
        physical = _in_tiles(shape, order, tile[1]) if tile else shape
        yield Array(dtype, shape, math.ceil(item_bytes(dtype) * math.prod(physical)))


def _in_tiles(shape: tuple[int, ...], order: str, tile: str) -> list[int]:
    """Numbers of elements along each axis, from the outermost in memory, filled up to whole tiles."""
    physical = [shape[int(axis)] for axis in reversed(order.split(","))] if order else []
    sides = [int(side) for side in tile.split(",")]
    physical = [1] * (len(sides) - len(physical)) + physical
    for i, side in enumerate(sides, start=len(physical) - len(sides)):
        physical[i] = math.ceil(physical[i] / side) * side
    return physical


def item_bytes(dtype: str) -> float:
    """Bytes of an element; 0 of tokens and other things that are no numbers."""
    if dtype in ITEM_BYTES:
        return ITEM_BYTES[dtype]
    bits = re.match(r"[a-z]+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0


# -- What runs


class Execution(NamedTuple):
    """An instruction that runs.

    Attributes:
      computation: Where it stands.
      instruction: The instruction.
      times: How often it runs. Loops of unknown length count once.
      repeated: Whether it stands in a loop of unknown length.
    """

    computation: Computation
    instruction: Instruction
    times: int
    repeated: bool


def executions(module: Module, name: str | None = None, times: int = 1, repeated: bool = False) -> Iterator[Execution]:
    """Everything that a computation runs, what it calls included; a fusion is one instruction.

    Of several branches the longest counts.
    """
    computation = module[name or module.entry]
    for x in computation.values():
        match x.opcode:
            case "while":
                length = loop_length(module, computation, x)
                inside = times if length is None else times * length
                yield from executions(module, x.called("body"), inside, repeated or length is None)
            case "call" | "async-start":
                yield from executions(module, x.called("to_apply") or x.called("calls"), times, repeated)
            case "conditional":
                yield from executions(module, _longest_branch(module, x), times, repeated)
            case _:
                yield Execution(computation, x, times, repeated)


def _longest_branch(module: Module, x: Instruction) -> str:
    """Name of the longest of the computations that a condition chooses from."""
    named = re.findall(r"(?:branch_computations=\{[^}]*|(?:true|false)_computation=%[\w.-]+)", x.attributes)
    return max(OPERAND.findall(" ".join(named)), key=lambda name: len(module[name]))


def loop_length(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop runs, None where that is not known before it runs.

    XLA says it of many loops. Of others it is read from the condition: a counter that one adds to, and a constant.
    """
    if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = module[loop.called("condition")]
    compared = next(x for x in condition.values() if x.root)
    if compared.opcode != "compare" or "direction=LT" not in compared.attributes:
        return None
    starts = computation[loop.operands[0]]
    counter, limit = (_source(condition, name) for name in compared.operands)
    first = _constant(computation, _start(starts, counter))
    last = _constant(condition, limit.name)
    if last is None:
        last = _constant(computation, _start(starts, limit))
    return None if first is None or last is None else max(0, last - first)


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction that makes what others only rename."""
    x = computation[name]
    while x.opcode in RENAMING:
        x = computation[x.operands[0]]
    return x


def _start(starts: Instruction, element: Instruction) -> str | None:
    """Name of what an element of a loop's tuple is at first."""
    index = element.attribute(r"index=(\d+)") if element.opcode == "get-tuple-element" else None
    return starts.operands[int(index)] if index and starts.opcode == "tuple" else None


def _constant(computation: Computation, name: str | None) -> int | None:
    """The value of an integer constant, None where it is none."""
    if name is None:
        return None
    x = _source(computation, name)
    return int(x.inside) if x.opcode == "constant" and re.fullmatch(r"-?\d+", x.inside) else None
