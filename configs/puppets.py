"""Puppets, from nothing: three stages on two CPU cores.

    python train.py --config configs/puppets.py:autoencoder --workdir /tmp/puppets/autoencoder
    python train.py --config configs/puppets.py:appearance --workdir /tmp/puppets/appearance --config.init_from /tmp/puppets/autoencoder
    python train.py --config configs/puppets.py:temporal --workdir /tmp/puppets/temporal --config.init_from /tmp/puppets/appearance
    python sample.py --workdir /tmp/puppets/temporal

64x64 pictures, latents of 16x16x8. With no Stable Diffusion to start from, the first stage trains the autoencoder, and the appearance stage the
UNet too. The schedule ends in pure noise (zero terminal SNR, v prediction), because here the colours of the background are to be learnt as well.
"""

import ml_collections


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # What
    config.stage = stage
    config.model = "puppets"
    config.init_from = ""  # work folder of the stage before
    config.seed = 0
    config.dtype = "float32"
    config.mesh = {"data": -1, "fsdp": 1}

    # Data
    config.data = {"name": "puppets", "size": (64, 64), "train_clips": 20000, "test_clips": 64}
    config.data.update({"frames": 1, "stride": 1, "distance": 0, "flip": False, "workers": 0})

    # Objective
    config.schedule = {"kind": "scaled_linear", "prediction": "v", "zero_terminal_snr": True}
    config.loss = {"noise_offset": 0.0, "min_snr_gamma": ml_collections.config_dict.placeholder(float)}
    config.loss.update({"reference_dropout": 0.1, "pose_dropout": 0.0, "latent_noise": 0.1})

    # Optimisation; lr is constant after its warm-up, or decays
    config.lr, config.warmup, config.decay = 1e-3, 50, "cosine"
    config.betas, config.weight_decay, config.clip = (0.9, 0.99), 1e-2, 1.0
    config.accumulate = 1
    config.ema = 0.995

    # Watching
    config.log_every, config.save_every, config.show_every, config.show_clips = 20, 400, 800, 4

    if stage == "autoencoder":
        config.train_only = (("^autoencoder/", True), (".*", False))
        config.batch, config.steps = 16, 800
    elif stage == "appearance":
        config.train_only = (("motion_modules", False), ("^(unet|appearance|control|text)/", True), (".*", False))
        config.batch, config.steps = 16, 1600
    elif stage == "temporal":
        config.train_only = (("/pe$", False), ("motion_modules", True), (".*", False))
        config.data.frames = 8
        config.batch, config.steps = 2, 300
    else:
        raise ValueError(f"stage {stage!r} is unknown, expected autoencoder, appearance or temporal")
    return config
