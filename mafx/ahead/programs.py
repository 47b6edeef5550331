"""What is compiled: each part of an animation, and the training step of each stage, for devices that are not here."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from mafx.ahead.targets import TARGETS, Nvidia, Tpu
from mafx.densepose.rcnn import DensePoseRCNN, RCNNConfig, prepare
from mafx.densepose.rcnn_run import FRAMES_AT_ONCE, resized_size
from mafx.densepose.rcnn_weights import parameter_shapes
from mafx.errors import InputError
from mafx.media import Size
from mafx.model import abstract_model
from mafx.models.animator import SIZES
from mafx.placing import bytes_of
from mafx.program import Program, plan
from mafx.sampling import PHASES
from mafx.training.config import STAGES, default_config, parse_config
from mafx.training.runs import model_sizes
from mafx.training.sharding import make_mesh
from mafx.training.step import trace_step

SAMPLING = tuple(PHASES)  # with the default settings, an animation has one part for each phase
DENSEPOSE = "densepose"  # finding people in frames of `size`, with the published network
PROGRAMS = (*SAMPLING, *STAGES, DENSEPOSE)
ONE_NVIDIA_CARD = "1x1x1"  # slices, hosts, cards of a host
CUDNN_VERSION = 91000  # that JAX is told: what it asks for is older


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A program and what to compile it for.

    Attributes:
      target: A key of TARGETS.
      program: One of PROGRAMS.
      model: A key of `models.animator.SIZES`.
      dtype: What the networks compute in.
      size: Rows and columns in pixels.
      frames: Of an animation, or of an example of the temporal stage.
      remat: What the backward pass computes again; None means the stage's own choice, and nothing in sampling.
      topology: Devices of a training step: the shape of a TPU slice, or slices x hosts x cards. None means one device.
      fsdp: Devices that share parameters.
      batch: Examples of each device.
      attention: A key of `models.attention.KERNELS`, or "auto".
      config: NAME:STAGE of a training config, whose other settings hold; None means the stage's defaults.
    """

    target: str
    program: str
    model: str = "sd15"
    dtype: str = "bfloat16"
    size: Size = (512, 512)
    frames: int = 16
    remat: str | None = None
    topology: str | None = None
    fsdp: int = 1
    batch: int = 1
    attention: str = "auto"
    config: str | None = None

    @property
    def card(self) -> Nvidia | Tpu:
        """What it is compiled for."""
        return TARGETS[self.target]

    @property
    def trains(self) -> bool:
        """Whether this is a training step."""
        return self.program in STAGES

    @property
    def policy(self) -> str | None:
        """What the backward pass computes again."""
        return self.remat or default_config(self.program).remat if self.trains else None


class Traced(NamedTuple):
    """A program that is ready to be lowered.

    Attributes:
      stage: JAX's value.
      runs: How often an animation runs it; 1 for a training step.
      examples: Number of examples that it takes on all devices; 1 for a part of an animation.
      weights: Bytes of all weights that a device holds while it runs, 0 where they are arguments anyway.
    """

    stage: jax.stages.Traced
    runs: int
    examples: int
    weights: int


def trace(job: Job) -> Traced:
    """Trace a program. Cards of NVIDIA need `answer_for_card` before.

    Raises:
      InputError: For a size, a number of frames, or a topology that does not fit.
    """
    if job.program == DENSEPOSE:
        return _trace_densepose(job)
    return _trace_step(job) if job.trains else _trace_part(job)


def _trace_part(job: Job) -> Traced:
    program = _animation(job)
    parts = program.parts(SingleDeviceSharding(devices(job)[0]))
    part = next((part for part in parts if part.name == job.program), None)
    if part is None:
        raise InputError(f"expected a part of an animation, {', '.join(SAMPLING)}, found {job.program}")
    return Traced(part.function.trace(*part.arguments), part.runs, 1, bytes_of(program.model.params))


def _animation(job: Job) -> Program:
    """The animation with the default settings, on one device."""
    config = SIZES[job.model].with_kernels(job.card.kernels(1, job.attention))
    return plan(abstract_model(config, jnp.dtype(job.dtype)), size=job.size, frames=job.frames)


def _trace_densepose(job: Job) -> Traced:
    """Finding people in as many frames as `densepose.rcnn_run` takes at once."""
    network, dtype = DensePoseRCNN(RCNNConfig()), jnp.dtype(job.dtype)
    on_device = SingleDeviceSharding(devices(job)[0])
    params = flax.traverse_util.unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(x.shape, dtype, sharding=on_device)
            for path, x in parameter_shapes(RCNNConfig()).items()
        }
    )
    size = resized_size(job.size)
    pictures = jax.ShapeDtypeStruct((FRAMES_AT_ONCE, *size, 3), jnp.uint8, sharding=on_device)

    def detect(params: dict, pictures: jax.Array):
        return network.apply({"params": params}, prepare(pictures, dtype), size, method="detect")

    return Traced(jax.jit(detect).trace(params, pictures), 1, FRAMES_AT_ONCE, 0)


def _trace_step(job: Job) -> Traced:
    config = parse_config(job.config, []) if job.config else default_config(job.program)
    config.model = job.model
    config.dtype = job.dtype
    config.remat = job.policy
    config.data.size = job.size
    config.data.frames = job.frames if config.data.frames > 1 else 1
    mesh = _mesh(job)
    sizes = model_sizes(config).with_kernels(job.card.kernels(mesh.size, job.attention))
    examples = job.batch * mesh.size * config.accumulate
    return Traced(trace_step(config, sizes, mesh, job.batch), 1, examples, 0)


def _mesh(job: Job) -> Mesh:
    every = devices(job)
    used: Sequence[jax.Device] = every if job.topology else every[:1]
    try:
        return make_mesh({"data": -1, "fsdp": job.fsdp}, used)
    except ValueError as error:
        raise InputError(f"expected devices that --fsdp divides, found {len(used)}: {error}") from error


# -- Devices that are not here


def devices(job: Job) -> list[jax.Device]:
    """The devices of a job's topology, for which one can compile; of one-device jobs, those of the smallest.

    Raises:
      InputError: For a topology that there is not.
    """
    card = job.card
    try:
        if isinstance(card, Nvidia):
            topology = job.topology or ONE_NVIDIA_CARD
            described = topologies.get_topology_desc(
                platform=card.platform, target_config=card.description(), topology=topology
            )
        else:
            topology = f"{card.generation}:{job.topology or card.smallest}"
            described = topologies.get_topology_desc(platform=card.platform, topology_name=topology)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"expected a topology of {card.title}, found {topology}: {error}") from error
    return described.devices


def answer_for_card(card: Nvidia) -> None:
    """Let JAX's checks of cuDNN's attention ask about a card, not about this machine. For a process of its own."""
    from jax._src.cudnn import fused_attention_stablehlo as fused  # noqa: PLC0415 (has no public name)

    def check_compute_capability(wanted: str) -> bool:
        return card.capability >= tuple(map(int, wanted.split(".")))

    def is_compute_capability(wanted: str) -> bool:
        return card.capability == tuple(map(int, wanted.split(".")))

    answers = {
        "check_compute_capability": check_compute_capability,
        "is_cuda_compute_capability_equal": is_compute_capability,
        "check_cudnn_version": lambda: CUDNN_VERSION,
    }
    for name, answer in answers.items():
        if not hasattr(fused, name):
            raise InputError(f"expected {name} in JAX's cuDNN attention, found none; JAX 0.10.2 has it")
        setattr(fused, name, answer)
