"""How much memory the temporal stage saves by training its temporal layers alone, compiled for this machine's CPU.

    python -m mafx.benchmarks.memory

It compares the temporary memory of two gradients, that of what the stage trains and that of everything. What sampling
and training take on accelerators says `python -m mafx.ahead`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mafx.commands import Parser, run_command
from mafx.diffusion.schedule import Schedule
from mafx.models.animator import SIZES, Animator, parameter_shapes
from mafx.tables import markdown_table
from mafx.training.config import parse_config
from mafx.training.step import diffusion_loss, split
from mafx.trees import Flat, flatten

NAME = "python -m mafx.benchmarks.memory"
FRAMES = 16


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
    video = jax.ShapeDtypeStruct((1, FRAMES, H, W, 3), jnp.uint8)
    batch = {"video": video, "motion": video, "reference": jax.ShapeDtypeStruct((1, H, W, 3), jnp.uint8)}

    @jax.jit
    def gradient(trained: Flat, frozen: Flat, batch: dict[str, jax.Array]) -> Flat:
        def loss_of_trained(trained: Flat) -> jax.Array:
            return loss(trained | frozen, batch, jax.random.key(0), jnp.zeros(()))[0]

        return jax.grad(loss_of_trained)(trained)

    needed: Any = gradient.lower(trained, frozen, batch).compile().memory_analysis()
    return needed.temp_size_in_bytes


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--model", default="tiny", choices=SIZES, help="Sizes of the networks (default %(default)s).")
    add("--size", nargs=2, type=int, default=(128, 128), metavar=("H", "W"), help="In pixels (default 128 128).")
    return parser


def main(arguments: list[str] | None = None) -> None:
    measure_gradient(make_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
