"""TikTok dances (Jafarian and Park, 2021) on top of Stable Diffusion 1.5, in DisCo's split.

    python -m mafx.data.builders tiktok --manual_dir DOWNLOADED --data_dir DATA
    python train.py --config tiktok:appearance --workdir RUNS/appearance --config.data.path DATA \\
        --config.init_from WEIGHTS
    python train.py --config tiktok:temporal --workdir RUNS/temporal --config.data.path DATA \\
        --config.init_from RUNS/appearance

WEIGHTS holds stable-diffusion-v1-5/ and sd-vae-ft-mse/. The paper's joint training needs an image set as well: prepare
it, and add `--config.images.name images --config.images.path DATA --config.joint.images 0.2`.
"""

import ml_collections

from mafx.training.config import default_config


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = default_config(stage)
    config.data.name = "tiktok"
    config.data.flip = False  # writing on shirts and rooms would be mirrored
    config.data.distance = 30
    return config
