"""The settings of a training run: every field with its default and its unit. Files in configs/ start from here."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import placeholder

from mafx.commands import expand_home
from mafx.data.datasets import DATASETS, IMAGE_SETS
from mafx.data.examples import CROPS, REFERENCES
from mafx.diffusion.schedule import KINDS, PREDICTIONS
from mafx.errors import InputError
from mafx.models.animator import APPEARANCES, FRAMES, FUSIONS, RENDERS, SIZES
from mafx.models.unet import REMAT
from mafx.puppets import HIDDEN
from mafx.training.optimiser import OPTIMISERS

STAGES = ("appearance", "temporal")
DECAYS = ("constant", "cosine")
KEPT = ("float32", "bfloat16")  # dtypes in which the optimiser keeps its arrays
PLACES = ("device", "host")

# What each stage trains, see `mafx.training.step.split`.
TRAINS = {
    "appearance": (("^(appearance|control)/", True), (".*", False)),
    "temporal": (("/pe$", False), ("motion_modules", True), (".*", False)),
}

ATTENTION = r"^(unet|appearance)/.*/attentions_\d+/.*/to_(q|k|v|out)"  # spatial attention, self and cross
LOW_RANK = (("^low_rank/", True), (".*", False))  # what is trained where there are updates

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def find_config(text: str) -> str:
    """The path of a config file, with its argument, for a path or a name: "tiktok:temporal".

    Raises:
      InputError: Where there is no such config.
    """
    name, separator, argument = text.partition(":")
    path = expand_home(name)
    if not path.is_file():
        path = CONFIGS / f"{path.stem}.py"
        sys.path.append(str(CONFIGS.parent))  # configs import one another
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in CONFIGS.glob("[!_]*.py")))
        raise InputError(f"expected a config file or one of the names {names}, found {name!r}")
    return f"{path}{separator}{argument}"


def parse_config(text: str, arguments: list[str]) -> ml_collections.ConfigDict:
    """The config of a command that has `mafx.commands.add_config_flag`.

    Args:
      text: A config's name or file, with its argument behind a colon.
      arguments: Flags that change its fields: `["--config.lr", "3e-4"]`.

    Raises:
      InputError: Where there is no such config, or a flag that belongs to nothing.
    """
    values, argv = flags.FlagValues(), ["", f"--config={find_config(text)}", *arguments]
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        stray = values(argv)[1:]
    except (flags.Error, AttributeError, TypeError) as error:
        cause = _first_cause(error)
        if isinstance(cause, InputError):  # raised by the config file
            raise cause from error
        raise InputError(f"{str(error).splitlines()[0]}; mafx/training/config.py lists every field") from error
    if stray:
        raise InputError(f"{stray[0]!r} belongs to no flag; --help lists them")
    return values.config


def _first_cause(error: BaseException) -> BaseException:
    """The exception that all others in a chain came from."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def default_config(stage: str) -> ml_collections.ConfigDict:
    """Our recipe for Stable Diffusion 1.5's size.

    The paper publishes its objective and its stages, but none of the numbers below. Raises InputError for an unknown
    stage.
    """
    if stage not in STAGES:
        expected = f"one of {', '.join(STAGES)}"
        raise InputError(f"expected the stage behind the config, as in tiktok:appearance, {expected}; found {stage!r}")
    c = ml_collections.ConfigDict()
    _set_model(c, stage)
    _set_data(c, stage)
    _set_objective(c)
    _set_optimisation(c, stage)
    _set_reports(c)
    return c


def _set_model(c: ml_collections.ConfigDict, stage: str) -> None:
    c.stage = stage
    c.model = "sd15"  # a key of mafx.models.animator.SIZES
    c.networks = ml_collections.ConfigDict()  # what ablations change, see mafx.models.animator.AnimatorConfig
    c.networks.fusion = FUSIONS[0]
    c.networks.appearance = APPEARANCES[0]
    c.networks.renders = RENDERS[0]
    c.networks.frames = FRAMES[0]
    c.init_from = ""  # work folder of the stage before, or folder of published weights
    c.train_only = TRAINS[stage]
    c.low_rank = ml_collections.ConfigDict()  # see mafx.low_rank; its arrays are named low_rank/KERNEL/a and b
    c.low_rank.rank = 0  # of the updates; 0 means that there are none
    c.low_rank.kernels = ATTENTION  # pattern of the names of kernels that have one
    c.dtype = (
        "bfloat16"  # of computation and frozen parameters: or float32, or float16; masters and averages are float32
    )
    c.remat = "products" if stage == "temporal" else "none"  # a key of mafx.models.unet.REMAT
    c.mesh = ml_collections.ConfigDict()
    c.mesh.data = -1  # devices along which examples are spread; -1 means all that are left
    c.mesh.fsdp = 1  # devices along which parameters are spread as well
    c.cpu_devices = 1  # devices that CPU cores are divided into, where there is nothing else
    c.seed = 0


