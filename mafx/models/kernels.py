"""What kernels are chosen for. Networks hold this value; the functions that have several kernels decide by it."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

MIB = 2**20
PLAIN_SCORE_BYTES_CPU = 16 * MIB  # larger score matrices leave the caches of a CPU
PLAIN_SCORE_BYTES = 256 * MIB  # larger score matrices take too much of an accelerator's memory
BLOCK_SCORE_BYTES = 8 * MIB
BLOCK_SCORE_BYTES_GPU = 64 * MIB  # with smaller ones, GPUs wait for launches

Capability = tuple[int, int]  # compute capability of an NVIDIA card: (8, 9) is an RTX 4090
NO_CAPABILITY = (0, 0)


@dataclasses.dataclass(frozen=True)
class CudnnRow:
    """What cuDNN's fused attention takes on the cards of a range of compute capabilities.

    Attributes:
      first: The first compute capability of the range; it ends before the next row.
      forward: Largest width of a head without gradient.
      backward: Largest width of a head with gradient.
    """

    first: Capability
    forward: int
    backward: int


# Asked of cuDNN 9.28 for plans on described cards, and of JAX 0.10.2, whose own check stops at 128 before Hopper. There
# is nothing below 8.0. cuDNN would run 160 forward from 8.0 on, but has a gradient of it on Hopper only.
CUDNN_ATTENTION = (
    CudnnRow((8, 0), forward=128, backward=128),  # A100, 3090, 4090, L4
    CudnnRow((9, 0), forward=256, backward=256),  # H100, H200
    CudnnRow((10, 0), forward=256, backward=128),  # B200, 5090
)
CUDNN_WIDTH_STEP = 8  # widths are multiples of this
DTYPES_OF_16_BITS = (jnp.bfloat16, jnp.float16)
BFLOAT16_FIRST = (8, 0)  # cards before multiply in float16 only (CUDA C++ Programming Guide, "Tensor Core" features)
FUSED_FIRST = (8, 0)  # `fused.py` is compiled by Triton, which compiles for no older cards


def device_capability(device: jax.Device) -> Capability:
    """The compute capability of a device; (0, 0) where it is no NVIDIA card. AMD's have one such as "gfx90a"."""
    major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else NO_CAPABILITY


