"""One clip, a folder with images/ and densepose/: its beginning is trained on, the rest held out. Starts from the puppets' first stage.

    python train.py --config configs/one_clip.py:appearance --workdir RUNS/clip --config.data.path CLIP --config.data.train_frames 120 \
        --config.init_from RUNS/appearance
    python train.py --config configs/one_clip.py:temporal --workdir RUNS/clip_temporal --config.data.path CLIP --config.data.train_frames 120 \
        --config.init_from RUNS/clip
    python benchmarks/one_clip.py --workdir RUNS/clip_temporal
"""

import ml_collections

from configs import puppets


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = puppets.get_config(stage)
    config.data.name = "folder"
    config.data.crop = "random"
    config.steps = 700 if stage == "appearance" else 100
    config.lr, config.save_every, config.show_every, config.show_clips, config.show_frames = 7e-4, 350, 350, 1, 32
    return config
