"""Parameters in two forms: nested dicts, as Flax has them, and flat dicts, "unet/encoder/conv_in/kernel" -> array."""

from typing import Any

import flax

Flat = dict[str, Any]  # arrays, or what stands for them, by their names


def flatten(params: dict) -> Flat:
    """Nested dict of parameters to a flat one."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Flat) -> dict:
    """Flat dict of parameters to a nested one."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")
