"""The settings of a training run: every field with its default, and what values are sensible. Files in configs/ start from here."""

from collections.abc import Callable
from numbers import Real

import ml_collections
from ml_collections.config_dict import placeholder

from mafx.data.datasets import DATASETS, PREPARED
from mafx.data.examples import CROPS, REFERENCES
from mafx.diffusion.schedule import KINDS, PREDICTIONS
from mafx.errors import InputError
from mafx.models.animator import APPEARANCES, FUSIONS, RENDERS, SIZES
from mafx.models.unet import REMAT

STAGES = ("appearance", "temporal")
DECAYS = ("constant", "cosine")

TRAINS = {  # pattern and whether it is trained, the first that is found in a parameter's name decides
    "appearance": (("^(appearance|control)/", True), (".*", False)),
    "temporal": (("/pe$", False), ("motion_modules", True), (".*", False)),
}


def default_config(stage: str) -> ml_collections.ConfigDict:
    """Our recipe for Stable Diffusion 1.5's size. The paper publishes its objective and stages, but none of the numbers below."""
    if stage not in STAGES:
        raise InputError(
            f"stage {stage!r} is unknown, expected one of {', '.join(STAGES)}; give it behind the config file, as in FILE:appearance"
        )
    c = ml_collections.ConfigDict()

    # What
    c.stage = stage
    c.model = "sd15"  # a key of mafx.models.animator.SIZES
    c.networks = {
        "fusion": FUSIONS[0],
        "appearance": APPEARANCES[0],
        "renders": RENDERS[0],
    }  # what ablations change, see AnimatorConfig
    c.init_from = ""  # the work folder of the stage before, or a folder with Stable Diffusion 1.5
    c.train_only = TRAINS[stage]
    c.dtype = (
        "bfloat16"  # of computation and of frozen parameters; trained ones, their averages and moments are float32
    )
    c.remat = (
        "products" if stage == "temporal" else "none"
    )  # what the backward pass keeps, a key of mafx.models.unet.REMAT
    c.mesh = {"data": -1, "fsdp": 1}  # devices; -1: all that are left
    c.cpu_devices = 1  # where there are only CPU cores, so many devices are made of them
    c.seed = 0

    # Data
    c.data = {"name": "", "path": "", "test_clips": 16}
    c.data.update(
        {"train_clips": placeholder(int), "train_frames": placeholder(int)}
    )  # of drawn puppets; of a single clip
    c.data.update({"size": (512, 512), "crop": "centre", "flip": False})
    c.data.update(
        {"frames": 16 if stage == "temporal" else 1, "stride": 4, "reference": "random", "distance": 0, "workers": 0}
    )
    c.data.latent_cache = ""  # folder; encode every frame once, not whenever it is seen
    c.images = {"name": "", "path": ""}  # an image set for joint training, each image its own reference
    # Shares of the steps that see the image set, and single frames of clips. In the paper's terms tau_0 or tau_1, and tau_2 - tau_1.
    c.joint = {"images": 0.0, "frames": 0.4 if stage == "temporal" else 0.0}

    # Objective
    c.schedule = {"kind": "linear", "prediction": "epsilon", "zero_terminal_snr": False}
    c.loss = {"reference_dropout": 0.1, "motion_dropout": 0.0, "noise_offset": 0.0, "time_shift": 1.0}
    c.loss.update(
        {"min_snr_gamma": placeholder(float), "person": 1.0}
    )  # what weighs more: times with signal; the person

    # Optimisation: AdamW
    c.batch = 8  # examples of a step, over all devices
    c.accumulate = 1  # steps for one update
    c.steps = 30_000 if stage == "appearance" else 10_000
    c.lr, c.warmup, c.decay = 1e-5, 500, "constant"
    c.betas, c.weight_decay, c.clip = (0.9, 0.999), 1e-2, 1.0
    c.ema = 0.9999

    # Watching
    c.log_every, c.save_every, c.keep, c.keep_best = 50, 1000, 2, 1
    c.show_every, c.show_clips, c.show_frames, c.show_guidance = 2000, 4, 16, 2.0
    return c


def check_config(c: ml_collections.ConfigDict) -> None:
    """Raises InputError that names the first field that is not known, or has a value that cannot be meant."""
    found, known = _fields(c), _fields(default_config(c.get("stage", "")))
    for name in sorted(found.keys() ^ known.keys()):
        raise InputError(
            f"config.{name} is {'unknown' if name in found else 'missing'}; mafx/training/config.py lists every field"
        )
    reduction = SIZES[c.model].autoencoder.factor if c.model in SIZES else 1
    one_of = lambda *values: (lambda x: x in values, f"one of {', '.join(map(repr, values))}")  # noqa: E731
    at_least = lambda low: (lambda x: isinstance(x, Real) and x >= low, f"a number of at least {low}")  # noqa: E731
    share = lambda x: isinstance(x, Real) and 0 <= x <= 1, "a number from 0 to 1"
    rules: dict[str, tuple[Callable, str]] = {
        "model": one_of(*SIZES),
        "dtype": one_of("float32", "bfloat16"),
        "remat": one_of(*REMAT),
        "networks.fusion": one_of(*FUSIONS),
        "networks.appearance": one_of(*APPEARANCES),
        "networks.renders": one_of(*RENDERS),
        "decay": one_of(*DECAYS),
        "schedule.kind": one_of(*KINDS),
        "schedule.prediction": one_of(*PREDICTIONS),
        "data.name": one_of(*DATASETS),
        "data.crop": one_of(*CROPS),
        "data.reference": one_of(*REFERENCES),
        "images.name": one_of(*PREPARED) if c.joint.images else one_of("", *PREPARED),
        "data.size": (
            lambda x: len(x) == 2 and all(n > 0 and n % reduction == 0 for n in x),
            f"rows and columns, multiples of {reduction}",
        ),
        "joint.frames": (lambda x: 0 <= x <= 1 - c.joint.images, "at most what config.joint.images leaves of 1"),
        "data.latent_cache": (
            lambda x: not x or not (c.data.flip or c.data.crop == "random"),
            "none with flips or random crops",
        ),
    }
    rules |= dict.fromkeys(("joint.images", "loss.reference_dropout", "loss.motion_dropout", "ema"), share)
    counts = (
        "batch",
        "accumulate",
        "steps",
        "cpu_devices",
        "log_every",
        "save_every",
        "show_every",
        "show_frames",
        "keep",
    )
    rules |= dict.fromkeys((*counts, "data.frames", "data.stride"), at_least(1))
    amounts = ("warmup", "lr", "weight_decay", "clip", "keep_best", "show_clips", "data.distance", "data.workers")
    rules |= dict.fromkeys((*amounts, "loss.person"), at_least(0))
    rules["loss.time_shift"] = (lambda x: isinstance(x, Real) and x > 0, "a number above 0")
    for name, (fits, wanted) in rules.items():
        if not fits(found[name]):
            raise InputError(f"config.{name}: expected {wanted}, found {found[name]!r}")


def _fields(c: ml_collections.ConfigDict) -> dict[str, object]:
    """Names with dots -> values. The mesh is one field: its axes are free."""
    flat = {}
    for name, value in c.items():
        inner = _fields(value) if isinstance(value, ml_collections.ConfigDict) and name != "mesh" else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": x for key, x in inner.items()}
    return flat
