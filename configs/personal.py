"""One person: a low-rank update of a trained model, from one clip of that person, in a file of its own.

    CLIP="--config.data.path CLIP --config.data.train_frames 120"
    python train.py --config personal:appearance --workdir RUNS/personal $CLIP --config.init_from RUNS/temporal
    python -m mafx.pretrained.export RUNS/personal person.safetensors --low_rank
    python sample.py --workdir RUNS/temporal --lora person.safetensors

CLIP is a folder with images/ and densepose/. Its beginning is trained on, the rest is held out.
"""

import ml_collections

from configs import one_clip
from mafx.training.config import LOW_RANK


def get_config(stage: str = "appearance") -> ml_collections.ConfigDict:
    config = one_clip.get_config(stage)
    config.low_rank.rank = 16
    config.train_only = LOW_RANK
    config.weight_decay = 0.0  # towards no update
    return config
