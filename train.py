"""Train one stage of a model.

python train.py --config configs/puppets.py:appearance --workdir DIR [--config.lr 3e-4 ...]
"""

import logging
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from mafx.errors import InputError
from mafx.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "config file, with an argument for its stage behind a colon", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "folder for checkpoints, metrics and videos")
flags.mark_flags_as_required(["config", "workdir"])


def main(_: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for noisy in ("jax", "absl", "orbax"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        train(CONFIG.value, Path(WORKDIR.value))
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main)
