"""The cards that programs are compiled for: what the compiler wants to know of them, and what the model assumes.

Peaks and bandwidths are what vendors state: NVIDIA's data sheets and architecture papers (dense arithmetic in 16 bits
with float32 sums), Google's pages on TPU versions. Memory is what a program sees: what drivers report, and what the
compiler for TPUs says there is. Sizes of caches and multiprocessors are what drivers report. `Rates` are assumptions:
shares of the peaks that libraries are taken to reach on the shapes of these networks. None was measured on a card.
"""

import dataclasses
from typing import Literal

from mafx.budget import GIB
from mafx.models.kernels import Capability, Kernels

NVIDIA_LAUNCH = 3e-6  # seconds between two kernels of a stream
TPU_LAUNCH = 1e-6  # seconds to start an operation of a program that a TPU runs by itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What is assumed to be reached.

    Attributes:
      product: FLOP/s of matrix products in 16 bits.
      convolution: FLOP/s of convolutions in 16 bits.
      attention: FLOP/s of fused attention, whose heads are padded to `Target.head_widths`.
      float32: FLOP/s of all arithmetic of float32 factors.
      bandwidth: Bytes/s of main memory.
      launch: Seconds that every kernel takes besides.
    """

    product: float
    convolution: float
    attention: float
    float32: float
    bandwidth: float
    launch: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A card that programs are compiled for.

    Attributes:
      title: Its name, for people to read.
      memory: Bytes of main memory that a program sees.
      kept: Bytes of them that the runtime keeps: context, libraries, the program's code.
      dtype: What networks compute in by default.
      peak: FLOP/s in 16 bits, as stated. The model does not use it.
      peak_bandwidth: Bytes/s of main memory, as stated.
      rates: What the model takes to be reached.
      head_widths: Widths of heads that fused attention has tiles for; others are padded to the next of these.
      tile: Side of the square unit that multiplies matrices, to which contracted and output channels are padded. 1
        where such padding counts among what the rates do not reach.
    """

    title: str
    memory: int
    kept: int
    dtype: str
    peak: float
    peak_bandwidth: float
    rates: Rates
    head_widths: tuple[int, ...]
    tile: int = 1

    @property
    def usable(self) -> int:
        """Bytes that a program may take."""
        return self.memory - self.kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nvidia(Target):
    """An NVIDIA card.

    Attributes:
      capability: Its compute capability.
      cores: Number of multiprocessors.
      units: float32 units of a multiprocessor.
      shared: Bytes of shared memory of a multiprocessor. A block may ask for 1 KiB less, before Ampere for all.
      threads: Threads of a multiprocessor.
      cache: Bytes of the second-level cache.
      clock: GHz.
    """

    capability: Capability
    cores: int
    units: int
    shared: int
    threads: int
    cache: int
    clock: float
    kept: int = GIB
    dtype: str = "bfloat16"
    head_widths: tuple[int, ...] = (64, 128, 256)
    platform: Literal["cuda"] = "cuda"

    def kernels(self, devices: int, attention: str = "auto") -> Kernels:
        """What kernels are chosen for."""
        return Kernels(platform="gpu", capability=self.capability, devices=devices, attention=attention)

    def description(self) -> str:
        """The card as XLA's GpuTargetConfigProto, in text."""
        major, minor = self.capability
        block_shared = self.shared - 1024 if self.capability >= (8, 0) else self.shared
        device = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "threads_per_core_limit": self.threads,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_block_optin": block_shared,
            "shared_memory_per_core": self.shared,
            "registers_per_block_limit": 2**16,
            "registers_per_core_limit": 2**16,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "core_count": self.cores,
            "fpus_per_core": self.units,
            "l2_cache_size": self.cache,
            "clock_rate_ghz": self.clock,
            "memory_bandwidth": int(self.peak_bandwidth),
            "device_memory_size": self.memory,
        }
        fields = " ".join(f"{name}: {value}" for name, value in device.items())
        return (
            f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
            f'platform_name: "CUDA" device_description_str: "{self.title}" '
            "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 }"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tpu(Target):
    """A generation of TPUs.

    Attributes:
      generation: As libtpu names it.
      smallest: Its smallest topology, of which one device is used.
    """

    generation: str
    smallest: str
    kept: int = GIB // 2
    dtype: str = "bfloat16"
    head_widths: tuple[int, ...] = (128, 256)
    tile: int = 128
    platform: Literal["tpu"] = "tpu"

    def kernels(self, devices: int, attention: str = "auto") -> Kernels:
        """What kernels are chosen for."""
        return Kernels(platform="tpu", devices=devices, attention=attention)


TARGETS: dict[str, Nvidia | Tpu] = {
    "t4": Nvidia(
        title="Tesla T4",
        capability=(7, 5),
        cores=40,
        units=64,
        shared=64 * 1024,
        threads=1024,
        cache=4 * 2**20,
        clock=1.59,
        memory=15843721216,
        dtype="float16",  # has no bfloat16
        peak=65e12,
        peak_bandwidth=320e9,
        rates=Rates(
            product=35e12, convolution=25e12, attention=20e12, float32=6e12, bandwidth=260e9, launch=NVIDIA_LAUNCH
        ),
    ),
    "3090": Nvidia(
        title="NVIDIA GeForce RTX 3090",
        capability=(8, 6),
        cores=82,
        units=128,
        shared=100 * 1024,
        threads=1536,
        cache=6 * 2**20,
        clock=1.695,
        memory=25438126080,
        peak=71e12,
        peak_bandwidth=936e9,
        rates=Rates(
            product=60e12, convolution=48e12, attention=47e12, float32=25e12, bandwidth=840e9, launch=NVIDIA_LAUNCH
        ),
    ),
    "4090": Nvidia(
        title="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        cores=128,
        units=128,
        shared=100 * 1024,
        threads=1536,
        cache=72 * 2**20,
        clock=2.52,
        memory=25757220864,
        peak=165e12,
        peak_bandwidth=1008e9,
        rates=Rates(
            product=140e12, convolution=110e12, attention=110e12, float32=60e12, bandwidth=900e9, launch=NVIDIA_LAUNCH
        ),
    ),
    "l4": Nvidia(
        title="NVIDIA L4",
        capability=(8, 9),
        cores=58,
        units=128,
        shared=100 * 1024,
        threads=1536,
        cache=48 * 2**20,
        clock=2.04,
        memory=int(22.0 * GIB),
        peak=121e12,  # 72 watts do not sustain it
        peak_bandwidth=300e9,
        rates=Rates(
            product=65e12, convolution=50e12, attention=50e12, float32=20e12, bandwidth=260e9, launch=NVIDIA_LAUNCH
        ),
    ),
    "a100": Nvidia(
        title="NVIDIA A100, 40 GB",
        capability=(8, 0),
        cores=108,
        units=64,
        shared=164 * 1024,
        threads=2048,
        cache=40 * 2**20,
        clock=1.41,
        memory=42298834944,
        peak=312e12,
        peak_bandwidth=1555e9,
        rates=Rates(
            product=230e12, convolution=180e12, attention=160e12, float32=16e12, bandwidth=1350e9, launch=NVIDIA_LAUNCH
        ),
    ),
    "h100": Nvidia(
        title="NVIDIA H100, 80 GB, SXM",
        capability=(9, 0),
        cores=132,
        units=128,
        shared=228 * 1024,
        threads=2048,
        cache=50 * 2**20,
        clock=1.98,
        memory=84929347584,
        peak=989e12,
        peak_bandwidth=3352e9,
        rates=Rates(
            product=600e12, convolution=450e12, attention=400e12, float32=50e12, bandwidth=3000e9, launch=NVIDIA_LAUNCH
        ),
    ),
    "b200": Nvidia(
        title="NVIDIA B200, 180 GB",
        capability=(10, 0),
        cores=148,
        units=128,
        shared=228 * 1024,
        threads=2048,
        cache=126 * 2**20,
        clock=1.965,
        memory=int(178.3 * GIB),
        peak=2250e12,
        peak_bandwidth=8000e9,
        rates=Rates(
            product=1350e12,
            convolution=900e12,
            attention=900e12,
            float32=60e12,
            bandwidth=7000e9,
            launch=NVIDIA_LAUNCH,
        ),
    ),
    # A TPU rounds float32 factors, unless the highest precision is asked for: then it multiplies six times.
    "v5e": Tpu(
        title="TPU v5e",
        generation="v5e",
        smallest="2x2",
        memory=int(15.75 * GIB),
        peak=197e12,
        peak_bandwidth=819e9,
        rates=Rates(
            product=150e12, convolution=120e12, attention=80e12, float32=25e12, bandwidth=700e9, launch=TPU_LAUNCH
        ),
    ),
    "v5p": Tpu(
        title="TPU v5p",
        generation="v5p",
        smallest="2x2x1",
        memory=int(95.74 * GIB),
        peak=459e12,
        peak_bandwidth=2765e9,
        rates=Rates(
            product=340e12, convolution=270e12, attention=180e12, float32=57e12, bandwidth=2300e9, launch=TPU_LAUNCH
        ),
    ),
    "v6e": Tpu(
        title="TPU v6e",
        generation="v6e",
        smallest="2x2",
        memory=int(31.25 * GIB),
        tile=256,
        peak=918e12,
        peak_bandwidth=1640e9,
        rates=Rates(
            product=650e12, convolution=500e12, attention=320e12, float32=108e12, bandwidth=1400e9, launch=TPU_LAUNCH
        ),
    ),
}
