"""One person: a low-rank update of a model, from one clip of that person, in a file of its own.

    CLIP="--config.data.path CLIP --config.data.train_frames 60"
    python train.py --config personal:sd15:appearance --workdir RUNS/person $CLIP --config.init_from WEIGHTS
    python -m mafx.pretrained.export RUNS/person person.safetensors --low_rank
    python sample.py --pretrained WEIGHTS --lora person.safetensors --reference person.png --motion densepose.mp4

CLIP is a folder with images/ and densepose/. Its beginning is trained on, the rest is held out. WEIGHTS may also be the
work folder of a run. With `personal:puppets:appearance` it is the bundled model's size, which a CPU trains, and
`python -m mafx.experiments.personal` shows what that gains and costs.
"""

import ml_collections

from configs import clips, puppets
from mafx.errors import InputError
from mafx.training.config import LOW_RANK

# Of the small network, in which kernels of attention alone gained less: see docs/training.md.
SPATIAL = "^(unet|appearance|control)/(?!.*motion_modules)"
BASES = {"puppets": puppets.get_config, "sd15": clips.get_config}  # by the size of the networks


def get_config(argument: str = "sd15:appearance") -> ml_collections.ConfigDict:
    """The config of SIZE:STAGE. Raises InputError for an unknown size or stage."""
    size, _, stage = argument.partition(":")
    if size not in BASES:
        known = ", ".join(BASES)
        raise InputError(f"expected one of {known} and a stage, as in personal:sd15:appearance; found {argument!r}")
    config = BASES[size](stage)
    config.data.name = "folder"
    config.low_rank.rank = 16
    config.train_only = LOW_RANK
    config.weight_decay = 0.0  # towards no update
    config.ema = 0.98  # runs are short
    config.warmup = 20
    config.show_clips = 1  # there is one

    if size == "sd15":
        config.batch, config.accumulate = 1, 4  # 8.4 GiB, as compiled for an RTX 4090
        config.remat = "blocks"
        config.steps = 500
        config.lr = 1e-4
    else:
        config.low_rank.rank = 8
        config.low_rank.kernels = SPATIAL
        config.optimiser = "adamw"
        config.batch = 8
        config.steps = 150
        config.lr = 1e-3
    config.save_every = config.show_every = config.steps
    return config
