"""How much memory sampling and training take on a TPU, read from compiled programs. No accelerator is needed.

    pip install "jax[tpu]"
    python -m mafx.benchmarks.memory sampling --frames 16 160
    python -m mafx.benchmarks.memory training --topology v5p:2x2x2 v5p:4x4x4 --fsdp 1 8
    python -m mafx.benchmarks.memory training --topology v5p:2x2x2 --fsdp 1 --remat none products blocks
    python -m mafx.benchmarks.memory gradient

`COMMAND --help` lists the flags of each. `sampling` and `training` compile for the TPUs of a topology, in bfloat16, and
read what the compiler would allocate. The compiler is libtpu, and its version matters: that which belongs to JAX 0.10.2
gives the steps of 16 frames 2.6 GiB of temporaries, a later one 4.6. Machine code is not waited for: it takes most of
the time and memory of a compilation. The code itself comes on top of the figures, some tenths of a GiB. A row of
`training` at full size takes 2 to 7 minutes of one core and 5 to 10 GB. `gradient` compiles for the CPU and needs no
libtpu.
"""

import argparse
import collections
import importlib.util
import itertools
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from mafx.commands import Parser, run_command
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.flops import count_flops
from mafx.model import abstract_model
from mafx.models.animator import SIZES, Animator, parameter_shapes
from mafx.models.attention import KERNELS
from mafx.models.kernels import Kernels
from mafx.models.unet import REMAT
from mafx.program import Program, plan
from mafx.tables import markdown_table
from mafx.training.config import STAGES, default_config, parse_config
from mafx.training.runs import model_sizes
from mafx.training.sharding import make_mesh
from mafx.training.step import Flat, diffusion_loss, flatten, split, trace_step

NAME = "python -m mafx.benchmarks.memory"
DTYPE = "bfloat16"
ONE_DEVICE = "v5p:2x2x1"  # the smallest topology of this generation; one of its devices is used
GRADIENT_FRAMES = 16

# TPUs are only compiled for: there is nothing to ask about, and nothing to lock.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# The first two differ from what the compiler does by itself. Nothing is moved to the cores' own memory, so that all
# arrays are counted. Matrix products are not cut into rings of smaller ones, so that what is gathered appears as such.
COMPILER_OPTIONS = {
    "xla_vf_vmem_memory_space_assignment": "false",
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    "xla_dump_hlo_as_text": True,
}
BUFFERS_REPORT = "*after_optimizations-buffer-assignment.txt"
HLO_REPORT = "*after_optimizations.txt"
NEXT_REPORT = "*after_optimizations_after_buffer_assignment.txt"  # the first that is written after these two
FLOPS_FILE = "flops"  # written beside the reports of a training step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


# -- What the compiler reports


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


def read_collectives(hlo: str) -> dict[str, int]:
    """Bytes of the whole arrays that one device takes part in reducing, gathering and so on, by COLLECTIVES.

    Raises:
      ValueError: For a collective inside a loop, whose trips the text does not say.
    """
    sizes, computation = dict.fromkeys(COLLECTIVES, 0), ""
    loops = set(re.findall(r" while\(.*body=%([\w.-]+)", hlo))
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation = head[1]
        collective = re.search(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-done)?\(", line)
        if collective is None:
            continue
        if computation in loops:
            raise ValueError(f"{computation} is a loop, and how often its {collective[2]} runs is unknown")
        # TPUs write a reduce-scatter as an all-reduce in a computation with a name of its own.
        kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else collective[2]
        sizes[kind] += array_bytes(collective[1])
    return sizes


def read_weights(hlo: str) -> int:
    """Bytes of those arguments of a program whose names begin with "params"."""
    names = re.findall(r" = (.*) parameter\(\d+\).*op_name=\"params\[", hlo)
    return sum(map(array_bytes, names))


def array_bytes(types: str) -> int:
    """Bytes of all arrays in the text of a type, such as "(f32[4,2]{1,0}, bf16[8])"."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(ITEM_BYTES[dtype] * math.prod(map(int, re.findall(r"\d+", shape))) for dtype, shape in arrays)


# -- Compiling in a process of its own


class Reports(NamedTuple):
    """Texts that the compiler writes on its way."""

    buffers: str
    hlo: str


def compile_for_reports(folder: Path, compile_program: Callable[..., None], *arguments: object) -> Reports:
    """The reports of a compilation in a new process, which is stopped as soon as they are written.

    Args:
      folder: An empty folder for the reports.
      compile_program: Called with the folder and the arguments. It compiles a single program with `reporting(folder)`.
      arguments: What it is called with.

    Raises:
      InputError: Where the compiler gives up.
    """
    process = multiprocessing.get_context("spawn").Process(target=compile_program, args=(folder, *arguments))
    process.start()
    while process.is_alive() and not list(folder.glob(NEXT_REPORT)):
        time.sleep(0.5)
    process.kill()
    process.join()
    texts = [[path.read_text() for path in folder.glob(pattern)] for pattern in (BUFFERS_REPORT, HLO_REPORT)]
    if not all(texts):
        raise InputError("the compiler gave up, see above; where it is out of memory, the program does not fit")
    buffers, hlo = (text[0] for text in texts)
    return Reports(buffers, hlo)


def reporting(folder: Path) -> dict[str, Any]:
    """Compiler options that write the reports into a folder."""
    return COMPILER_OPTIONS | {"xla_dump_to": str(folder)}


def tpu_devices(topology: str) -> list:
    """The devices of a topology, for which one can compile."""
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def prepare_compiler() -> None:
    """Let this process and its children use CPUs alone. Raises InputError where the compiler is missing."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError('expected the package libtpu, which compiles for TPUs, found none; pip install "jax[tpu]"')
    os.environ |= ENVIRONMENT
    jax.config.update("jax_platforms", ENVIRONMENT["JAX_PLATFORMS"])


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]], words: int) -> None:
    """Print a table row by row, as they are measured. Floats are GiB or the like, shown with two decimals."""
    print(markdown_table(header, [], words), end="", flush=True)
    for row in rows:
        cells = [f"{x:.2f}" if isinstance(x, float) else x for x in row]
        print(markdown_table(header, [cells], words).splitlines()[-1], flush=True)


