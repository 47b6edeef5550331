"""How much arithmetic a program does, and how fast a device does arithmetic."""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Matrix products inside cuDNN's attention, by JAX's name for it: q k and scores v. The gradient computes scores again.
CUDNN_PRODUCTS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def count_flops(jaxpr: Jaxpr) -> int:
    """Floating-point operations of the matrix products and convolutions of a program.

    A multiplication with its addition counts two. Loops count as often as they run, except `while`, whose number of
    trips is unknown: it counts once. What rematerialisation computes twice counts twice.
    """
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = _shape(equation.invars[0])
            total += 2 * math.prod(_shape(equation.outvars[0])) * math.prod(left[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, numbers = _shape(equation.invars[1]), params["dimension_numbers"]
            out = _shape(equation.outvars[0])
            taps = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            # zeros that a dilated input (the gradient of a strided convolution) is filled with are no work
            total += 2 * math.prod(out) * taps // math.prod(params["lhs_dilation"])
        elif equation.primitive.name == "pallas_call":
            total += pallas_flops(equation)
        elif equation.primitive.name in CUDNN_PRODUCTS:
            (*batch, n, a, d), k = _shape(equation.invars[0]), _shape(equation.invars[1])[-3]
            total += CUDNN_PRODUCTS[equation.primitive.name] * 2 * math.prod(batch) * n * k * a * d
        else:
            counts = [count_flops(body) for body in inner_programs(equation)]
            if equation.primitive.name == "cond":
                counts = [max(counts)]
            total += sum(counts) * _runs(equation)
    return total


def inner_programs(equation: JaxprEqn) -> list[Jaxpr]:
    """The programs that an equation holds: bodies of loops, branches, functions."""
    values = equation.params.values()
    inner = [x for value in values for x in (value if isinstance(value, tuple | list) else [value])]
    return [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in inner if isinstance(x, ClosedJaxpr | Jaxpr)]


def pallas_flops(equation: JaxprEqn) -> int:
    """Floating-point operations of one call of a Pallas kernel.

    They are what its cost estimate says, which leaves out what blocks compute in vain. Where there is none, they are
    those of the matrix products in the kernel, times the size of its grid.
    """
    params = equation.params
    if params["cost_estimate"] is not None:
        return int(params["cost_estimate"].flops)
    return count_flops(params["jaxpr"]) * math.prod(params["grid_mapping"].grid)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _runs(equation: JaxprEqn) -> int:
    """How often what an equation holds is run."""
    match equation.primitive.name:
        case "scan":
            return equation.params["length"]
        case "shard_map":  # written for one device
            return equation.params["mesh"].size
    return 1


def matmul_rate(dtype: jnp.dtype, size: int = 4096) -> float:
    """Floating-point operations per second of a square matrix product on the first device: the best of a few runs."""
    size = size if jax.default_backend() != "cpu" else 1024
    a = jax.device_put(jnp.ones((size, size), dtype), jax.local_devices()[0])
    product = jax.jit(lambda a: a @ a)
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        jax.block_until_ready(product(a))
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
