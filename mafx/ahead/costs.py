"""What the kernels of an optimised program do, and how long a card would take for them by a model.

A kernel takes the larger of arithmetic / rate and bytes / bandwidth, and its launch. Arithmetic is that of matrix
products and convolutions. Bytes are those of operands and results; of what is only sliced or updated in a slice, the
slice counts. What a library is lent to work in does not count. Nothing overlaps, caches hold nothing from one kernel to
the next, and what devices exchange is left out.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mafx.ahead.hlo import Computation, Execution, Instruction, Module, executions
from mafx.ahead.pallas import PallasCall, find_call
from mafx.ahead.reports import COLLECTIVES
from mafx.ahead.targets import Nvidia, Tpu

# Not a kernel: names, and what the compiler notes for itself.
FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all", "opt-barrier", "add-dependency"}
FREE |= {"partition-id", "replica-id", *COLLECTIVES, *(f"{name}-start" for name in COLLECTIVES)}
FREE_CALLS = {"AllocateBuffer", "AssumeGatherIndicesInBound", "Sharding"}
PASSED_ON = ("bitcast", "reshape")  # within a fusion
SLICES = ("slice", "dynamic-slice", "gather")
WORKSPACE = ("s8", "u8")  # how cuBLAS' and cuDNN's room to work in appears among their results

# Kinds of kernels that multiply.
PRODUCT, CONVOLUTION, ATTENTION = "product", "convolution", "attention"
PALLAS_PRODUCT, PALLAS_ATTENTION = "Pallas product", "Pallas attention"
# Share of the library's rate that a Triton kernel is taken to reach. It pads no heads.
PALLAS_PRODUCT_SHARE, PALLAS_ATTENTION_SHARE = 0.8, 0.75
FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5  # of attention; the gradient computes the scores again


class Work(NamedTuple):
    """Matrix products or convolutions.

    Attributes:
      flops: Floating-point operations; a multiplication with its addition counts two.
      padded: The same with what the card's units are filled up to.
      dtype: Of the factors, as XLA names it.
    """

    flops: float = 0.0
    padded: float = 0.0
    dtype: str = ""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of a program.

    Attributes:
      name: Of the instruction.
      kind: One of the kinds above, or XLA's name for what it does.
      work: Its arithmetic.
      size: Bytes that it reads and writes.
      count: How often it runs.
      repeated: Whether it stands in a loop of unknown length, which counts once.
      op_name: JAX's path of names.
      op_names: Those of everything that is fused into it.
      opcodes: Operations of everything that is fused into it.
      result: Type of what it gives.
      seconds: Of one run, by the model.
    """

    name: str
    kind: str
    work: Work
    size: float
    count: int
    repeated: bool
    op_name: str
    op_names: frozenset[str]
    opcodes: frozenset[str]
    result: str
    seconds: float = 0.0


def kernels_of(module: Module, target: Nvidia | Tpu, calls: Iterable[PallasCall] = ()) -> list[Kernel]:
    """All kernels of a program.

    Args:
      module: The program.
      target: The card that it was compiled for.
      calls: The Pallas kernels of the program as it was traced.
    """
    calls, kernels = list(calls), []
    for execution in executions(module):
        opcode = execution.instruction.opcode
        if opcode in FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "custom-call" and _call_target(execution.instruction) in FREE_CALLS:
            continue
        kernel = _kernel(module, execution, target, calls)
        kernels.append(dataclasses.replace(kernel, seconds=seconds_of(kernel, target)))
    return kernels


# -- Time


def seconds_of(kernel: Kernel, target: Nvidia | Tpu) -> float:
    """Seconds that one run of a kernel takes by the model."""
    arithmetic = kernel.work.padded / rate_of(kernel, target) if kernel.work.padded else 0.0
    return max(arithmetic, kernel.size / target.rates.bandwidth) + target.rates.launch


def rate_of(kernel: Kernel, target: Nvidia | Tpu) -> float:
    """FLOP/s that are assumed of a kernel that multiplies."""
    rates = target.rates
    if kernel.work.dtype in ("f32", "f64"):
        return rates.float32
    return {
        CONVOLUTION: rates.convolution,
        ATTENTION: rates.attention,
        PALLAS_ATTENTION: PALLAS_ATTENTION_SHARE * rates.attention,
        PALLAS_PRODUCT: PALLAS_PRODUCT_SHARE * rates.product,
    }.get(kernel.kind, rates.product)


