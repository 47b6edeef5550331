"""The arithmetic of Pallas kernels, from the program as JAX traced it.

What XLA compiles of a kernel is a custom call. Its text has the kernel's name and code, not its `pl.CostEstimate`: JAX
drops that when it lowers a Triton kernel. The traced program still has it, beside the shapes by which the custom call
is found again.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from mafx.flops import count_flops

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
    """All different Pallas kernels of a traced program.

    Their arithmetic is what their cost estimate says. Where they have none, it is that of the matrix products in the
    kernel times the size of its grid.
    """
    return set(_calls(jaxpr))


def _calls(jaxpr: Jaxpr) -> Iterator[PallasCall]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield _call(equation)
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr | Jaxpr):
                    yield from _calls(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _call(equation: JaxprEqn) -> PallasCall:
    params, estimate = equation.params, equation.params["cost_estimate"]
    if estimate is not None:
        flops = estimate.flops
    else:
        flops = count_flops(params["jaxpr"]) * math.prod(params["grid_mapping"].grid)
    return PallasCall(params["name"] or "", _shapes(equation.invars), _shapes(equation.outvars), int(flops))


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
