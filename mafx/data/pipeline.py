"""From clips to batches: which frames, which reference, crop, flip; shuffled by seed, split over processes, resumable.

A batch is a dict of uint8 arrays: `reference` `b H W 3`, `motion` and `video` `b f H W 3`. Every random choice is drawn before batches are split over
processes, so the global batch depends only on the seed and the step, not on how many processes or workers read it.
"""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from mafx import media
from mafx.data.clips import Clip
from mafx.densepose import BACKGROUND, FLIPPED, draw_labels, read_labels


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How an example is taken from a clip.

    Attributes:
      frames: of the target, f.
      stride: between them; where a clip is too short for it, the largest that fits.
      distance: the reference is at least so many frames away from the target's first, where the clip allows it.
      size: rows and columns, reached by a centre crop.
      flip: mirror half of the examples, with the labels of left and right swapped.
    """

    frames: int = 16
    stride: int = 4
    distance: int = 0
    size: media.Size = (512, 512)
    flip: bool = False


def draw_example(clip: Clip, sampling: Sampling, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One example of a clip."""
    stride = max(1, min(sampling.stride, (clip.frames - 1) // max(1, sampling.frames - 1)))
    span = (sampling.frames - 1) * stride
    start = int(rng.integers(0, max(1, clip.frames - span)))
    target = np.minimum(start + stride * np.arange(sampling.frames), clip.frames - 1)
    far = np.flatnonzero(np.abs(np.arange(clip.frames) - start) >= sampling.distance)
    reference = int(rng.choice(far)) if len(far) else int(rng.integers(clip.frames))
    return read_example(clip, reference, target, sampling, flip=sampling.flip and bool(rng.random() < 0.5))


def read_example(clip: Clip, reference: int, target: np.ndarray, sampling: Sampling, flip: bool = False) -> dict[str, np.ndarray]:
    """The example with given frames."""
    video, motion = clip.read(np.append(reference, target))
    video = np.stack([media.fit(frame, sampling.size) for frame in video])
    motion = np.stack([media.fit(frame, sampling.size, background=BACKGROUND) for frame in motion])
    if flip:
        video, motion = video[:, :, ::-1], draw_labels(FLIPPED[read_labels(motion[:, :, ::-1])[0]])
    return {"reference": video[0], "motion": motion[1:], "video": video[1:]}


def batches(
    clips: Sequence[Clip], sampling: Sampling, batch: int, seed: int, *, process: int = 0, processes: int = 1, workers: int = 0
) -> grain.DatasetIterator:
    """Endless batches of `batch` examples in all, of which this process reads its share.

    The iterator's `get_state` and `set_state` save and restore the position.
    """
    if batch % processes:
        raise ValueError(f"expected a batch that divides over {processes} processes, found {batch}")
    dataset = grain.MapDataset.source(clips).seed(seed).shuffle().repeat(None)
    dataset = dataset.random_map(lambda clip, rng: draw_example(clip, sampling, rng))
    dataset = dataset[process::processes].batch(batch // processes)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    return iter(
        dataset.to_iter_dataset(options) if not workers else dataset.to_iter_dataset(options).mp_prefetch(grain.MultiprocessingOptions(workers))
    )
