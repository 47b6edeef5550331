"""The smallest model with every kind of layer, the config that trains it, and a command that does so on its own:

python tests/micro.py WORKDIR '{"config": {"steps": 3}, "devices": 2, "signal": [9, 8]}'
"""

import dataclasses
import json
import logging
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs import puppets
from mafx.commands import run_command
from mafx.data.clips import PuppetClip
from mafx.densepose import read_labels
from mafx.models import animator
from mafx.models.animator import AnimatorConfig
from mafx.models.autoencoder import AutoencoderConfig
from mafx.models.temporal import TemporalConfig
from mafx.models.text import TextConfig
from mafx.models.unet import UNetConfig

# Two levels, one with attention; latents are half the image's size.
MICRO = AnimatorConfig(
    unet=UNetConfig(
        widths=(32, 32),
        attends=(True, False),
        layers=1,
        heads=2,
        groups=8,
        text_width=16,
        temporal=TemporalConfig(heads=2),
    ),
    motion_widths=(8, 8),
    autoencoder=AutoencoderConfig(widths=(8, 8), layers=1, groups=4),
    text=TextConfig(width=16, hidden=32, layers=1, heads=2),
)

PARTS = (
    ("^(unet|appearance|control)/.*(conv_in|conv_out|attn1|controlnet_)", True),
    (".*", False),
)  # of every network; more only compiles longer


@dataclasses.dataclass(frozen=True)
class Example:
    """`reference` uint8 `H W 3`, `motion` (renders) and `video` (the truth) uint8 `f H W 3`, `labels` uint8 `f H W`."""

    reference: np.ndarray
    motion: np.ndarray
    video: np.ndarray
    labels: np.ndarray


def example(size, frames, identity=0, motion=0):
    """A drawn clip behind its first frame, which is the reference."""
    clip = PuppetClip(identity, motion, size)
    (reference, *video), renders = clip.read(np.arange(frames + 1))
    return Example(reference, renders[1:], np.stack(video), read_labels(renders[1:])[0].astype(np.uint8))


def micro_config(stage, **changes):
    """Training on puppets of 16x16 pixels."""
    config = puppets.get_config(stage)
    config.model, config.batch, config.decay, config.warmup, config.show_clips = "micro", 2, "constant", 0, 0
    if stage == "appearance":
        config.train_only = PARTS
    config.data.size, config.data.train_clips, config.data.test_clips = (16, 16), 16, 1
    config.data.frames = 1 if stage == "appearance" else 2
    config.log_every = config.cpu_devices = 1
    config.optimiser = "adamw"  # muon compiles for longer
    for name, value in changes.items():
        config.update_from_flattened_dict({name: value})
    return config


def main():
    workdir, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    jax.config.update("jax_num_cpu_devices", settings.get("devices", 1))
    if "distributed" in settings:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(*settings["distributed"])
    from mafx.training import loop  # noqa: PLC0415 (after the devices are set)

    animator.SIZES["micro"] = MICRO
    distribute, calls = loop.distribute_batch, []

    def counted(*args):
        """A signal to this process when so many batches were taken, and the checkpoint of step 5 is whole."""
        calls.append(1)
        if "signal" in settings and settings["signal"][1] == len(calls):
            while len(calls) > 5 and not (workdir / "checkpoints" / "5").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), settings["signal"][0])
        return distribute(*args)

    loop.distribute_batch = counted
    loop.train(micro_config("appearance", **settings["config"]), workdir)


if __name__ == "__main__":
    sys.exit(run_command("train.py", main))
