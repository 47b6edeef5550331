"""Temporary memory of the temporal stage's gradient, of its trained parameters alone against that of all: what freezing saves.

python benchmarks/temporal_gradient.py --model tiny --size 128 128
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from configs import puppets
from mafx.diffusion.schedule import Schedule
from mafx.models.animator import SIZES, Animator, parameter_shapes
from mafx.training.step import diffusion_loss, flatten, split

FRAMES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", choices=SIZES, help="tiny has the layout of Stable Diffusion 1.5")
    parser.add_argument("--size", nargs=2, type=int, default=(128, 128), metavar=("H", "W"))
    args = parser.parse_args()
    config, size, (h, w) = puppets.get_config("temporal"), SIZES[args.model], args.size
    loss = diffusion_loss(
        Animator(size), Schedule(**config.schedule), np.zeros(size.text.positions, np.int32), config.loss
    )
    flat = flatten(parameter_shapes(size))
    shapes = {"video": (1, FRAMES, h, w, 3), "motion": (1, FRAMES, h, w, 3), "reference": (1, h, w, 3)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.uint8) for name, shape in shapes.items()}
    needed = []
    for rules in (config.train_only, ((".*", True),)):
        trained, frozen = split(flat, rules)

        def gradient(trained, frozen, batch):
            return jax.grad(lambda x: loss(x | frozen, batch, jax.random.key(0))[0])(trained)

        needed.append(jax.jit(gradient).lower(trained, frozen, batch).compile().memory_analysis().temp_size_in_bytes)
    print(
        "temporal layers {:.1f} MiB, everything {:.1f} MiB: {:.3f}".format(
            *(x / 2**20 for x in needed), needed[0] / needed[1]
        )
    )


if __name__ == "__main__":
    main()