def fast_dtype() -> str:
    """The 16 bits that this device multiplies in: bfloat16, which has the range of float32, where there is a choice."""
    return "float16" if NO_CAPABILITY < device_capability(jax.local_devices()[0]) < BFLOAT16_FIRST else "bfloat16"


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The platform that a program is traced for, and the limits by which kernels are chosen there.

    A value of its own makes the choice independent of the machine that traces: a program can be compiled for another
    platform, and tests can ask what would be chosen there.

    Attributes:
      platform: "cpu", "gpu" or "tpu". None means the default backend of this process, asked when a program is traced.
      capability: Compute capability of an NVIDIA card. None means that of this process' first device.
      gradient: Whether the program computes gradients, which some kernels lack.
      devices: Number of devices that the program may run on. None means all of this process' backend.
      attention: A key of `attention.KERNELS` that all attention uses, or "auto".
      plain_score_bytes: Largest score matrix of one example that is held in memory, in bytes. None means
        `PLAIN_SCORE_BYTES_CPU` or `PLAIN_SCORE_BYTES`, by platform.
      block_score_bytes: Largest score matrix of one block of queries of one head in blockwise attention, in bytes. None
        means `BLOCK_SCORE_BYTES` or `BLOCK_SCORE_BYTES_GPU`, by platform.
      splash_block: Queries and keys that a TPU core takes at once in splash attention.
      interpret: Whether XLA stands in for kernels of hardware that is not here: Pallas' interpreter for those of TPUs
        and for those in `fused.py`, XLA's own attention for cuDNN's. For tests.
      probe: Whether a kernel is compiled alone before it is chosen, see `first_that_compiles`. None means on GPUs, and
        only where the program is traced for this process' own backend.
    """

    platform: str | None = None
    capability: Capability | None = None
    gradient: bool = False
    devices: int | None = None
    attention: str = "auto"
    plain_score_bytes: int | None = None
    block_score_bytes: int | None = None
    splash_block: int = 512
    interpret: bool = False
    probe: bool | None = None

    @property
    def traced_platform(self) -> str:
        """The platform, asked of JAX where it is not given."""
        return self.platform or jax.default_backend()

    @property
    def card_capability(self) -> Capability:
        """The compute capability, asked of JAX where it is not given; (0, 0) where there is no NVIDIA card."""
        if self.capability is not None:
            return self.capability
        return device_capability(jax.local_devices()[0])

    def cudnn_takes(self, dtype: jnp.dtype, width: int) -> bool:
        """Whether cuDNN's fused attention takes heads of a width and dtype on this card, see CUDNN_ATTENTION."""
        rows = [row for row in CUDNN_ATTENTION if row.first <= self.card_capability]
        if not rows or dtype not in DTYPES_OF_16_BITS or width % CUDNN_WIDTH_STEP:
            return False
        return width <= (rows[-1].backward if self.gradient else rows[-1].forward)

    def fuses(self, dtype: jnp.dtype) -> bool:
        """Whether the kernels in `fused.py` can be used. They have no gradient, and compute in 16 bits."""
        on_card = self.traced_platform == "gpu" and self.card_capability >= FUSED_FIRST
        return on_card and not self.gradient and dtype in DTYPES_OF_16_BITS

    @property
    def probes(self) -> bool:
        """Whether kernels are compiled alone before they are chosen."""
        if self.probe is not None:
            return self.probe
        return self.platform is None and jax.default_backend() == "gpu"

    @property
    def device_count(self) -> int:
        """The number of devices, asked of JAX where it is not given."""
        return self.devices or jax.device_count()

    @property
    def block_score_limit(self) -> int:
        """The largest score matrix of one block of queries of one head, in bytes."""
        if self.block_score_bytes is not None:
            return self.block_score_bytes
        return BLOCK_SCORE_BYTES_GPU if self.traced_platform == "gpu" else BLOCK_SCORE_BYTES

    @property
    def plain_score_limit(self) -> int:
        """The largest score matrix of one example that is held in memory, in bytes."""
        if self.plain_score_bytes is not None:
            return self.plain_score_bytes
        return PLAIN_SCORE_BYTES_CPU if self.traced_platform == "cpu" else PLAIN_SCORE_BYTES


DEFAULT_KERNELS = Kernels()  # for the hardware of this process


Candidate = tuple[str, Callable[..., Any]]


def first_that_compiles(candidates: Sequence[Candidate], arguments: tuple, kernels: Kernels) -> Callable[..., Any]:
    """The first of some functions that the library and the compiler of this machine accept.

    Tables say beforehand which kernels fit. Libraries change all the same. So each candidate but the last is compiled
    alone, once for each shape, and left out with a warning if that fails.

    Args:
      candidates: Names and functions, the best first. The last one always works.
      arguments: What the function will be called with: arrays, traced or not.
      kernels: Whether to probe, and whether gradients are wanted.
    """
    *others, (_, last) = candidates
    if not kernels.probes:
        return candidates[0][1]
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((x.shape, x.dtype) for x in leaves)
    for name, function in others:
        case = name, kernels, structure, shapes
        if case not in _probed:
            _probed[case] = _compiles(name, function, arguments, kernels.gradient)
        if _probed[case]:
            return function
    return last


_probed: dict[tuple, bool] = {}  # whether a kernel compiles, by its name, what it is chosen for, and shapes


def _compiles(name: str, function: Callable[..., Any], arguments: tuple, gradient: bool) -> bool:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)

    def summed(arguments: tuple) -> jax.Array:
        return function(*arguments).astype(jnp.float32).sum()

    program = jax.grad(summed, allow_int=True) if gradient else summed
    try:
        jax.jit(program).lower(shapes).compile()
    except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        logging.warning("the kernel %s is not used for %s: %s", name, shapes[0], reason)
        return False
    return True
