"""What sampling needs at full size on one device, read from the compiled program. No accelerator is needed.

    pip install libtpu
    python benchmarks/sampling_memory.py --frames 16 160

As `training_memory.py` does for training, by the same means: the program of the steps is compiled ahead of time for a TPU, in bfloat16, guided. A row
takes 2 to 5 minutes of one core. Beside the program's own arguments lie the weights that it does not use: of the appearance encoder, whose features
are computed before, of the autoencoder and of the text tower.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from training_memory import SWITCHES, memory, report_of  # before JAX: it says which platforms there are

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from mafx.animate import Settings, _animate
from mafx.model import abstract_model
from mafx.models.animator import SIZES, parameter_shapes


def compile_steps(frames: int, args: argparse.Namespace, folder: str) -> None:
    jax.default_backend = lambda: "tpu"  # for the choice of kernels
    model = abstract_model(SIZES[args.model], "bfloat16")
    device = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices[0]

    def place(x):
        return (
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device)) if hasattr(x, "shape") else x
        )

    def call(program, *inputs):
        if program.__name__ == "run_steps":
            program.lower(*jax.tree.map(place, inputs)).compile(compiler_options=SWITCHES | {"xla_dump_to": folder})
        return program.eval_shape(*inputs)

    video = np.zeros((frames, *args.size, 3), np.uint8)
    _animate(model, video[0], video, Settings(), None, call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15", choices=SIZES)
    parser.add_argument("--size", nargs=2, type=int, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--frames", nargs="+", type=int, default=[16, 160])
    args = parser.parse_args()
    shapes = parameter_shapes(SIZES[args.model])
    all_weights, used = (
        sum(2 * x.size for x in jax.tree.leaves(tree))
        for tree in (shapes, {name: shapes[name] for name in ("unet", "control")})
    )
    print("| frames | arguments | temporaries | total | with all weights |\n|--:|--:|--:|--:|--:|", flush=True)
    for frames in args.frames:
        with tempfile.TemporaryDirectory() as folder:
            needed = memory(report_of(Path(folder), compile_steps, frames, args)["-buffer-assignment"])
        row = (needed["arguments"], needed["temporaries"], needed["total"], needed["total"] + all_weights - used)
        print(f"| {frames} | " + " | ".join(f"{x / 2**30:.2f}" for x in row) + " |", flush=True)


if __name__ == "__main__":
    main()
