"""TED talks (*Motion Representations for Articulated Animation*, 2021) on top of Stable Diffusion 1.5.

    python -m mafx.data.builders ted_talks --manual_dir DOWNLOADED --data_dir DATA
    python train.py --config ted_talks:appearance ...

configs/tiktok.py has the commands of both stages in full.
"""

import ml_collections

from mafx.training.config import default_config


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = default_config(stage)
    config.data.name = "ted_talks"
    config.data.size = (384, 384)  # as the videos are
    config.data.flip = True
    config.data.distance = 60  # speakers stand still for long
    return config