def _set_data(c: ml_collections.ConfigDict, stage: str) -> None:
    c.data = ml_collections.ConfigDict()
    c.data.name = ""  # one of mafx.data.datasets.DATASETS
    c.data.path = ""  # folder of prepared data
    c.data.train_clips = placeholder(int)  # number of puppets to train on
    c.data.test_clips = 16  # number of held-out puppets
    c.data.hidden = HIDDEN  # share of the puppets' garments that look otherwise behind
    c.data.train_frames = placeholder(int)  # frames of a single clip to train on; the rest is held out
    c.data.size = (512, 512)  # rows and columns, pixels
    c.data.crop = "centre"  # what is kept of frames of other proportions: centre or random
    c.data.flip = False  # mirror half of the examples
    c.data.frames = 16 if stage == "temporal" else 1  # of an example
    c.data.stride = 4  # frames from one to the next
    c.data.reference = "random"  # the reference is a random frame of the clip, or its first
    c.data.distance = 0  # smallest distance of a random reference from the example's first frame, frames
    c.data.workers = 0  # processes that read ahead; 0 means threads
    c.data.latent_cache = ""  # folder in which every frame is encoded once

    c.images = ml_collections.ConfigDict()  # an image set for joint training; each image is its own reference
    c.images.name = ""  # one of mafx.data.datasets.IMAGE_SETS
    c.images.path = ""
    c.images.count = 20_000  # number of puppets
    c.joint = ml_collections.ConfigDict()  # shares of the steps
    c.joint.images = 0.0  # that see the image set; the paper's tau_0 (appearance) or tau_1 (temporal)
    c.joint.frames = 0.4 if stage == "temporal" else 0.0  # that see single frames; the paper's tau_2 - tau_1


def _set_objective(c: ml_collections.ConfigDict) -> None:
    c.schedule = ml_collections.ConfigDict()  # see mafx.diffusion.schedule.Schedule
    c.schedule.kind = "linear"
    c.schedule.prediction = "epsilon"
    c.schedule.zero_terminal_snr = False
    c.loss = ml_collections.ConfigDict()
    c.loss.reference_dropout = 0.1  # share of the examples without reference, which guidance needs
    c.loss.motion_dropout = 0.0  # share of the examples without motion
    c.loss.noise_offset = 0.0  # see mafx.diffusion.losses.corrupt
    c.loss.time_shift = 1.0  # see mafx.diffusion.losses.corrupt
    c.loss.min_snr_gamma = placeholder(float)  # see mafx.diffusion.losses.loss_weights
    c.loss.as_v = False  # see there, too
    c.loss.halvings = 0  # of consistency tuning, see mafx.diffusion.losses.earlier_times; 0 trains diffusion
    c.loss.guidance = 1.0  # scale of guidance that the network is to answer with by itself; 1 is none
    c.loss.person = 1.0  # weight of the person's latents; the background's is 1


def _set_optimisation(c: ml_collections.ConfigDict, stage: str) -> None:
    c.batch = 8  # examples that are computed at once, over all devices
    c.accumulate = 1  # batches of a step, whose gradients are averaged
    c.accumulate_dtype = KEPT[0]  # of that average
    # A step is one update of the parameters; whatever is counted in steps is counted in updates.
    c.steps = 30_000 if stage == "appearance" else 10_000
    c.optimiser = OPTIMISERS[0]  # or muon, which takes fewer steps from nothing and longer to compile
    c.lr = 1e-5
    c.warmup = 500  # steps until the learning rate is reached
    c.decay = "constant"  # of the learning rate afterwards: constant or cosine
    c.betas = (0.9, 0.999)  # of AdamW, and of what Muon leaves to it
    c.weight_decay = 1e-2
    c.moments_dtype = KEPT[0]  # of its moments; bfloat16 is rounded stochastically
    c.clip = 1.0  # largest norm of the gradient
    c.ema = 0.9999  # decay of the averaged parameters, per step
    c.ema_on = PLACES[0]  # where they are kept: on the device, or in main memory (host)
    c.ema_every = 1  # steps from one update of averages in main memory to the next


def _set_reports(c: ml_collections.ConfigDict) -> None:
    c.log_every = 50  # steps
    c.save_every = 1000  # steps
    c.keep = 2  # newest checkpoints that are kept
    c.keep_best = 1  # checkpoints that are kept for their held-out score
    c.show_every = 2000  # steps
    c.show_clips = 4  # held-out clips that are animated
    c.show_frames = 16  # frames of them
    c.show_guidance = 2.0  # guidance scale of them


class Rule(NamedTuple):
    """What a field must be: a test, and its words."""

    fits: Callable[[Any], bool]
    expected: str


