"""The largest batch whose training step fits into a device's memory: found by compiling, without data or weights.

    python -m mafx.training.fit --config tiktok:temporal --memory 78 [--config.FIELD VALUE ...]

The step is compiled for all devices that are there, with more and more examples per device, and the compiler says what
it would allocate. On GPUs and TPUs a run takes that, the program itself, and what drivers and libraries keep (about
1 GiB), so ask for a little less than there is. On CPU cores the number is too small to be a guide: the compiler does
not know what kernels allocate inside.
"""

import math
import sys
from collections.abc import Callable

import jax
import ml_collections
from jax.sharding import Mesh

from mafx.budget import GIB, POOL_SHARE
from mafx.commands import Parser, add_config_flag, run_command
from mafx.errors import InputError, is_out_of_memory
from mafx.flops import count_flops
from mafx.training.config import check_config, parse_config
from mafx.training.runs import model_sizes
from mafx.training.sharding import make_mesh
from mafx.training.step import trace_step

NAME = "python -m mafx.training.fit"
LEAST_KEPT = "blocks"  # the `remat` that takes least memory
CHANGED = "remat", "batch", "accumulate"  # fields of a config that make a step smaller
ADVICE = (
    "take a smaller --config.batch with more --config.accumulate, --config.remat blocks, or more --config.mesh.fsdp"
)


def compiled_gib(traced: jax.stages.Traced) -> float:
    """GiB per device that a program takes: arguments, temporaries, and results that do not take an argument's place.

    Infinite where the compiler gives up for lack of memory.
    """
    try:
        needed = traced.lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            return math.inf
        raise
    results = needed.output_size_in_bytes - needed.alias_size_in_bytes
    return (needed.argument_size_in_bytes + needed.temp_size_in_bytes + results) / GIB


def largest_batch(memory: Callable[[int], float], limit: float) -> int:
    """The largest number of examples whose `memory` is within the limit, 0 if there is none: doubled, then bisected."""
    fitting, too_many = 0, 1
    while memory(too_many) <= limit:
        fitting, too_many = too_many, 2 * too_many
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if memory(middle) <= limit:
            fitting = middle
        else:
            too_many = middle
    return fitting


def what_fits(config: ml_collections.ConfigDict, mesh: Mesh, limit: float) -> str | None:
    """Flags by which a step of as many examples fits into `limit` GiB per device, None where none are found.

    Args:
      config: Of the step that does not fit.
      mesh: Its devices.
      limit: GiB that the step may take. Steps are compiled to find out, which takes minutes for large ones.
    """
    sizes = model_sizes(config)
    examples = config.batch * config.accumulate // mesh.size  # of each device, for one update
    for remat in dict.fromkeys((config.remat, LEAST_KEPT)):
        for batch in (n for n in range(config.batch // mesh.size, 0, -1) if examples % n == 0):
            changed = config.copy_and_resolve_references()
            changed.remat, changed.batch, changed.accumulate = remat, batch * mesh.size, examples // batch
            flags = [f"--config.{name} {changed[name]}" for name in CHANGED if changed[name] != config[name]]
            if flags and (gib := compiled_gib(trace_step(changed, sizes, mesh, batch))) <= limit:
                return f"{' '.join(flags)} takes {gib:.1f} of {limit:.1f} GiB, as compiled"
    return None


def advise(config: ml_collections.ConfigDict) -> str:
    """What to do where a step of training has found too little memory on the devices that are there."""
    mesh = make_mesh(config.mesh)
    managed = (device_of(mesh).memory_stats() or {}).get("bytes_limit")
    if managed is None or jax.process_count() > 1:
        return ADVICE
    limit = managed * POOL_SHARE / GIB
    print(f"The device is full. Compiling other steps, to find one of at most {limit:.1f} GiB.", file=sys.stderr)
    return what_fits(config, mesh, limit) or ADVICE


def device_of(mesh: Mesh) -> jax.Device:
    """One of its devices, which are alike."""
    return mesh.devices.flat[0]


def report(config: ml_collections.ConfigDict, mesh: Mesh, limit: float) -> int:
    """Print what every batch that is tried takes, and return the largest per device that fits into `limit` GiB."""
    sizes = model_sizes(config)

    def memory(batch: int) -> float:
        traced = trace_step(config, sizes, mesh, batch)
        gib, flops = compiled_gib(traced), count_flops(traced.jaxpr.jaxpr) / (batch * mesh.size * config.accumulate)
        print(f"{batch:16} {gib:12.2f} {flops / 1e12:20.3g}", flush=True)
        return gib

    kind = device_of(mesh).device_kind
    print(f"{config.stage} stage, remat {config.remat}, {mesh.size} x {kind}, mesh {dict(mesh.shape)}")
    if device_of(mesh).platform == "cpu":
        print("For CPU cores the memory is too small: the compiler does not know what kernels allocate inside.")
    print("batch per device  GiB per device  TFLOP per example", flush=True)
    batch = largest_batch(memory, limit)
    if batch:
        total = batch * mesh.size
        print(f"The largest that fits into {limit:g} GiB: {batch} per device, --config.batch {total}")
    else:
        advice = "compute more again (--config.remat), or spread parameters (--config.mesh.fsdp)"
        print(f"One example does not fit into {limit:g} GiB: {advice}")
    return batch


def main() -> None:
    parser = Parser(NAME, __doc__)
    add_config_flag(parser)
    parser.add_argument("--memory", type=float, required=True, help="Memory of a device in GiB.")
    args, config_arguments = parser.parse_known_args()
    config = parse_config(args.config, config_arguments)
    if args.memory <= 0:
        raise InputError(f"--memory: expected a number above 0, found {args.memory}")
    jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    check_config(config)
    report(config, make_mesh(config.mesh), args.memory)


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
