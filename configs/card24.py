"""Another config on one card of 24 GB, such as an RTX 4090 or 3090, at 512x512.

    python train.py --config card24:tiktok:appearance --workdir RUNS/appearance --config.data.path DATA \\
        --config.init_from WEIGHTS
    python train.py --config card24:tiktok:temporal --workdir RUNS/temporal --config.data.path DATA \\
        --config.init_from RUNS/appearance

One example is computed at a time, and a step averages the gradients of as many as the other config has in a batch. All
else that makes a step stays as it is. What is kept between steps takes less memory: moments and gradients in bfloat16,
averages in main memory. docs/training.md has the figures.
"""

import importlib

import ml_collections

from mafx.errors import InputError

NAMES = ("tiktok", "ted_talks", "clips")  # configs of Stable Diffusion 1.5's size


def get_config(argument: str = "tiktok:appearance") -> ml_collections.ConfigDict:
    """The config of NAME:STAGE. Raises InputError for an unknown name or stage."""
    name, _, stage = argument.partition(":")
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise InputError(f"expected one of {known} and a stage, as in card24:tiktok:temporal; found {argument!r}")
    config = importlib.import_module(f"configs.{name}").get_config(stage)
    examples = config.batch * config.accumulate
    config.batch, config.accumulate = 1, examples

    config.remat = "blocks"
    config.accumulate_dtype = "bfloat16"
    config.moments_dtype = "bfloat16"
    config.ema_on = "host"
    config.ema_every = 10
    return config
