"""Puppets, from nothing: both stages on two CPU cores.

    python train.py --config puppets:appearance --workdir RUNS/appearance
    python train.py --config puppets:temporal --workdir RUNS/temporal --config.init_from RUNS/appearance
    python sample.py --workdir RUNS/temporal

There is no Stable Diffusion to start from, so that the appearance stage trains the UNet too, on pixels. The colours of
the background have to be learnt as well. The schedule therefore ends in pure noise, and the network answers with the
clean picture. A small network that answers with v has to hand on the noise that it was given, and draws colours worse
the less noise there is.
"""

import ml_collections

from mafx.training.config import default_config


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = default_config(stage)
    config.model = "puppets"
    config.dtype = "float32"  # half precision gains nothing on a CPU
    config.remat = "none"
    config.cpu_devices = 2  # two devices of one core are faster than one of two

    config.data.name = "puppets"
    config.data.size = (64, 64)
    config.data.train_clips = 20_000
    config.data.test_clips = 64
    config.data.stride = 1
    config.data.reference = "first"

    config.schedule = {"kind": "scaled_linear", "prediction": "sample", "zero_terminal_snr": True}
    config.loss.person = 3.0
    config.loss.time_shift = 2.0  # late times are drawn more often: there only reference and motion say what to draw
    config.loss.as_v = True  # early times count, so that many steps draw more sharply than one

    config.optimiser = "muon"
    config.decay = "cosine"
    config.betas = (0.9, 0.99)

    config.log_every = 50
    config.save_every = 500
    config.show_every = 1000
    config.show_guidance = 1.0  # no guidance, which costs half of a step

    if stage == "appearance":
        config.train_only = (("motion_modules", False), (".*", True))
        config.batch = 16
        config.steps = 3600
        config.lr = 2e-3
        config.warmup = 100
        config.ema = 0.998  # runs are short
    else:
        config.data.frames = 8
        config.joint.frames = 0.0
        config.batch = 2
        config.steps = 250
        config.lr = 1e-3
        config.warmup = 20
        config.ema = 0.99
    return config
