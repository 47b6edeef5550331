"""The arithmetic of Pallas kernels, from the program as JAX traced it.

What XLA compiles of a kernel is a custom call. Its text has the kernel's name and code, not its `pl.CostEstimate`: JAX
drops that when it lowers a Triton kernel. The traced program still has it, beside the shapes by which the custom call
is found again.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, JaxprEqn

from mafx.flops import inner_programs, pallas_flops

Shapes = tuple[tuple[int, ...], ...]


class PallasCall(NamedTuple):
    """A Pallas kernel that a program calls.

    Attributes:
      name: Its name.
      operands: Shapes of what it takes.
      results: Shapes of what it gives.
      flops: Floating-point operations of one call.
    """

    name: str
    operands: Shapes
    results: Shapes
    flops: int


def pallas_calls(jaxpr: Jaxpr) -> set[PallasCall]:
    """All different Pallas kernels of a traced program, with their arithmetic, see `flops.pallas_flops`."""
    return set(_calls(jaxpr))


def _calls(jaxpr: Jaxpr) -> Iterator[PallasCall]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield _call(equation)
            continue
        for inner in inner_programs(equation):
            yield from _calls(inner)


def _call(equation: JaxprEqn) -> PallasCall:
    shapes = _shapes(equation.invars), _shapes(equation.outvars)
    return PallasCall(equation.params["name"] or "", *shapes, pallas_flops(equation))


def _shapes(variables: Iterable[Any]) -> Shapes:
    return tuple(tuple(variable.aval.shape) for variable in variables)


def find_call(calls: Iterable[PallasCall], text: str, operands: Shapes, results: Shapes) -> PallasCall | None:
    """The kernel with these shapes, None where there is none.

    Args:
      calls: Of the program.
      text: Where the kernel's name is looked for, if several have these shapes.
      operands: Shapes of what the custom call takes.
      results: Shapes of what it gives.
    """
    fitting = [call for call in calls if (call.operands, call.results) == (operands, results)]
    return max(fitting, key=lambda call: (call.name in text, call.flops), default=None)
