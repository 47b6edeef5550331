"""Train one stage of a model.

    python train.py --config configs/puppets.py:appearance --workdir DIR [--config.lr 3e-4 ...]

On several machines the same line runs on each, with --distributed: SLURM, Kubernetes and TPU pods are recognised. Elsewhere say who is who:
--distributed --coordinator HOST:PORT --processes N --process I.
"""

import logging
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from mafx.errors import InputError, memory_advice
from mafx.processes import join_processes
from mafx.training.loop import train

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "config file, with an argument for its stage behind a colon", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and videos")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("jax", "absl", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    config = CONFIG.value
    jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    join_processes()
    try:
        with memory_advice(
            "take a smaller --config.batch with more --config.accumulate, --config.remat blocks, or more --config.mesh.fsdp"
        ):
            train(config, Path(WORKDIR.value))
    except (InputError, FloatingPointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


if __name__ == "__main__":
    app.run(main)