def check_config(c: ml_collections.ConfigDict) -> None:
    """Raise an InputError that names the first field that is unknown, or that has a value that cannot be meant."""
    values, known = flat_config(c), flat_config(default_config(c.get("stage", "")))
    for name in sorted(values.keys() ^ known.keys()):
        problem = "unknown" if name in values else "missing"
        raise InputError(f"config.{name} is {problem}; mafx/training/config.py lists every field")
    for name, rule in _rules(c).items():
        if not rule.fits(values[name]):
            raise InputError(f"config.{name}: expected {rule.expected}, found {values[name]!r}")


# Fields that are shares of 1, numbers of at least 1, and numbers of at least 0.
SHARES = ("data.hidden", "joint.images", "loss.reference_dropout", "loss.motion_dropout", "ema")
COUNTS = (
    *("batch", "accumulate", "steps", "cpu_devices", "log_every", "save_every", "show_every", "show_frames", "keep"),
    "data.stride",
)
AMOUNTS = (
    *("warmup", "lr", "weight_decay", "clip", "keep_best", "show_clips", "data.distance", "data.workers", "seed"),
    *("loss.person", "loss.halvings", "low_rank.rank", "images.count"),
)


def _rules(c: ml_collections.ConfigDict) -> dict[str, Rule]:
    factor = SIZES[c.model].autoencoder.factor if c.model in SIZES else 1
    temporal = SIZES[c.model].unet.temporal if c.model in SIZES else None
    frames = temporal.max_frames if temporal else 1
    rules = {
        "model": _one_of(*SIZES),
        "dtype": _one_of("float32", "bfloat16", "float16"),
        "remat": _one_of(*REMAT),
        "optimiser": _one_of(*OPTIMISERS),
        "decay": _one_of(*DECAYS),
        "accumulate_dtype": _one_of(*KEPT),
        "moments_dtype": _one_of(*KEPT),
        "ema_on": _one_of(*PLACES),
        "ema_every": _at_least(1) if c.ema_on == "host" else Rule(_is_one, "1, or config.ema_on host"),
        "schedule.kind": _one_of(*KINDS),
        "schedule.prediction": _one_of(*PREDICTIONS),
        "data.name": _one_of(*DATASETS),
        "data.crop": _one_of(*CROPS),
        "data.reference": _one_of(*REFERENCES),
        "images.name": _one_of(*IMAGE_SETS) if c.joint.images else _one_of("", *IMAGE_SETS),
        "data.size": Rule(
            lambda x: len(x) == 2 and all(n > 0 and n % factor == 0 for n in x),
            f"rows and columns, multiples of {factor}",
        ),
        "schedule.zero_terminal_snr": Rule(
            lambda x: not x or c.schedule.prediction != "epsilon",
            "False with config.schedule.prediction epsilon: pure noise has no noise to find; take v or sample",
        ),
        "data.frames": Rule(
            lambda x: isinstance(x, int) and 1 <= x <= frames, f"a number of frames from 1 to {frames}, its positions"
        ),
        "joint.frames": Rule(lambda x: 0 <= x <= 1 - c.joint.images, "at most what config.joint.images leaves of 1"),
        "data.latent_cache": Rule(
            lambda x: not x or not (c.data.flip or c.data.crop == "random"), "none with flips or random crops"
        ),
        "loss.min_snr_gamma": Rule(lambda x: x is None or not c.loss.as_v, "None with config.loss.as_v"),
        "loss.guidance": Rule(
            lambda x: x == 1 or (x > 1 and c.loss.reference_dropout), "1, or more with config.loss.reference_dropout"
        ),
        "loss.time_shift": Rule(lambda x: isinstance(x, int | float) and x > 0, "a number above 0"),
    }
    networks = {"fusion": FUSIONS, "appearance": APPEARANCES, "renders": RENDERS, "frames": FRAMES}
    rules |= {f"networks.{name}": _one_of(*choices) for name, choices in networks.items()}
    share = Rule(lambda x: isinstance(x, int | float) and 0 <= x <= 1, "a number from 0 to 1")
    for names, rule in ((SHARES, share), (COUNTS, _at_least(1)), (AMOUNTS, _at_least(0))):
        rules |= dict.fromkeys(names, rule)
    return rules


def _is_one(x: object) -> bool:
    return x == 1


def _one_of(*values: object) -> Rule:
    return Rule(lambda x: x in values, f"one of {', '.join(map(repr, values))}")


def _at_least(low: float) -> Rule:
    return Rule(lambda x: isinstance(x, int | float) and x >= low, f"a number of at least {low}")


def flat_config(c: ml_collections.ConfigDict) -> dict[str, Any]:
    """Values by names with dots. The mesh is one field, since its axes are free."""
    flat: dict[str, Any] = {}
    for name, value in c.items():
        if isinstance(value, ml_collections.ConfigDict) and name != "mesh":
            flat |= {f"{name}.{key}": x for key, x in flat_config(value).items()}
        else:
            flat[name] = value
    return flat