# -- Sampling


def measure_sampling(args: argparse.Namespace) -> None:
    """Print what each part of an animation takes on one device."""
    prepare_compiler()
    header = ("frames", "part", "runs", "arguments", "temporaries", "total", "with all weights")
    print("GiB on one device. The last column adds the weights that a part does not use.\n")
    print_table(header, sampling_rows(args), words=2)


def sampling_rows(args: argparse.Namespace) -> Iterator[tuple]:
    for frames in args.frames:
        program = tpu_program(frames, args)
        all_weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.model.params))
        for number, part in enumerate(program.parts()):
            with tempfile.TemporaryDirectory() as folder:
                reports = compile_for_reports(Path(folder), compile_part, number, frames, args)
            memory = read_memory(reports.buffers)
            unused_weights = all_weights - read_weights(reports.hlo)
            columns = (memory.arguments, memory.temporaries, memory.total, memory.total + unused_weights)
            yield frames, part.name, part.runs, *(x / 2**30 for x in columns)


def tpu_program(frames: int, args: argparse.Namespace) -> Program:
    """The program of an animation with the default settings, on one TPU."""
    config = SIZES[args.model].with_kernels(Kernels(platform="tpu", devices=1))
    return plan(abstract_model(config, DTYPE), size=tuple(args.size), frames=frames)


def compile_part(folder: Path, number: int, frames: int, args: argparse.Namespace) -> None:
    """Compile one part of an animation's program."""
    part = tpu_program(frames, args).parts()[number]
    sharding = SingleDeviceSharding(tpu_devices(ONE_DEVICE)[0])

    def place(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) if hasattr(x, "shape") else x

    part.function.lower(*jax.tree.map(place, part.arguments)).compile(compiler_options=reporting(folder))


# -- Training


def measure_training(args: argparse.Namespace) -> None:
    """Print what a training step takes and exchanges on each device, with the default config of each stage."""
    prepare_compiler()
    header = ("topology", "stage", "fsdp", "remat", "arguments", "of them donated", "temporaries", "total")
    print("GiB per device. TFLOP are those of one example; what is computed again counts again.\n")
    print_table((*header, *COLLECTIVES, "TFLOP", "minutes"), training_rows(args), words=2)


def training_rows(args: argparse.Namespace) -> Iterator[tuple]:
    for topology, stage, fsdp, remat in itertools.product(args.topology, args.stage, args.fsdp, args.remat):
        began, policy = time.monotonic(), remat or default_config(stage).remat
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            reports = compile_for_reports(folder, compile_step, topology, stage, fsdp, policy, args)
            flops = int((folder / FLOPS_FILE).read_text())
        memory, exchanged = read_memory(reports.buffers), read_collectives(reports.hlo)
        columns = (memory.arguments, memory.donated, memory.temporaries, memory.total, *exchanged.values())
        minutes = (time.monotonic() - began) / 60
        yield topology, stage, fsdp, policy, *(x / 2**30 for x in columns), flops / 1e12, f"{minutes:.1f}"


