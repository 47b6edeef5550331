"""One clip, a folder with images/ and densepose/: its beginning is trained on, the rest is held out.

It starts from the puppets' first stage.

    CLIP="--config.data.path CLIP --config.data.train_frames 120"
    python train.py --config one_clip:appearance --workdir RUNS/clip $CLIP --config.init_from RUNS/appearance
    python train.py --config one_clip:temporal --workdir RUNS/clip_temporal $CLIP --config.init_from RUNS/clip
    python -m mafx.experiments.one_clip --workdir RUNS/clip_temporal
"""

import ml_collections

from configs import puppets


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = puppets.get_config(stage)
    config.data.name = "folder"
    config.data.crop = "random"  # a few frames look like more

    config.steps = 700 if stage == "appearance" else 100
    config.optimiser = "adamw"
    config.lr = 7e-4  # less than from nothing
    config.save_every = 350
    config.show_every = 350
    config.show_clips = 1  # there is one
    config.show_frames = 32
    return config
