"""Animate: a model, a picture and a motion in, a video out."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from mafx.errors import InputError
from mafx.media import resize
from mafx.model import Model
from mafx.program import Animation, Callback, Watcher, plan
from mafx.settings import Settings


def animate(
    model: Model,
    reference: np.ndarray,
    motion: np.ndarray,
    *,
    noise: np.ndarray | None = None,
    mesh: Mesh | None = None,
    memory: float | None = None,
    progress: bool = True,
    callback: Callback | None = None,
    watcher: Watcher | None = None,
    **settings,
) -> Animation:
    """Animate a reference by a motion.

    Args:
      model: From `load_pretrained`, `load_run` or `load_bundled`. The networks compute in the dtype of its parameters,
        the diffusion in float32.
      reference: uint8 `H W 3`, both sides divisible by the autoencoder's factor (8). Its size is that of the video.
      motion: uint8 `f H W 3`, DensePose renders, at least one. Frames of another size are resized to the reference's.
      noise: float32 `window h w c` to start from, instead of the seed's.
      mesh: The windows of a long video are spread over its devices, each of which holds all parameters. By default
        there is one device.
      memory: GiB of the device's memory, as cards are sold. Where the networks do not fit in together, they take turns
        on the device, for the same video. By default an accelerator says itself how much it has.
      progress: Whether bars are shown.
      callback: Called after every step with its number and the latents, float32 `f h w c`.
      watcher: Called after every step and every decoded frame, see `program.Progress`. What it raises ends the
        animation.
      settings: Fields of `Settings`.

    Returns: The video, the latents, and where windows meet.

    Raises:
      InputError: For arguments that do not fit, or a device that is too small. Nothing has been computed then.
    """
    unknown = settings.keys() - {field.name for field in dataclasses.fields(Settings)}
    if unknown:
        raise InputError(f"unknown settings: {', '.join(sorted(unknown))}; mafx.Settings.describe() lists all")
    reference, motion = _check_pictures("reference", reference, 3), _check_pictures("motion", motion, 4)
    size = reference.shape[:2]
    program = plan(model, Settings(**settings), size, len(motion), mesh, memory=memory)
    motion = np.stack([resize(frame, size) for frame in motion])
    return program.run(reference, motion, noise=noise, progress=progress, callback=callback, watcher=watcher)


def _check_pictures(name: str, x: np.ndarray, axes: int) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype != np.uint8 or x.ndim != axes or x.shape[-1] != 3:
        shape = "[H, W, 3]" if axes == 3 else "[frames, H, W, 3]"
        raise InputError(f"expected the {name} as uint8 {shape}, found {x.dtype} {list(x.shape)}")
    if 0 in x.shape:
        raise InputError(f"the {name} is empty: {list(x.shape)}")
    return x