# -- One kernel


def _kernel(module: Module, execution: Execution, target: Nvidia | Tpu, calls: list[PallasCall]) -> Kernel:
    computation, x, count, repeated = execution
    inputs = [computation[name] for name in x.operands]
    kind, work, fused = x.opcode, Work(), [x]
    match x.opcode:
        case "custom-call":
            kind, work = _library_work(x, inputs, target, calls)
            size = _sizes(inputs) + sum(array.size for array in _results(x))
        case "fusion":
            body = module[x.called("calls")]
            fused += _everything(module, body)
            kind, work = _fused_work(module, body, target)
            size = _fusion_size(module, body, x)
        case "dot" | "convolution":
            kind, work = _own_work(x, computation, target)
            size = _sizes(inputs) + x.size
        case "slice" | "dynamic-slice" | "gather":
            size = 2 * x.size
        case "dynamic-update-slice":
            size = 2 * inputs[1].size
        case "scatter":
            size = 2 * inputs[-1].size
        case _ if x.opcode.endswith("-start"):  # gives its operand again, and more
            size = 2 * x.arrays[0].size
        case _:
            size = _sizes(inputs) + x.size
    op_names, opcodes = (frozenset(map(get, fused)) for get in (_op_name, _opcode))
    result = " ".join(f"{array.dtype}{list(array.shape)}" for array in _results(x)[:2])
    return Kernel(x.name, kind, work, size, count, repeated, x.op_name, op_names, opcodes, result)


def _op_name(x: Instruction) -> str:
    return x.op_name


def _opcode(x: Instruction) -> str:
    return x.opcode


def _sizes(instructions: Iterable[Instruction]) -> float:
    return sum(x.size for x in instructions)


def _results(x: Instruction) -> list:
    """What a library gives, without the room that it works in."""
    return [array for array in x.arrays if array.dtype not in WORKSPACE or x.opcode != "custom-call"] or list(x.arrays)


def _everything(module: Module, body: Computation) -> Iterator[Instruction]:
    """All instructions of a fusion, and of fusions within it."""
    for x in body.values():
        yield x
        if x.opcode == "fusion":
            yield from _everything(module, module[x.called("calls")])


# -- Arithmetic


def _own_work(x: Instruction, computation: Computation, target: Nvidia | Tpu) -> tuple[str, Work]:
    """The kind and arithmetic of one of XLA's own products and convolutions. TPUs write products as convolutions."""
    inputs = [computation[name] for name in x.operands[:2]]
    work = _dot_work(x, inputs, target) if x.opcode == "dot" else _convolution_work(x, inputs, target)
    convolves = x.opcode == "convolution" and "conv_general_dilated" in x.op_name
    return CONVOLUTION if convolves else PRODUCT, work


def _fused_work(module: Module, body: Computation, target: Nvidia | Tpu) -> tuple[str, Work]:
    """The arithmetic of all products in a fusion, and the kind of the largest."""
    kind, largest, flops, padded, dtype = "fusion", 0.0, 0.0, 0.0, ""
    for x in body.values():
        if x.opcode in ("dot", "convolution"):
            own_kind, work = _own_work(x, body, target)
        elif x.opcode == "fusion":
            own_kind, work = _fused_work(module, module[x.called("calls")], target)
        else:
            continue
        flops, padded = flops + work.flops, padded + work.padded
        if work.flops > largest:
            kind, largest, dtype = own_kind, work.flops, work.dtype
    return kind, Work(flops, padded, dtype)


def _dot_work(x: Instruction, inputs: list[Instruction], target: Nvidia | Tpu) -> Work:
    contracted = x.numbers(r"lhs_contracting_dims=\{([^}]*)\}")
    batch = x.numbers(r"lhs_batch_dims=\{([^}]*)\}")
    return _product_work(inputs, contracted, batch, x.arrays[0].shape, target)


