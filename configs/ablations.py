"""Ablations: the paper's claims on puppets, each as one change of the same short recipe.

    python train.py --config ablations:full:appearance --workdir RUNS/full/appearance
    python train.py --config ablations:full:temporal --workdir RUNS/full/temporal \\
        --config.init_from RUNS/full/appearance

`python -m mafx.experiments.ablations --runs RUNS` trains and evaluates all of them, and makes the table.
"""

import dataclasses

import ml_collections

from configs import puppets
from mafx.errors import InputError
from mafx.training.config import STAGES

LONG = 64  # frames of the clips on which windows are compared
BORDERS = "difference_error_at_borders"


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A change, and the claim that it tests.

    Attributes:
      claim: What the change should show. The paper claims it, unless it says otherwise.
      measure: The measure of the evaluation by which the claim is judged.
      better: Whether by that measure the "full" model, the "changed" one, or "neither" should be better.
      config: Fields of the config that differ.
      trains: The stages that have to be trained. Without the temporal one, the model has no temporal attention.
      flags: Flags of sample.py, in addition to those of all.
      frames: Length of the clips; from 17 on they take several windows.
    """

    claim: str = ""
    measure: str = "psnr_person"
    better: str = "full"
    config: dict[str, object] = dataclasses.field(default_factory=dict)
    trains: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    frames: int = 16


ABLATIONS = {
    "full": Ablation(trains=STAGES),
    "no_temporal": Ablation(
        claim="temporal attention takes flicker away",
        measure="flicker_unseen",
        trains=("appearance",),
    ),
    "embedding": Ablation(
        claim="a global embedding loses what an appearance encoder keeps",
        config={"networks.appearance": "embedding"},
        trains=STAGES,
    ),
    "fusion_full": Ablation(
        claim="features in the middle and up blocks are enough (ours: the paper does not test it)",
        better="neither",
        config={"networks.fusion": "full"},
        trains=STAGES,
    ),
    "no_joint": Ablation(
        claim="single frames in training keep each frame good",
        config={"joint.frames": 0.0},
        trains=("temporal",),
    ),
    "sticks": Ablation(
        claim="dense renders say more than keypoints",
        config={"networks.renders": "sticks"},
        trains=STAGES,
    ),
    "full_long": Ablation(frames=LONG),
    "own_noise": Ablation(
        claim="windows that start from the same noise fit together",
        measure=BORDERS,
        flags=("--no-shared_noise",),
        frames=LONG,
    ),
    "no_overlap": Ablation(
        claim="windows that overlap fit together",
        measure=BORDERS,
        flags=("--overlap", "0"),
        frames=LONG,
    ),
    "guidance_2": Ablation(
        claim="guidance by the reference brings its likeness closer",
        better="changed",
        flags=("--guidance", "2"),
    ),
    "guidance_4": Ablation(
        claim="so does more of it",
        better="changed",
        flags=("--guidance", "4"),
    ),
}


def get_config(argument: str = "full:appearance") -> ml_collections.ConfigDict:
    """The config of NAME:STAGE. Raises InputError for an unknown name or stage."""
    name, _, stage = argument.partition(":")
    if name not in ABLATIONS:
        known = ", ".join(ABLATIONS)
        raise InputError(
            f"ablation {name!r} is unknown, expected one of {known}; give it and a stage, as in ablations:full:temporal"
        )
    config = puppets.get_config(stage)
    is_first = stage == "appearance"
    config.steps = 1200 if is_first else 200
    config.joint.frames = 0.0 if is_first else 0.25
    config.save_every = 400
    config.show_every = config.steps  # at the end only
    config.show_clips = 2
    config.update_from_flattened_dict(ABLATIONS[name].config)
    return config
