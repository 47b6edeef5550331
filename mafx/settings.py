"""How to animate: every setting, said once. `sample.py` makes its flags from here."""

import argparse
import dataclasses
import math
import numbers
from typing import Any

from mafx.diffusion.samplers import SAMPLERS
from mafx.diffusion.windows import FUSION_WEIGHTS, PLANS
from mafx.errors import InputError
from mafx.models.animator import FUSIONS

# What values of a setting must be, by the type of its default; NumPy's numbers count.
KINDS: dict[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    tuple: (tuple, "a tuple of two times"),
}


def _setting(
    default: object,
    help: str,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
):
    """A field of Settings: its default, its meaning, the name of its flag if that differs, its sensible values."""
    metadata = {"help": help, "flag": flag, "choices": choices, "at_least": at_least, "at_most": at_most}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to animate. The defaults reproduce MagicAnimate (its demo/animate.py and configs/prompts/animation.yaml).

    `describe()` lists all settings with their meanings.

    Raises:
      InputError: For a value that cannot be meant.
    """

    steps: int = _setting(25, "Number of sampler steps. Each evaluates the networks once per window.", at_least=1)
    guidance_scale: float = _setting(
        7.5,
        "Scale of guidance by the reference against none; at 1 and below, only the conditional half is computed.",
        flag="guidance",
        at_least=0,
    )
    seed: int = _setting(0, "Seed of the starting noise.", at_least=0, at_most=2**32 - 1)
    sampler: str = _setting("ddim", "Sampler of the diffusion.", choices=tuple(SAMPLERS))
    prompt: str = _setting("", "Text of the conditional half.")
    negative_prompt: str = _setting("", "Text of the unconditional half. Equal texts share the UNet's encoder.")
    control_scale: float = _setting(1.0, "Factor on the residuals of the pose ControlNet.")
    guidance_interval: tuple[int, int] = _setting(
        (0, 1000),
        "Diffusion times, from and to below, of the steps that are guided; the others cost half "
        "(Applying Guidance in a Limited Interval, arXiv 2404.07724).",
    )
    reuse: int = _setting(
        1,
        "Number of steps in a row that share what lies below the first level of the networks: faster and less exact "
        "(DeepCache, arXiv 2312.00858).",
        at_least=1,
    )
    window: int = _setting(16, "Frames that go through the networks together.", at_least=1)
    overlap: int = _setting(4, "Frames that neighbouring windows share.", at_least=0)
    windows_at_once: int = _setting(
        1, "Windows of a long video that go through the networks together, on each device.", at_least=1
    )
    plan: str = _setting(
        "closed", "Whether windows wrap around the end of the video (closed, as published) or not.", choices=PLANS
    )
    weights: str = _setting(
        "uniform", "Weights of overlapping windows: equal (as published), or fading in and out.", choices=FUSION_WEIGHTS
    )
    shared_noise: bool = _setting(
        True, "Whether every window starts from the same noise (as published), or every frame from its own."
    )
    eta: float = _setting(0.0, "Fresh noise of the ddim sampler, from none to as much as DDPM.", at_least=0, at_most=1)
    fusion: str | None = _setting(
        None,
        "Blocks that the bank is mixed into: middle and up, or all. None means as the model was trained.",
        choices=FUSIONS,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    @classmethod
    def describe(cls) -> str:
        """All settings, their defaults and their meanings, one a line."""
        lines = (f"{field.name} = {field.default!r}: {field.metadata['help']}" for field in dataclasses.fields(cls))
        return "\n".join(lines)


def _check(field: dataclasses.Field, value: Any) -> None:
    """Raise InputError for a value of a setting that cannot be meant."""
    if expected := _missed(field, value):
        raise InputError(f"expected {field.name} to be {expected}, found {value!r}")


def _missed(field: dataclasses.Field, value: Any) -> str:
    """What a value of a setting should be, empty where it is."""
    low, high, choices = (field.metadata[name] for name in ("at_least", "at_most", "choices"))
    if choices:
        return "" if value in choices or value == field.default else f"one of {', '.join(choices)}"
    kind, name = KINDS[type(field.default)]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return name
    if isinstance(value, tuple):
        whole = len(value) == 2 and all(isinstance(time, numbers.Integral) for time in value)
        return "" if whole and 0 <= value[0] <= value[1] else "two whole times in their order, from and to below"
    if kind is numbers.Real and not math.isfinite(value):
        return "finite"
    if low is not None and not low <= value <= (math.inf if high is None else high):
        return f"at least {low}" + ("" if high is None else f" and at most {high}")
    return ""


def add_setting_flags(parser: argparse.ArgumentParser, special_defaults: dict[str, str]) -> None:
    """One flag per setting. A flag that is not given is absent from the parsed arguments.

    Args:
      parser: Where the flags go.
      special_defaults: Settings whose default depends on the model: what the help says of it.
    """
    group = parser.add_argument_group("how to animate")
    for field in dataclasses.fields(Settings):
        default = f"{field.default}{special_defaults.get(field.name, '')}"
        options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
        options["help"] = f"{field.metadata['help'].rstrip('.')} (default {default or 'empty'})."
        if isinstance(field.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(field.default, tuple):
            options |= {"type": _parse_interval, "metavar": "FROM,TO"}
        else:
            options["type"] = str if field.default is None else type(field.default)
            options["choices"] = field.metadata["choices"] or None
        group.add_argument(f"--{field.metadata['flag'] or field.name}", **options)


def setting_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags."""
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings) if field.name in args}


def setting_arguments(settings: Settings, defaults: Settings) -> list[str]:
    """The flags by which settings differ from others."""
    arguments = []
    for field in dataclasses.fields(Settings):
        value, flag = getattr(settings, field.name), field.metadata["flag"] or field.name
        if value == getattr(defaults, field.name):
            continue
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            arguments += [f"--{flag}", text]
    return arguments


def _parse_interval(text: str) -> tuple[int, int]:
    words = text.split(",")
    if len(words) != 2 or not all(word.strip().isdigit() for word in words):
        raise argparse.ArgumentTypeError(f"expected two times, for example 0,700, found {text!r}")
    low, high = words
    return int(low), int(high)
