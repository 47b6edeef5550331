"""Ablations: the paper's claims on puppets, each as one change of the same short recipe.

    python train.py --config configs/ablations.py:full:appearance --workdir RUNS/full/appearance
    python train.py --config configs/ablations.py:full:temporal --workdir RUNS/full/temporal --config.init_from RUNS/full/appearance

`python benchmarks/ablations.py --runs RUNS` trains and evaluates all of them, and makes the table.
"""

import dataclasses

import ml_collections

from configs import puppets
from mafx.errors import InputError
from mafx.training.config import STAGES


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A change, and the claim that it tests.

    Attributes:
      claim: what the change should show; of the paper, unless it says otherwise.
      measure: of the evaluation, by which the claim is judged.
      better: whether by that measure the "full" model, the "changed" one, or "neither" should be better.
      config: fields of the config that differ.
      trains: the stages that have to be trained anew; where the temporal one is missing, the model has no temporal attention.
      flags: of sample.py, in addition to those of all.
      frames: of the clips; from 17 on they take several windows.
    """

    claim: str = ""
    measure: str = "psnr_person"
    better: str = "full"
    config: dict[str, object] = dataclasses.field(default_factory=dict)
    trains: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    frames: int = 16


LONG = 64
ABLATIONS = {
    "full": Ablation(trains=STAGES),
    "no_temporal": Ablation("temporal attention takes flicker away", "flicker_unseen", trains=("appearance",)),
    "embedding": Ablation(
        "a global embedding loses what an appearance encoder keeps",
        config={"networks.appearance": "embedding"},
        trains=STAGES,
    ),
    "fusion_full": Ablation(
        "features in the middle and up blocks are enough (ours: the paper does not test it)",
        better="neither",
        config={"networks.fusion": "full"},
        trains=STAGES,
    ),
    "no_joint": Ablation(
        "single frames in training keep each frame good", config={"joint.frames": 0.0}, trains=("temporal",)
    ),
    "sticks": Ablation("dense renders say more than keypoints", config={"networks.renders": "sticks"}, trains=STAGES),
    "full_long": Ablation(frames=LONG),
    "own_noise": Ablation(
        "windows that start from the same noise fit together",
        "difference_error_at_borders",
        flags=("--noshared_noise",),
        frames=LONG,
    ),
    "no_overlap": Ablation(
        "windows that overlap fit together", "difference_error_at_borders", flags=("--overlap", "0"), frames=LONG
    ),
    "guidance_2": Ablation(
        "guidance by the reference brings its likeness closer", better="changed", flags=("--guidance", "2")
    ),
    "guidance_4": Ablation("so does more of it", better="changed", flags=("--guidance", "4")),
}


def get_config(which: str = "full:appearance") -> ml_collections.ConfigDict:
    """`which` is NAME:STAGE."""
    name, _, stage = which.partition(":")
    if name not in ABLATIONS:
        known = ", ".join(ABLATIONS)
        raise InputError(
            f"ablation {name!r} is unknown, expected one of {known}; give it and a stage behind the file, as in FILE:full:temporal"
        )
    config = puppets.get_config(stage)
    config.steps = {"appearance": 1200, "temporal": 200}[stage]
    config.save_every, config.show_every, config.show_clips = 400, config.steps, 2
    config.joint.frames = {"appearance": 0.0, "temporal": 0.25}[stage]
    config.update_from_flattened_dict(ABLATIONS[name].config)
    return config