def _product_work(
    inputs: list[Instruction],
    contracted: Iterable[int],
    batch: Iterable[int],
    result: tuple[int, ...],
    target: Nvidia | Tpu,
) -> Work:
    """The arithmetic of a matrix product, by the left factor's contracted and batch axes."""
    left, right = (x.arrays[0] for x in inputs[:2])
    depth = math.prod(left.shape[axis] for axis in contracted)
    batches = math.prod(left.shape[axis] for axis in batch)
    rows, columns = (math.prod(side.shape) // (depth * batches) for side in (left, right))
    flops = 2.0 * math.prod(result) * depth
    return Work(flops, flops * _filling(depth, columns, rows, target.tile), left.dtype)


def _filling(depth: int, columns: int, rows: int, tile: int) -> float:
    """By how much arithmetic grows where units of a side multiply: either factor may be the one that stays in them."""

    def growth(sides: int) -> float:
        return math.ceil(sides / tile) * tile / sides

    return growth(depth) * min(growth(columns), growth(rows))


def _convolution_work(x: Instruction, inputs: list[Instruction], target: Nvidia | Tpu) -> Work:
    """The arithmetic of XLA's general convolution. What meets its border, or the zeros of dilation, is no work."""
    labels = x.attribute(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)") or ""
    sources, _, out_labels = labels.partition("->")
    in_labels, kernel_labels = sources.split("_")
    in_shape, kernel_shape, out_shape = inputs[0].arrays[0].shape, inputs[1].arrays[0].shape, x.arrays[0].shape
    taps = 1
    for i, window in enumerate(_windows(x, sum(label.isdigit() for label in out_labels))):
        sides = (in_shape[in_labels.index(str(i))], out_shape[out_labels.index(str(i))])
        taps *= _meetings(*sides, **window)
    depth, columns = (kernel_shape[kernel_labels.index(label)] for label in "io")
    outputs = math.prod(out_shape)
    flops = 2.0 * taps * out_shape[out_labels.index("b")] * out_shape[out_labels.index("f")] * depth
    if depth < target.tile // 2:  # few channels are taken to be packed with their taps
        depth *= math.prod(kernel_shape) // (depth * columns)
    return Work(flops, flops * _filling(depth, columns, outputs // columns, target.tile), inputs[0].arrays[0].dtype)


def _windows(x: Instruction, axes: int) -> list[dict[str, int]]:
    """Size, stride, padding and dilations along each spatial axis."""
    text = x.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(word.split("=") for word in text.split())

    def along(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * axes

    columns = zip(
        along("size", "1"),
        along("stride", "1"),
        along("pad", "0_0"),
        along("lhs_dilate", "1"),
        along("rhs_dilate", "1"),
        strict=True,
    )
    return [
        {"size": int(a), "stride": int(b), "before": int(c.split("_")[0]), "in_step": int(d), "tap_step": int(e)}
        for a, b, c, d, e in columns
    ]


def _meetings(inputs: int, outputs: int, *, size: int, stride: int, before: int, in_step: int, tap_step: int) -> int:
    """How many pairs of an output and a tap meet an input along one axis."""
    places = np.arange(outputs)[:, None] * stride + np.arange(size) * tap_step - before
    return int(((places >= 0) & (places % in_step == 0) & (places < inputs * in_step)).sum())


# -- Libraries


def _call_target(x: Instruction) -> str:
    return x.attribute(r'custom_call_target="([^"]+)"') or ""


def _library_work(
    x: Instruction, inputs: list[Instruction], target: Nvidia | Tpu, calls: list[PallasCall]
) -> tuple[str, Work]:
    """The kind and arithmetic of a call of cuBLAS, cuDNN or a Pallas kernel."""
    name = _call_target(x)
    if "matmul" in name or "gemm" in name:
        contracted, batch = (x.numbers(rf'lhs_{axes}_dimensions":\[([^\]]*)\]') for axes in ("contracting", "batch"))
        return PRODUCT, _product_work(inputs, contracted, batch, _results(x)[0].shape, target)
    if "cudnn$conv" in name:
        return CONVOLUTION, _cudnn_convolution_work(x, inputs, name)
    if "fmha" in name:
        return ATTENTION, _cudnn_attention_work(x, inputs, name, target)
    if "triton" in name or "mosaic" in name or name == "tpu_custom_call":
        return _pallas_work(x, inputs, target, calls)
    return name, Work()


def _cudnn_convolution_work(x: Instruction, inputs: list[Instruction], name: str) -> Work:
    """Forward, or one of the gradients, which do as much. cuDNN multiplies by the border's zeros too."""
    result, (first, second) = _results(x)[0], (y.arrays[0] for y in inputs[:2])
    outputs, kernel = {"Input": (first, second), "Filter": (second, result)}.get(
        name.removeprefix("__cudnn$convBackward"), (result, second)
    )
    labels = x.attribute(r"dim_labels=\w+_(\w+)->") or ""
    flops = 2.0 * math.prod(outputs.shape) * math.prod(kernel.shape) / kernel.shape[labels.index("o")]
    return Work(flops, flops, first.dtype)


def _cudnn_attention_work(x: Instruction, inputs: list[Instruction], name: str, target: Nvidia | Tpu) -> Work:
    scores = x.numbers(r'intermediate_tensor_shape": \{.*?"dimensions": \[([^\]]*)\]')
    queries = inputs[0].arrays[0]
    width = queries.shape[-1]
    products = BACKWARD_PRODUCTS if "Backward" in name else FORWARD_PRODUCTS
    flops = 2.0 * products * math.prod(scores) * width
    return Work(flops, flops * _padded_head(width, target) / width, queries.dtype)


def _pallas_work(
    x: Instruction, inputs: list[Instruction], target: Nvidia | Tpu, calls: list[PallasCall]
) -> tuple[str, Work]:
    operands, results = (tuple(array.shape for y in side for array in y.arrays) for side in (inputs, [x]))
    call = find_call(calls, f"{x.name} {x.op_name}", operands, results)
    flops = float(call.flops) if call else 0.0
    arrays = [array for y in inputs for array in y.arrays if array.dtype in ("bf16", "f16", "f32")]
    dtype = min((array.dtype for array in arrays), default="")  # the narrowest: bf16 < f16 < f32
    if _call_target(x) == "tpu_custom_call":
        width = min((array.shape[-1] for array in arrays if array.dtype == dtype and array.shape), default=1)
        return ATTENTION, Work(flops, flops * _padded_head(width, target) / width, dtype)
    feed_forward = "/ff/" in x.op_name or "geglu" in x.op_name.lower()
    return PALLAS_PRODUCT if feed_forward else PALLAS_ATTENTION, Work(flops, flops, dtype)


def _padded_head(width: int, target: Nvidia | Tpu) -> int:
    """The width of the tiles that heads of a width are padded to."""
    return next((tile for tile in target.head_widths if tile >= width), width)


# -- Bytes of fusions


def _fusion_size(module: Module, body: Computation, x: Instruction) -> float:
    parameters = [y for y in body.values() if y.opcode == "parameter"]
    return sum(_read_size(module, body, y) for y in parameters) + _written_size(body, x)


def _read_size(module: Module, body: Computation, parameter: Instruction) -> float:
    """Bytes that are read of an operand: all of it, or its slices where nothing else is used."""
    total, names, waiting = 0.0, {parameter.name}, [parameter.name]
    while waiting:
        name = waiting.pop()
        for user in body.values():
            if name not in user.operands or user.name in names:
                continue
            if user.opcode in PASSED_ON:
                names.add(user.name)
                waiting.append(user.name)
            elif user.opcode in SLICES and user.operands[0] == name:
                total += user.size
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                pass  # in place
            elif user.opcode == "fusion":
                inner = module[user.called("calls")]
                numbers = [i for i, operand in enumerate(user.operands) if operand == name]
                taken = [y for y in inner.values() if y.opcode == "parameter" and int(y.inside) in numbers]
                total += sum(_read_size(module, inner, y) for y in taken)
            else:
                return parameter.size
    return min(total, parameter.size)


def _written_size(body: Computation, x: Instruction) -> float:
    """Bytes that are written: all results, or the slices where they are updated in place."""
    root = next(y for y in body.values() if y.root)
    total = 0.0
    for y in [body[name] for name in root.operands] if root.opcode == "tuple" else [root]:
        source = y
        while source.opcode == "bitcast":
            source = body[source.operands[0]]
        total += body[source.operands[1]].size if source.opcode == "dynamic-update-slice" else y.size
    return total
