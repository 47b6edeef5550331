"""The largest batch whose training step fits into a device's memory, found by compiling it: no data, no weights.

    python -m mafx.training.fit --config configs/tiktok.py:temporal --memory 80 [--config.FIELD ...]

The step is compiled for the devices that are there, all of them, for more and more examples per device, and the compiler says what it would allocate.
On GPUs and TPUs a run takes that, the program itself, and what drivers and libraries keep (about 1 GiB): ask for a little less than there is. On CPU
cores it is no guide: what kernels allocate inside is not known to the compiler, and the number is too small.
"""

import functools
import math
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags

from mafx.errors import InputError, out_of_memory
from mafx.models.animator import AnimatorConfig, parameter_shapes
from mafx.training.config import check_config
from mafx.training.flops import count_flops
from mafx.training.loop import model_sizes
from mafx.training.sharding import make_mesh
from mafx.training.step import init_state, jit_step, make_optimiser


def trace_step(config: ml_collections.ConfigDict, sizes: AnimatorConfig, mesh: Mesh, batch: int) -> jax.stages.Traced:
    """The training step of a run with so many examples per device, on shapes alone."""
    init = functools.partial(
        init_state, rules=config.train_only, optimiser=make_optimiser(config)[0], dtype=jnp.dtype(config.dtype)
    )
    state = jax.eval_shape(init, parameter_shapes(sizes))
    b, f, (H, W) = batch * mesh.size, config.data.frames, config.data.size
    shape, dtype = (H, W, 3), jnp.uint8
    if config.data.latent_cache:
        shape, dtype = (H // sizes.autoencoder.factor, W // sizes.autoencoder.factor, sizes.unet.channels), jnp.float16
    examples = {
        "video": jax.ShapeDtypeStruct((b, f, *shape), dtype),
        "motion": jax.ShapeDtypeStruct((b, f, H, W, 3), jnp.uint8),
        "reference": jax.ShapeDtypeStruct((b, *shape), dtype),
    }
    step = jit_step(config, sizes, np.zeros(sizes.text.positions, np.int32), mesh, state)
    return step.trace(state, examples, jax.ShapeDtypeStruct((), jnp.int32))


def compiled_gib(traced: jax.stages.Traced) -> float:
    """GiB per device: arguments, what is computed on the way, and results that do not take an argument's place. Infinite if the compiler gives up."""
    try:
        needed = traced.lower().compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if out_of_memory(error):
            return math.inf
        raise
    results = needed.output_size_in_bytes - needed.alias_size_in_bytes
    return (needed.argument_size_in_bytes + needed.temp_size_in_bytes + results) / 2**30


def largest_batch(memory: Callable[[int], float], limit: float) -> int:
    """The largest number of examples that take no more than the limit, 0 if one takes more. Doubled until they do, then bisected."""
    fitting, too_many = 0, 1
    while memory(too_many) <= limit:
        fitting, too_many = too_many, 2 * too_many
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fitting, too_many = (middle, too_many) if memory(middle) <= limit else (fitting, middle)
    return fitting


def report(config: ml_collections.ConfigDict, mesh: Mesh, limit: float) -> int:
    """Print what every batch that is tried needs, and return the largest per device that fits into `limit` GiB."""
    sizes = model_sizes(config)

    def memory(batch: int) -> float:
        traced = trace_step(config, sizes, mesh, batch)
        gib, flops = compiled_gib(traced), count_flops(traced.jaxpr.jaxpr) / (batch * mesh.size)
        print(f"{batch:16} {gib:12.2f} {flops / 1e12:20.3g}", flush=True)
        return gib

    kind = mesh.devices.flat[0].device_kind
    print(f"{config.stage} stage, remat {config.remat}, {mesh.size} x {kind}, mesh {dict(mesh.shape)}")
    if mesh.devices.flat[0].platform == "cpu":
        print("For CPU cores the memory is too small: the compiler does not know what kernels allocate inside.")
    print("batch per device  GiB per device  TFLOP per example", flush=True)
    batch = largest_batch(memory, limit)
    if batch:
        print(f"The largest that fits into {limit:g} GiB: {batch} per device, --config.batch {batch * mesh.size}")
    else:
        print(
            f"One example does not fit into {limit:g} GiB: compute more again (--config.remat), or spread parameters (--config.mesh.fsdp)"
        )
    return batch


def main(_: list[str]) -> None:
    config = flags.FLAGS.config
    jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    try:
        check_config(config)
    except InputError as error:
        print(f"fit: {error}", file=sys.stderr)
        sys.exit(2)
    report(config, make_mesh(config.mesh), flags.FLAGS.memory)


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "config file, with an argument for its stage behind a colon", lock_config=True
    )
    flags.DEFINE_float("memory", None, "GiB of a device", lower_bound=0)
    flags.mark_flags_as_required(["config", "memory"])
    app.run(main)
