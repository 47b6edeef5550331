"""What a person chooses on the page, and the same as the query string of a link."""

import dataclasses
import urllib.parse
from collections.abc import Mapping
from typing import Any

from mafx.commands import parse_size
from mafx.errors import InputError, refusals
from mafx.media import Size
from mafx.settings import Settings

MOST_FRAMES, MOST_STEPS, LONGEST_SIDE = 256, 100, 1024  # that one job may take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """What a person chooses, beside the files. Names are those of the query string.

    Attributes:
      model: The name of a model of the service; empty means its first one.
      size: Rows and columns, as "512" or "768x512"; empty means as the model was trained.
      frames: Largest number of frames.
      steps: As in `Settings`; None means what suits the model, as for the next two.
      guidance: Its `guidance_scale`.
      sampler: Its `sampler`.
      seed: Its `seed`.

    Raises:
      InputError: For a value that cannot be meant, or is more than a job may take.
    """

    model: str = ""
    size: str = ""
    frames: int = 16
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= MOST_FRAMES:
            raise InputError(f"expected 1 to {MOST_FRAMES} frames, found {self.frames}")
        if self.steps is not None and self.steps > MOST_STEPS:
            raise InputError(f"expected at most {MOST_STEPS} steps, found {self.steps}")
        if max(self.size_or((1, 1))) > LONGEST_SIDE:
            raise InputError(f"expected sides of at most {LONGEST_SIDE} pixels, found {self.size}")
        self.settings({})

    def size_or(self, default: Size) -> Size:
        """Rows and columns."""
        with refusals(f"expected a size such as 512 or 768x512, found {self.size[:20]!r}"):
            return parse_size(self.size) if self.size else default

    def settings(self, suited: Mapping[str, Any]) -> Settings:
        """The settings, those `suited` to the model where nothing is chosen."""
        chosen: dict[str, Any] = {
            "steps": self.steps,
            "guidance_scale": self.guidance,
            "sampler": self.sampler,
            "seed": self.seed,
        }
        return Settings(**dict(suited) | {name: x for name, x in chosen.items() if x is not None})


KINDS: dict[str, type] = {
    "model": str,
    "size": str,
    "frames": int,
    "steps": int,
    "guidance": float,
    "sampler": str,
    "seed": int,
}


def make_choices(values: Mapping[str, Any]) -> Choices:
    """Choices from what a form, a client or a link says: text and numbers, which may be missing, empty or None.

    Raises:
      InputError: A value is of another kind, or cannot be meant.
    """
    chosen = {}
    for name, kind in KINDS.items():
        value = values.get(name)
        if value is None or value == "":
            continue
        with refusals(f"expected {name} to be {'a number' if kind is not str else 'text'}, found {str(value)[:40]!r}"):
            if kind is int and isinstance(value, float) and not value.is_integer():
                raise ValueError("it is not whole")
            chosen[name] = kind(value)
    return Choices(**chosen)


def to_query(choices: Choices) -> str:
    """The query string of choices: those that differ from the defaults."""
    fields = {field.name: field.default for field in dataclasses.fields(Choices)}
    different = {name: x for name, default in fields.items() if (x := getattr(choices, name)) != default}
    return urllib.parse.urlencode(different)


def from_query(query: str) -> Choices:
    """The choices of a query string. Names that are not those of choices are left out.

    Raises:
      InputError: As `make_choices`.
    """
    with refusals("the link is not readable"):
        pairs = urllib.parse.parse_qsl(query, max_num_fields=50)
    return make_choices(dict(pairs))
