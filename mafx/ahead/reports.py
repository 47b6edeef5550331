"""What the compiler reports of a program: the memory that it takes, its weights, what its devices exchange."""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

from mafx.ahead.hlo import Computation, Instruction, Module, executions

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Memory(NamedTuple):
    """Bytes of a device's main memory that a program takes.

    Attributes:
      arguments: Of its arguments.
      donated: Of those arguments whose memory the results take.
      temporaries: Of what it computes on the way.
      rest: Of everything else: constants, and results with memory of their own.
    """

    arguments: int
    donated: int
    temporaries: int
    rest: int

    @property
    def total(self) -> int:
        """Donated arguments count once."""
        return self.arguments + self.temporaries + self.rest


def read_memory(report: str) -> Memory:
    """What a report of buffer assignment allocates in main memory."""
    sizes: collections.Counter[str] = collections.Counter()
    for size, kind in re.findall(r"^allocation \d+: size (\d+), (?:page \d+, )?(.*)", report, re.M):
        if "color" in kind or kind.startswith("thread-local"):  # in other memory
            continue
        if kind.startswith("parameter"):
            sizes["arguments"] += int(size)
            sizes["donated"] += int(size) if "maybe-live-out" in kind else 0
        else:
            sizes["temporaries" if kind.startswith("preallocated-temp") else "rest"] += int(size)
    return Memory(*(sizes[name] for name in Memory._fields))


def read_weights(module: Module) -> int:
    """Bytes of those arguments of a program whose names begin with "params"."""
    arguments = (x for x in module[module.entry].values() if x.opcode == "parameter")
    return sum(array.items_size for x in arguments if x.op_name.startswith("params[") for array in x.arrays)


def read_collectives(module: Module) -> dict[str, int]:
    """Bytes of the whole arrays that one device takes part in reducing, gathering and so on, by COLLECTIVES.

    Raises:
      ValueError: For a collective inside a loop of unknown length.
    """
    sizes = dict.fromkeys(COLLECTIVES, 0)
    for computation, x, times, repeated in executions(module):
        for kind, exchanged in _exchanged(module, computation, x):
            if repeated:
                raise ValueError(f"{x.name} stands in a loop, and how often its {kind} runs is unknown")
            sizes[kind] += times * exchanged
    return sizes


def _exchanged(module: Module, computation: Computation, x: Instruction) -> Iterator[tuple[str, int]]:
    """The kind and the bytes of each collective that an instruction is or, as a fusion, holds."""
    if x.opcode == "fusion":
        name = x.called("calls") or ""
        for inner in module[name].values():
            for kind, exchanged in _exchanged(module, module[name], inner):
                # TPUs write a reduce-scatter as an all-reduce in a computation with a name of its own.
                yield "reduce-scatter" if name.startswith("all-reduce-scatter") else kind, exchanged
    kind = x.opcode.removesuffix("-done")
    if kind in COLLECTIVES:
        whole = [computation[name] for name in x.operands] if x.opcode == "reduce-scatter" else [x]
        yield kind, sum(array.items_size for y in whole for array in y.arrays)
