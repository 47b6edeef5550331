"""What kernels are chosen for. Networks hold this value; `attention.py` and `convolution.py` decide by it."""

import dataclasses

import jax

MIB = 2**20
PLAIN_SCORE_BYTES_CPU = 16 * MIB  # larger score matrices leave the caches of a CPU
PLAIN_SCORE_BYTES = 256 * MIB  # larger score matrices take too much of an accelerator's memory


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The platform that a program is traced for, and the limits by which kernels are chosen there.

    A value of its own makes the choice independent of the machine that traces: a program can be compiled for another
    platform, and tests can ask what would be chosen there.

    Attributes:
      platform: "cpu", "gpu" or "tpu". None means the default backend of this process, asked when a program is traced.
      devices: Number of devices that the program may run on. None means all of this process' backend.
      attention: A key of `attention.KERNELS` that all attention uses, or "auto".
      plain_score_bytes: Largest score matrix of one example that is held in memory, in bytes. None means
        `PLAIN_SCORE_BYTES_CPU` or `PLAIN_SCORE_BYTES`, by platform.
      block_score_bytes: Largest score matrix of one block of queries of one head in blockwise attention, in bytes.
      splash_block: Queries and keys that a TPU core takes at once in splash attention.
      interpret: Whether TPU kernels run in Pallas' interpreter, for tests without a TPU.
    """

    platform: str | None = None
    devices: int | None = None
    attention: str = "auto"
    plain_score_bytes: int | None = None
    block_score_bytes: int = 8 * MIB
    splash_block: int = 512
    interpret: bool = False

    @property
    def traced_platform(self) -> str:
        """The platform, asked of JAX where it is not given."""
        return self.platform or jax.default_backend()

    @property
    def device_count(self) -> int:
        """The number of devices, asked of JAX where it is not given."""
        return self.devices or jax.device_count()

    @property
    def plain_score_limit(self) -> int:
        """The largest score matrix of one example that is held in memory, in bytes."""
        if self.plain_score_bytes is not None:
            return self.plain_score_bytes
        return PLAIN_SCORE_BYTES_CPU if self.traced_platform == "cpu" else PLAIN_SCORE_BYTES


DEFAULT_KERNELS = Kernels()  # for the hardware of this process
