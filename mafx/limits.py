"""How much of a file is read at most. A file that asks for more is refused before it is read.

Every limit can be raised, by a flag of a command or by a variable of the environment, which workers inherit.
"""

import argparse
import dataclasses
import os
from collections.abc import Sequence

from mafx.errors import InputError


@dataclasses.dataclass(frozen=True)
class Limit:
    """The largest amount of something that is read.

    Attributes:
      name: Of the flag that raises it.
      default: Where nothing else is said.
      unit: What is counted.
    """

    name: str
    default: int
    unit: str

    @property
    def variable(self) -> str:
        """The variable of the environment that raises it."""
        return f"MAFX_{self.name.upper()}"

    @property
    def value(self) -> int:
        """What holds now."""
        text = os.environ.get(self.variable, str(self.default))
        if not (text.isascii() and text.isdigit()):
            raise InputError(f"expected a whole number in the variable {self.variable}, found {text!r}")
        return int(text)

    def check(self, name: object, found: int) -> None:
        """Raise an InputError about the file `name` where it has more than the limit."""
        if found > self.value:
            raise InputError(
                f"{name} has {found} {self.unit}, and at most {self.value} are read; if you trust it, raise the limit "
                f"by --{self.name} {found}, or by the variable {self.variable}={found}"
            )


JSON_BYTES = Limit("max_json_bytes", 16 * 2**20, "bytes of JSON or text")
PIXELS = Limit("max_pixels", 45_000_000, "pixels in a picture")
FRAMES = Limit("max_frames", 100_000, "frames")
VIDEO_BYTES = Limit("max_video_bytes", 2**30, "bytes of frames")
LIMITS = (PIXELS, FRAMES, VIDEO_BYTES, JSON_BYTES)


def add_limit_flags(parser: argparse.ArgumentParser, more: Sequence[Limit] = ()) -> None:
    """One flag for each limit, and for `more`."""
    group = parser.add_argument_group("how much of a file is read")
    for limit in (*LIMITS, *more):
        group.add_argument(
            f"--{limit.name}", type=int, metavar="N", help=f"Largest number of {limit.unit} (default {limit.default})."
        )


def set_limits(args: argparse.Namespace, more: Sequence[Limit] = ()) -> None:
    """Make the flags of `add_limit_flags` hold, for this process and for those that it starts."""
    for limit in (*LIMITS, *more):
        value = getattr(args, limit.name)
        if value is not None:
            os.environ[limit.variable] = str(value)