def compile_step(folder: Path, topology: str, stage: str, fsdp: int, remat: str, args: argparse.Namespace) -> None:
    """Compile one training step as the training loop puts it together, on shapes alone."""
    config = default_config(stage)
    config.model = args.model
    config.remat = remat
    config.data.size = tuple(args.size)
    mesh = make_mesh({"data": -1, "fsdp": fsdp}, tpu_devices(topology))
    kernels = Kernels(platform="tpu", devices=mesh.size, attention=args.kernel)
    traced = trace_step(config, model_sizes(config).with_kernels(kernels), mesh, args.batch)
    (folder / FLOPS_FILE).write_text(str(count_flops(traced.jaxpr.jaxpr) // (args.batch * mesh.size)))
    traced.lower().compile(compiler_options=reporting(folder))


# -- The gradient of the temporal stage


def measure_gradient(args: argparse.Namespace) -> None:
    """Print the temporary memory of the temporal stage's gradient, of its trained parameters alone and of all."""
    config = parse_config("puppets:temporal", [])
    everything = ((".*", True),)
    trained, full = (gradient_temporaries(rules, args) for rules in (config.train_only, everything))
    rows = [
        ("temporal layers", f"{trained / 2**20:.1f}", f"{trained / full:.3f}"),
        ("everything", f"{full / 2**20:.1f}", f"{1:.3f}"),
    ]
    print(markdown_table(("gradient of", "temporaries, MiB", "of everything's"), rows))


def gradient_temporaries(rules: Sequence[tuple[str, bool]], args: argparse.Namespace) -> int:
    """Bytes of temporaries of the gradient of what the rules train, compiled for this machine."""
    config = parse_config("puppets:temporal", [])
    sizes = SIZES[args.model]
    H, W = args.size
    ids = np.zeros(sizes.text.positions, np.int32)
    loss = diffusion_loss(Animator(sizes), Schedule(**config.schedule), ids, config.loss)
    trained, frozen = split(flatten(parameter_shapes(sizes)), rules)
    video = jax.ShapeDtypeStruct((1, GRADIENT_FRAMES, H, W, 3), jnp.uint8)
    batch = {"video": video, "motion": video, "reference": jax.ShapeDtypeStruct((1, H, W, 3), jnp.uint8)}

    @jax.jit
    def gradient(trained: Flat, frozen: Flat, batch: dict[str, jax.Array]) -> Flat:
        def loss_of_trained(trained: Flat) -> jax.Array:
            return loss(trained | frozen, batch, jax.random.key(0))[0]

        return jax.grad(loss_of_trained)(trained)

    needed: Any = gradient.lower(trained, frozen, batch).compile().memory_analysis()
    return needed.temp_size_in_bytes


# -- The command


class CommandParser(Parser):
    """The parser of a subcommand, with the signature that argparse wants."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog, description)


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    commands = parser.add_subparsers(prog=NAME, metavar="COMMAND", required=True, parser_class=CommandParser)

    def add_command(name: str, measure: Callable[[argparse.Namespace], None], model: str, size: tuple[int, int]):
        command = commands.add_parser(name, help=measure.__doc__, description=measure.__doc__)
        command.set_defaults(measure=measure)
        add = command.add_argument
        add("--model", default=model, choices=SIZES, help="Sizes of the networks (default %(default)s).")
        shown = "x".join(map(str, size))
        add("--size", nargs=2, type=int, default=size, metavar=("H", "W"), help=f"In pixels (default {shown}).")
        return add

    add = add_command("sampling", measure_sampling, "sd15", (512, 512))
    add("--frames", nargs="+", type=int, default=[16, 160], help="Lengths of videos (default 16 160).")

    add = add_command("training", measure_training, "sd15", (512, 512))
    default_topologies = ["v5p:2x2x2", "v5p:4x4x4"]
    add("--topology", nargs="+", default=default_topologies, help="Generation and shape, as libtpu names them.")
    add("--stage", nargs="+", default=STAGES, choices=STAGES, help="Stages (default both).")
    add("--fsdp", nargs="+", type=int, default=[1, 8], help="Devices that share the parameters (default 1 8).")
    add("--remat", nargs="+", default=[None], choices=REMAT, help="What is computed again (default: the stage's own).")
    add("--batch", type=int, default=1, help="Examples per device (default 1).")
    add("--kernel", default="auto", choices=("auto", *KERNELS), help="Kernel of all attention (default auto).")

    add_command("gradient", measure_gradient, "tiny", (128, 128))
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    args.measure(args)


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
