"""Puppets, from nothing: both stages on two CPU cores.

    python train.py --config configs/puppets.py:appearance --workdir RUNS/appearance
    python train.py --config configs/puppets.py:temporal --workdir RUNS/temporal --config.init_from RUNS/appearance
    python sample.py --workdir RUNS/temporal

With no Stable Diffusion to start from, the appearance stage trains the UNet too, on pixels. The schedule ends in pure noise (zero terminal SNR,
the network answering with the clean picture), because here the colours of the background are to be learnt as well, and a small network that must also
hand on the noise it was given, as for v, draws them worse the less noise there is. Late times are drawn more often: there reference and pose are all
it can go by.
"""

import ml_collections

from mafx.training.config import default_config


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = default_config(stage)
    config.model = "puppets"
    config.dtype = "float32"
    config.remat = "none"
    config.cpu_devices = 2  # two devices of one core are faster than one of two

    config.data.name = "puppets"
    config.data.size = (32, 32)
    config.data.train_clips, config.data.test_clips = 20_000, 64
    config.data.stride, config.data.reference = 1, "first"

    config.schedule = {"kind": "scaled_linear", "prediction": "sample", "zero_terminal_snr": True}
    config.loss.person, config.loss.time_shift = 3.0, 3.0
    config.lr, config.warmup, config.decay = 1.5e-3, 100, "cosine"
    config.betas, config.ema = (0.9, 0.99), 0.995
    config.log_every, config.save_every, config.show_every, config.show_guidance = 50, 500, 1000, 1.0

    if stage == "appearance":
        config.train_only = (("motion_modules", False), (".*", True))
        config.batch, config.steps = 16, 4000
    else:
        config.data.frames = 8
        config.joint.frames = 0.0
        config.batch, config.steps = 2, 120
    return config
