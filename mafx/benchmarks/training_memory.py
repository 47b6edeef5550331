"""What a training step needs at full size, per device: memory and communication, read from the compiled program. No accelerator is needed.

    pip install libtpu
    python benchmarks/training_memory.py --topology v5p:2x2x2 v5p:4x4x4
    python benchmarks/training_memory.py --topology v5p:2x2x2 --fsdp 1 --remat none products blocks

The arithmetic (TFLOP of an example, what is computed again counted again) is that of the program before it is compiled.

The step is compiled ahead of time for TPUs of a topology, and the compiler writes down what it would allocate. Machine code is not waited for: it
takes most of the time and memory of a compilation, and its own size, which comes on top, some tenths of a GiB. A row takes 2 to 5 minutes of one core
and 5 to 10 GB. Two switches differ from what the compiler does by itself: nothing is moved to the cores' own memory, so that all arrays are counted,
and matrix products are not cut into rings of smaller ones, so that what is gathered appears as gathered.
"""

import argparse
import collections
import dataclasses
import itertools
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# TPUs are only compiled for: there is nothing to ask about or to lock
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jax.experimental import topologies

from mafx.models import attention
from mafx.models.animator import SIZES
from mafx.models.unet import REMAT
from mafx.training.config import STAGES, default_config
from mafx.training.fit import trace_step
from mafx.training.flops import count_flops
from mafx.training.loop import model_sizes
from mafx.training.sharding import make_mesh

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
FLOPS = "TFLOP"
SWITCHES = {
    "xla_vf_vmem_memory_space_assignment": "false",
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    "xla_dump_hlo_as_text": True,
}


def compile_stage(stage: str, topology: str, fsdp: int, remat: str, args: argparse.Namespace, folder: str) -> None:
    """Compile one training step as the training loop puts it together, on shapes alone; the compiler's reports go to `folder`."""
    attention.PLAIN_SCORE_BYTES = {}, attention.PLAIN_SCORE_BYTES[1]  # this is a CPU, but it is not compiled for one
    config = default_config(stage)
    config.model, config.remat, config.data.size = args.model, remat, tuple(args.size)
    sizes = model_sizes(config)
    networks = dataclasses.replace(sizes, unet=dataclasses.replace(sizes.unet, attention_kernel=args.kernel))
    mesh = make_mesh(
        {"data": -1, "fsdp": fsdp}, topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    )
    traced = trace_step(config, networks, mesh, args.batch)
    (Path(folder) / FLOPS).write_text(str(count_flops(traced.jaxpr.jaxpr) // (args.batch * mesh.size)))
    traced.lower().compile(compiler_options=SWITCHES | {"xla_dump_to": folder})


def measure(folder: Path, *args) -> dict[str, float]:
    """GiB by name, and TFLOP of an example."""
    reports = report_of(folder, compile_stage, *args)
    values = memory(reports["-buffer-assignment"]) | collectives(reports[""])
    return {name: x / 2**30 for name, x in values.items()} | {FLOPS: int((folder / FLOPS).read_text()) / 1e12}


def report_of(folder: Path, target: Callable, *args) -> dict[str, str]:
    """The reports of a compilation in a process of its own, which is stopped as soon as they are written."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=(*args, str(folder)))
    process.start()
    while process.is_alive() and not list(folder.glob("*assignment-values.txt")):  # the report after those read here
        time.sleep(1)
    process.kill()
    process.join()
    reports = {kind: list(folder.glob(f"*after_optimizations{kind}.txt")) for kind in ("-buffer-assignment", "")}
    if not all(reports.values()):
        raise SystemExit("the compiler gave up, see above; out of memory there means that it does not fit")
    return {kind: paths[0].read_text() for kind, paths in reports.items()}


def memory(report: str) -> dict[str, int]:
    sizes = collections.Counter()
    for size, what in re.findall(r"^allocation \d+: size (\d+), (.*)", report, re.M):
        if "color" in what or what.startswith("thread-local"):  # not in the device's main memory
            continue
        kind = (
            "arguments"
            if what.startswith("parameter")
            else "temporaries"
            if what.startswith("preallocated-temp")
            else "rest"
        )
        sizes[kind] += int(size)
        sizes["of them donated"] += int(size) * (kind == "arguments" and "maybe-live-out" in what)
    return {name: sizes[name] for name in ("arguments", "of them donated", "temporaries")} | {
        "total": sum(sizes[kind] for kind in ("arguments", "temporaries", "rest"))
    }


def collectives(hlo: str) -> dict[str, int]:
    """Bytes of the whole arrays that one device takes part in reducing, gathering, ..."""
    sizes, computation = dict.fromkeys(COLLECTIVES, 0), ""
    loops = set(re.findall(r" while\(.*body=%([\w.-]+)", hlo))
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation = head[1]
        if found := re.search(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-done)?\(", line):
            assert computation not in loops, f"{computation}: its trips are not counted"
            kind = "reduce-scatter" if computation.startswith("all-reduce-scatter") else found[2]  # how TPUs write it
            sizes[kind] += sum(
                BYTES[dtype] * math.prod(map(int, re.findall(r"\d+", n)))
                for dtype, n in re.findall(r"(\w+)\[([\d,]*)\]", found[1])
            )
    return sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--topology", nargs="+", default=["v5p:2x2x2", "v5p:4x4x4"], help="generation and shape, as libtpu names them"
    )
    parser.add_argument("--stage", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument(
        "--fsdp",
        nargs="+",
        type=int,
        default=[1, 8],
        help="devices that share the parameters; 1 is plain data parallelism",
    )
    parser.add_argument(
        "--remat",
        nargs="+",
        default=[None],
        choices=REMAT,
        help="what is computed again; the stage's default unless given",
    )
    parser.add_argument("--model", default="sd15", choices=SIZES)
    parser.add_argument("--size", nargs=2, type=int, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=1, help="examples per device")
    parser.add_argument("--kernel", default="auto", help="attention kernel")
    args = parser.parse_args()
    names = ("arguments", "of them donated", "temporaries", "total", *COLLECTIVES, FLOPS)
    print(
        f"| topology | stage | fsdp | remat | {' | '.join(names)} | minutes |\n|---|---|--:|---|{'--:|' * len(names)}--:|\n",
        end="",
        flush=True,
    )
    for topology, stage, fsdp, remat in itertools.product(args.topology, args.stage, args.fsdp, args.remat):
        began, policy = time.monotonic(), remat or default_config(stage).remat
        with tempfile.TemporaryDirectory() as folder:
            values = measure(Path(folder), stage, topology, fsdp, policy, args)
        row = " | ".join(f"{values[name]:.2f}" for name in names)
        print(
            f"| {topology} | {stage} | {fsdp} | {policy} | {row} | {(time.monotonic() - began) / 60:.1f} |", flush=True
        )
