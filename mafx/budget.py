"""How much of a device's memory an animation may use, and whether all networks fit in together.

Where they do not, networks take turns: each is on the device while it is used, and leaves when another needs the room.
The appearance encoder then writes the banks of all steps before the first step, and they wait on the host.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from mafx.commands import CARD_SHARE
from mafx.errors import InputError

GIB = 2**30
# Of the memory that JAX manages; the rest is lost between blocks, and to work areas that the compiler does not state.
POOL_SHARE = 0.95
ADVICE = "take a smaller size, fewer windows at once, a smaller window, or networks in 16 bits"


class TooSmallError(InputError):
    """A device is too small for a part of an animation."""


class Need(NamedTuple):
    """What a part of an animation needs on a device.

    Attributes:
      name: Of the part.
      phase: Of the part, a key of `sampling.PHASES`.
      networks: Whose parameters it takes.
      working: Bytes of everything else: what goes in, what comes out, what is computed on the way, and what waits for
        later phases.
    """

    name: str
    phase: str
    networks: tuple[str, ...]
    working: int


class Fit(NamedTuple):
    """How an animation fits a device.

    Attributes:
      together: Whether all networks can be there at once.
      room: Bytes that networks may take in each phase; a phase that is absent has no limit.
      peak: Bytes that are needed at most at any time.
      usable: Bytes that may be used.
    """

    together: bool = True
    room: Mapping[str, float] = {}
    peak: float = 0
    usable: float = math.inf

    @property
    def limited(self) -> bool:
        """Whether the memory that may be used is known."""
        return self.usable < math.inf

    def __str__(self) -> str:
        how = "All networks fit on the device" if self.together else "Networks take turns on the device"
        return f"{how}: {self.peak / GIB:.1f} of {self.usable / GIB:.1f} GiB are needed."


def usable_bytes(device: jax.Device, memory: float | None, held: int) -> float | None:
    """Bytes of a device that an animation may use, its weights included; None where nothing limits them.

    Args:
      device: The device. CPUs state no limit.
      memory: GiB of the card, where the user gives them.
      held: Bytes of the animation's weights that are on the device already.
    """
    limits = [] if memory is None else [memory * GIB * CARD_SHARE * POOL_SHARE]
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        others = statistics.get("bytes_in_use", 0) - held
        limits.append(statistics["bytes_limit"] * POOL_SHARE - others)
    return min(limits, default=None)


def fit_networks(needs: Sequence[Need], weights: Mapping[str, int], resident: int, usable: float) -> Fit:
    """How an animation fits a device.

    Args:
      needs: Of all its parts.
      weights: Bytes of each network that can leave the device.
      resident: Bytes of those that cannot.
      usable: Bytes that may be used, for everything.

    Raises:
      TooSmallError: Where a part alone does not fit.
    """
    alone = {need.name: resident + sum(weights.get(name, 0) for name in need.networks) for need in needs}
    largest = max(needs, key=lambda need: alone[need.name] + need.working)
    peak = alone[largest.name] + largest.working
    if peak > usable:
        raise TooSmallError(
            f"{largest.name}: expected {peak / GIB:.1f} GiB of the device's memory ({alone[largest.name] / GIB:.1f} "
            f"for weights), found {max(usable, 0) / GIB:.1f} that may be used"
        )
    everything = resident + sum(weights.values()) + max(need.working for need in needs)
    if everything <= usable:
        return Fit(True, {}, everything, usable)
    room: dict[str, float] = {}
    for need in needs:
        room[need.phase] = min(room.get(need.phase, math.inf), usable - resident - need.working)
    return Fit(False, room, peak, usable)
