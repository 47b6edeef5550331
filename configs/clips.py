"""Clips of your own, on top of Stable Diffusion 1.5.

They are folders with images/ and densepose/, or videos NAME.mp4 beside NAME_densepose.mp4.

    python -m mafx.data.builders clips --manual_dir CLIPS --data_dir DATA
    python train.py --config clips:appearance ...

configs/tiktok.py has the commands of both stages in full.
"""

import ml_collections

from mafx.training.config import default_config


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = default_config(stage)
    config.data.name = "clips"
    return config
