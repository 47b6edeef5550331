"""Latents on disk: every frame of a data set encoded once, so that training need not run the autoencoder."""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm.auto import tqdm

from mafx import media
from mafx.data.clips import Clip
from mafx.data.examples import ExampleOptions
from mafx.errors import InputError

CHUNK = 8  # frames that are encoded at once


@dataclasses.dataclass(frozen=True)
class LatentClip:
    """A clip whose frames are read as latents, float16 `f h w c`. Renders are the clip's own."""

    clip: Clip
    path: Path

    @property
    def name(self) -> str:
        return self.clip.name

    @property
    def frames(self) -> int:
        return self.clip.frames

    @property
    def fps(self) -> Fraction:
        return self.clip.fps

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.load(self.path, mmap_mode="r")[indices], self.clip.read(indices)[1]


def cache_latents(
    clips: Sequence[Clip], encode: Callable[[jax.Array], jax.Array], options: ExampleOptions, folder: Path
) -> list[LatentClip]:
    """Encode the clips that `folder` does not hold yet, each process its share. `encode`: images `b H W 3` in [-1, 1] -> latents `b h w c`."""
    folder.mkdir(parents=True, exist_ok=True)
    cached = [LatentClip(clip, folder / f"{clip.name.replace('/', '_')}.npy") for clip in clips]
    h, w, c = jax.eval_shape(encode, jnp.zeros((CHUNK, *options.size, 3))).shape[1:]
    for x in cached:
        if x.path.exists() and (found := np.load(x.path, mmap_mode="r").shape) != (x.frames, h, w, c):
            raise InputError(
                f"expected latents of shape {(x.frames, h, w, c)} in {x.path}, found {found}: give another config.data.latent_cache"
            )
    missing = [x for x in cached[jax.process_index() :: jax.process_count()] if not x.path.exists()]
    for x in tqdm(missing, desc="latents", unit="clip", disable=not missing):
        video = x.clip.read(np.arange(x.frames))[0]
        frames = np.stack([media.fit(frame, options.size) for frame in video])
        chunks = [frames[i : i + CHUNK] for i in range(0, len(frames), CHUNK)]
        padded = (
            np.concatenate([chunk, np.repeat(chunk[-1:], CHUNK - len(chunk), axis=0)]) for chunk in chunks
        )  # one shape to compile
        latents = np.concatenate(
            [np.asarray(encode(jnp.asarray(chunk, jnp.float32) / 127.5 - 1), np.float16) for chunk in padded]
        )
        part = x.path.with_suffix(".part.npy")  # whole or not there
        np.save(part, latents[: x.frames])
        part.rename(x.path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("latents")
    return cached
