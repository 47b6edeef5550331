"""Ablations: claims about the networks, their training and their sampling, tried on puppets by one short recipe.

    python train.py --config ablations:full:appearance --workdir RUNS/full/appearance
    python train.py --config ablations:full:temporal --workdir RUNS/full/temporal \\
        --config.init_from RUNS/full/appearance

`python -m mafx.experiments.ablations --runs RUNS` trains all models with several seeds, and judges all claims.

Half of the garments look otherwise behind, so that what the reference does not show is a choice: a model has to make
it, and to stay with it.
"""

import dataclasses

import ml_collections

from configs import puppets
from mafx.errors import InputError
from mafx.training.config import STAGES

LONG, LONGER = 64, 160  # frames of the clips on which windows are compared
FEW = 64  # clips, of which a model knows the people by heart
MORE_STEPS = 800  # of the second stage, where 200 may be too few

Changes = dict[str, object]  # fields of the config


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model to train.

    Attributes:
      config: Fields of the config that differ, in both stages.
      stages: Those that are trained; the other one is that of `of`.
      of: The model whose appearance stage is shared, where it is not trained.
    """

    config: Changes = dataclasses.field(default_factory=dict)
    stages: tuple[str, ...] = STAGES
    of: str = "full"


SECOND = ("temporal",)
IMAGE_SET: Changes = {"images.name": "puppets", "joint.images": 0.5}
VARIANTS = {
    "full": Variant(),
    "embedding": Variant({"networks.appearance": "embedding"}),
    "fusion_full": Variant({"networks.fusion": "full"}),
    "sticks": Variant({"networks.renders": "sticks"}),
    "no_dropout": Variant({"loss.reference_dropout": 0.0}),
    "few": Variant({"data.train_clips": FEW}),
    "few_images": Variant({"data.train_clips": FEW} | IMAGE_SET),
    "images": Variant(IMAGE_SET),
    "no_frames": Variant({"joint.frames": 0.0}, SECOND),
    "set": Variant({"networks.frames": "set"}, SECOND),
    "frames_8": Variant({"data.frames": 8}, SECOND),
    "frames_24": Variant({"data.frames": 24}, SECOND),
    "longer": Variant({"steps": MORE_STEPS}, SECOND),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A model that is evaluated.

    Attributes:
      variant: One of `VARIANTS`.
      stage: How far it is trained. After the appearance stage it has no temporal attention.
      frames: Length of the clips.
      flags: Of sample.py, in addition to those of all.
    """

    variant: str = "full"
    stage: str = "temporal"
    frames: int = 16
    flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a change should show.

    Attributes:
      words: The claim.
      source: "paper", or "ours".
      reason: Why it should hold, and what it takes to show.
      design: What differs between `full` and `changed`, in words.
      changed: The run with the change.
      full: The run without.
      measure: The measure of the evaluation by which the claim is judged.
      better: Which of the two should be better by it: "full", "changed", or "neither".
    """

    words: str
    source: str
    reason: str
    design: str
    changed: Run
    full: Run = Run()
    measure: str = "psnr_person"
    better: str = "full"


SHORT_WINDOW, LONG_WINDOW = ("--window", "8", "--overlap", "2"), ("--window", "24", "--overlap", "6")
NO_OVERLAP, OWN_NOISE = ("--overlap", "0"), ("--no-shared_noise",)
BORDERS = "flicker_unseen_at_borders"
STAYS = "surfaces that the reference does not show are a choice, which only frames that see one another can share"
WINDOWS = "windows choose hidden surfaces by themselves, as far as noise and neighbours do not tell them"

CLAIMS = {
    "temporal": Claim(
        "temporal attention takes flicker away", "paper", STAYS, "without the second stage",
        Run(stage="appearance"), measure="flicker_unseen",
    ),
    "temporal_longer": Claim(
        "likewise after a longer second stage", "paper", STAYS, f"without the second stage, of {MORE_STEPS} steps",
        Run(stage="appearance"), Run("longer"), "flicker_unseen",
    ),
    "temporal_drift": Claim(
        "temporal attention keeps colours over a clip", "paper", STAYS, "without the second stage",
        Run(stage="appearance"), measure="drift_unseen",
    ),
    "temporal_drift_longer": Claim(
        f"likewise over {LONG} frames and after a longer second stage", "paper", STAYS,
        f"without the second stage, of {MORE_STEPS} steps",
        Run(stage="appearance", frames=LONG), Run("longer", frames=LONG), "drift_unseen",
    ),
    "order": Claim(
        "temporal attention needs the frames' numbers", "paper",
        "motion is given frame by frame, so that order may add nothing: the claim can fail here",
        "a set of frames, without the sinusoid", Run("set"), measure="flicker_unseen",
    ),
    "window_8": Claim(
        "windows of 16 frames keep longer than those of 8", "ours", WINDOWS, "K = 8 in training and sampling",
        Run("frames_8", frames=LONG, flags=SHORT_WINDOW), Run(frames=LONG), "drift_unseen",
    ),
    "window_24": Claim(
        "windows of 24 frames keep longer than those of 16", "ours", WINDOWS, "K = 24 in training and sampling",
        Run("frames_24", frames=LONG, flags=LONG_WINDOW), Run(frames=LONG), "drift_unseen", "changed",
    ),
    "single_frames": Claim(
        "single frames in the second stage keep each frame good", "paper",
        "clips are few examples at a time, and their frames are alike", "clips alone in the second stage",
        Run("no_frames"),
    ),
    "images": Claim(
        "an image set helps where clips are few", "paper",
        f"{FEW} people are known by heart; 20,000 pictures show what others look like",
        f"{FEW} clips; with and without an image set in half of the steps",
        Run("few_images"), Run("few"), "psnr_person", "changed",
    ),
    "images_many_clips": Claim(
        "where clips are many it does not", "ours", "20,000 clips have as many people as the pictures have",
        "an image set in half of the steps", Run("images"), better="neither",
    ),
    "few_clips": Claim(
        "few clips are not enough", "ours", "without it there is nothing that an image set could mend",
        f"{FEW} clips instead of 20,000", Run("few"),
    ),
    "embedding": Claim(
        "an appearance encoder keeps what a global embedding loses", "paper",
        "a vector has no room for patterns and places", "a global embedding in cross-attention", Run("embedding"),
    ),
    "renders_side": Claim(
        "dense renders say more than keypoints when people turn", "paper",
        "sticks look alike from the front and from behind", "stick figures; frames that show a side",
        Run("sticks"), measure="psnr_person_side",
    ),
    "renders_back": Claim(
        "likewise, seen from behind", "paper", "likewise", "stick figures; frames that show the back",
        Run("sticks"), measure="psnr_person_back",
    ),
    "renders_front": Claim(
        "likewise, seen from the front", "ours", "sticks are enough there", "stick figures; frames that show the front",
        Run("sticks"), measure="psnr_person_front", better="neither",
    ),
    "fusion": Claim(
        "the bank in the middle and up blocks is enough", "ours",
        "down blocks see the reference before they know where it belongs", "the bank in all blocks",
        Run("fusion_full"), better="neither",
    ),
    "fusion_front": Claim(
        "likewise where the reference shows what is drawn", "ours", "there most can be taken over",
        "the bank in all blocks; frames that show the front", Run("fusion_full"), measure="psnr_person_front",
        better="neither",
    ),
    "shared_noise": Claim(
        "windows that begin with the same noise choose alike", "paper", WINDOWS, "own noise for every frame",
        Run(frames=LONG, flags=OWN_NOISE), Run(frames=LONG), "drift_unseen",
    ),
    "shared_noise_longer": Claim(
        "likewise after a longer second stage", "paper", WINDOWS,
        f"own noise for every frame; {MORE_STEPS} steps of the second stage",
        Run("longer", frames=LONG, flags=OWN_NOISE), Run("longer", frames=LONG), "drift_unseen",
    ),
    "shared_noise_long": Claim(
        "likewise over many windows", "paper", WINDOWS, f"own noise for every frame; {LONGER} frames",
        Run(frames=LONGER, flags=OWN_NOISE), Run(frames=LONGER), "drift_unseen",
    ),
    "overlap": Claim(
        "windows that overlap fit together", "paper", WINDOWS, "windows without overlap",
        Run(frames=LONG, flags=NO_OVERLAP), Run(frames=LONG), BORDERS,
    ),
    "overlap_own_noise": Claim(
        "likewise where noise does not tell them", "ours", WINDOWS, "own noise; with and without overlap",
        Run(frames=LONG, flags=(*OWN_NOISE, *NO_OVERLAP)), Run(frames=LONG, flags=OWN_NOISE), BORDERS,
    ),
    "guidance": Claim(
        "guidance by the reference brings its likeness closer", "ours",
        "a short training leans on the reference too little", "scale 1.5",
        Run(flags=("--guidance", "1.5")), better="changed",
    ),
    "guidance_3": Claim(
        "much of it goes too far", "ours", "answers leave what pictures look like", "scale 3 instead of 1.5",
        Run(flags=("--guidance", "3")), Run(flags=("--guidance", "1.5")),
    ),
    "dropout": Claim(
        "guidance needs training without the reference", "paper",
        "the unconditional answer is never learnt", "scale 1.5; no reference dropout in training",
        Run("no_dropout", flags=("--guidance", "1.5")), Run(flags=("--guidance", "1.5")),
    ),
    "dropout_unguided": Claim(
        "dropout costs nothing where nothing is guided", "ours", "a tenth of the examples is a small price",
        "no reference dropout in training", Run("no_dropout"), better="neither",
    ),
}  # fmt: skip


def get_config(argument: str = "full:appearance") -> ml_collections.ConfigDict:
    """The config of VARIANT:STAGE. Raises InputError for an unknown variant or stage."""
    name, _, stage = argument.partition(":")
    if name not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise InputError(
            f"ablation {name!r} is unknown, expected one of {known}; give it and a stage, as in ablations:full:temporal"
        )
    config = puppets.get_config(stage)
    if stage not in VARIANTS[name].stages:
        raise InputError(f"ablation {name!r} has the {stage} stage of {VARIANTS[name].of!r}; train that one")
    is_first = stage == "appearance"
    config.cpu_devices = 1  # `--jobs` trains several runs beside one another
    config.data.size = (32, 32)
    config.data.hidden = 0.5
    config.batch = 16 if is_first else 2
    config.steps = 500 if is_first else 200
    config.data.frames = 1 if is_first else 16
    config.joint.frames = 0.0 if is_first else 0.25
    config.show_clips = 2
    config.update_from_flattened_dict(VARIANTS[name].config)
    config.save_every = config.show_every = config.steps  # at the end only
    return config
