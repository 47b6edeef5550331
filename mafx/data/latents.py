"""Latents on disk: every frame of a data set is encoded once, so that training need not run the autoencoder."""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm.auto import tqdm

import mafx
from mafx import media
from mafx.data.clips import Clip, file_name, fingerprint_clips
from mafx.data.examples import ExampleOptions
from mafx.errors import InputError, refusals
from mafx.files import check_finite, read_array
from mafx.interrupts import GOES_ON, advice_at_interrupt, partial_path
from mafx.stamps import STAMP_FILE, Facts, compare_facts, read_stamp, write_stamp

CHUNK = 8  # frames that are encoded at once
ADVICE = "give another config.data.latent_cache, or remove the folder"

Encode = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class LatentClip:
    """A clip whose frames are read as latents.

    Attributes:
      clip: Gives the renders.
      path: A file of NumPy with the latents of all frames, float16 `f h w c`.
    """

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

    @property
    def fingerprint(self) -> str:
        return self.clip.fingerprint

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Latents, float16 `f h w c`, and renders, uint8 `f H W 3`."""
        motion = self.clip.read_motion(indices)
        latents = read_array(self.path, np.float16)
        with refusals(f"expected latents of {self.frames} frames in {self.path}"):
            return check_finite(latents[indices], str(self.path)), motion

    def read_motion(self, indices: np.ndarray) -> np.ndarray:
        return self.clip.read_motion(indices)


def cache_latents(
    clips: Sequence[Clip], encode: Encode, options: ExampleOptions, folder: Path, facts: Facts
) -> list[LatentClip]:
    """Encode the clips whose latents are not in `folder` yet. Several processes share the work and the folder.

    Args:
      clips: The data set.
      encode: Pictures float32 `b H W 3` in [-1, 1] -> latents `b h w c`. It sees batches of `CHUNK` only.
      options: Its `size` is that of the pictures.
      folder: Is made where it does not exist.
      facts: What tells this encoder from others, for the folder's stamp.

    Returns:
      The clips in the same order, with their frames as latents.

    Raises:
      InputError: The folder has latents of other clips, of another encoder or of another shape.
    """
    facts = facts | {"data": fingerprint_clips(clips), "size": options.size, "version": mafx.__version__}
    _claim_folder(folder, facts)
    cached = [LatentClip(clip, folder / f"{file_name(clip)}.npy") for clip in clips]
    h, w, c = jax.eval_shape(encode, jnp.zeros((CHUNK, *options.size, 3))).shape[1:]
    for clip in cached:
        if clip.path.exists():
            _check_shape(clip.path, (clip.frames, h, w, c))
    missing = [clip for clip in cached[jax.process_index() :: jax.process_count()] if not clip.path.exists()]
    for clip in tqdm(missing, desc="latents", unit="clip", disable=not missing):
        partial = clip.path.with_suffix(".part.npy")  # renamed below, so that the file is complete or absent
        with advice_at_interrupt(GOES_ON), partial_path(partial):
            np.save(partial, _encode_clip(clip.clip, encode, options.size))
            partial.rename(clip.path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("latents")
    return cached


def _claim_folder(folder: Path, facts: Facts) -> None:
    """Make the folder with its stamp, or compare the stamp that is there."""
    stamp = folder / STAMP_FILE
    if jax.process_index() == 0 and not stamp.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if next(folder.glob("*.npy"), None):
            raise InputError(f"expected a stamp beside the latents in {folder}, found none; {ADVICE}")
        write_stamp(stamp, facts)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("folder of latents")
    compare_facts(read_stamp(stamp) or {}, facts, f"the folder of latents {folder}", ADVICE)


def _check_shape(path: Path, expected: tuple[int, ...]) -> None:
    shape = read_array(path, np.float16).shape
    if shape != expected:
        raise InputError(f"expected latents of shape {expected} in {path}, found {shape}: {ADVICE}")


def _encode_clip(clip: Clip, encode: Encode, size: media.Size) -> np.ndarray:
    """Latents of all frames, float16 `f h w c`, encoded in chunks of one shape, so that one program is compiled."""
    video, _ = clip.read(np.arange(clip.frames))
    frames = np.stack([media.fit(frame, size) for frame in video])
    padding = np.repeat(frames[-1:], -len(frames) % CHUNK, axis=0)
    chunks = np.concatenate([frames, padding]).reshape(-1, CHUNK, *frames.shape[1:])
    latents = [np.asarray(encode(jnp.asarray(chunk, jnp.float32) / 127.5 - 1), np.float16) for chunk in chunks]
    return np.concatenate(latents)[: len(frames)]
