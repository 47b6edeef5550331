"""Few steps: a trained model learns to say in one to four steps what it says in many.

    python train.py --config few_steps:puppets --workdir RUNS/few_steps --config.init_from RUNS/temporal
    python sample.py --workdir RUNS/few_steps --sampler consistency --steps 2

This is *Consistency Models Made Easy* (arXiv 2406.14548): the network's answer about a noisy clip is drawn to its own
answer about the same clip with less of the same noise. There is no teacher and no second copy. The other config says
everything else: data, networks, schedule.
"""

import importlib

import ml_collections

from mafx.errors import InputError

NAMES = ("puppets", "tiktok", "ted_talks", "clips")


def get_config(name: str = "puppets") -> ml_collections.ConfigDict:
    """The config of NAME. Raises InputError for an unknown name."""
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise InputError(f"expected one of {known}, as in few_steps:puppets; found {name!r}")
    config = importlib.import_module(f"configs.{name}").get_config("temporal")
    config.train_only = (("/pe$|^text/|^autoencoder/", False), (".*", True))
    config.joint.frames = 0.0
    config.loss.halvings = 4
    # Early times, where the clean picture is the target, keep the answers from becoming all the same.
    config.loss.time_shift = 1.0
    config.loss.as_v = True
    config.loss.reference_dropout = 0.0  # only guidance needs it
    config.warmup = 20
    config.decay = "constant"
    if name == "puppets":
        config.loss.guidance = 1.5  # is folded in
        config.loss.reference_dropout = 0.1
        config.optimiser = "adamw"
        config.lr = 2e-4
        config.batch = 4
        config.steps = 500
        config.ema = 0.99
    return config
