"""From clips to batches: which frames, which reference, crop, flip; shuffled by seed, split over processes, resumable.

A batch is a dict of arrays: `reference` `b H W 3`, `motion` and `video` `b f H W 3`, all uint8, and `key` `b`, which says what each example shows.
Clips with cached latents give those as `reference` `b h w c` and `video` `b f h w c`, float16. Every random choice follows from the seed and an
example's number, before batches are split over processes: which batch comes when does not depend on how many processes or workers read.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from mafx import media
from mafx.data.clips import Clip
from mafx.densepose import BACKGROUND, FLIPPED, draw_labels, read_labels

CROPS = ("centre", "random")
REFERENCES = ("random", "first")


@dataclasses.dataclass(frozen=True)
class ExampleOptions:
    """How an example is taken from a clip.

    Attributes:
      frames: of the target, f.
      stride: between them; where a clip is too short for it, the largest that fits.
      reference: the "first" frame of the clip, or a "random" one.
      distance: a random reference is at least so many frames away from the target's first, where the clip allows it.
      size: rows and columns.
      flip: mirror half of the examples, with the labels of left and right swapped.
      crop: what to keep of frames of other proportions, "centre" or "random"; the same for all frames of an example.
    """

    frames: int = 16
    stride: int = 4
    reference: str = "random"
    distance: int = 0
    size: media.Size = (512, 512)
    flip: bool = False
    crop: str = "centre"


@dataclasses.dataclass(frozen=True)
class Joint:
    """Image-video joint training: with r uniform in [0, 1], a batch holds images of the image set where r < images, then single frames of clips,
    else clips. In the paper's terms `images` is tau_0 or tau_1, and `images + frames` tau_2."""

    images: float = 0.0
    frames: float = 0.0


def draw_example(clip: Clip, options: ExampleOptions, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One example of a clip. A clip of one frame is its own reference."""
    stride = max(1, min(options.stride, (clip.frames - 1) // max(1, options.frames - 1)))
    span = (options.frames - 1) * stride
    start = int(rng.integers(0, max(1, clip.frames - span)))
    target = np.minimum(start + stride * np.arange(options.frames), clip.frames - 1)
    far = np.flatnonzero(np.abs(np.arange(clip.frames) - start) >= options.distance)
    reference = int(rng.choice(far)) if len(far) else int(rng.integers(clip.frames))
    reference = 0 if options.reference == "first" else reference
    flip = options.flip and bool(rng.random() < 0.5)
    return read_example(
        clip, reference, target, options, flip, tuple(rng.random(2)) if options.crop == "random" else (0.5, 0.5)
    )


def read_example(
    clip: Clip,
    reference: int,
    target: np.ndarray,
    options: ExampleOptions,
    flip: bool = False,
    at: tuple[float, float] = (0.5, 0.5),
) -> dict[str, np.ndarray]:
    """The example with given frames; `at` is where the crop lies between top and bottom, left and right."""
    video, motion = clip.read(np.append(reference, target))
    motion = np.stack([media.fit(frame, options.size, background=BACKGROUND, at=at) for frame in motion])
    if video.dtype == np.uint8:  # else they are latents
        video = np.stack([media.fit(frame, options.size, at=at) for frame in video])
    if flip:
        video, motion = video[:, :, ::-1], draw_labels(FLIPPED[read_labels(motion[:, :, ::-1])[0]])
    key = f"{clip.name}, reference {reference}, frames {target[0]} to {target[-1]}{', flipped' * flip}"
    return {"reference": video[0], "motion": motion[1:], "video": video[1:], "key": np.array(key)}


@dataclasses.dataclass(frozen=True)
class Examples:
    """One process' part of the endless row of examples, in which every `batch` in turn make a batch.

    Every process has its own stretch of each batch, so that joined in the order of processes they are the batch of a single one.
    """

    clips: Sequence[Clip]
    images: Sequence[Clip]
    options: ExampleOptions
    joint: Joint
    batch: int
    seed: int
    start: int
    process: int
    processes: int

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        share = self.batch // self.processes
        number = self.start + i // share * self.batch + self.process * share + i % share
        kind, rng = (
            np.random.default_rng([self.seed, 0, number // self.batch]).random(),
            np.random.default_rng([self.seed, 1, number]),
        )
        single = dataclasses.replace(self.options, frames=1)
        if kind < self.joint.images:
            return draw_example(self.images[int(rng.integers(len(self.images)))], single, rng)
        epoch, place = divmod(number, len(self.clips))
        clip = self.clips[_shuffled(len(self.clips), self.seed, epoch)[place]]
        return draw_example(clip, single if kind < self.joint.images + self.joint.frames else self.options, rng)


@functools.lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 2, epoch]).permutation(count)


def batches(
    clips: Sequence[Clip],
    options: ExampleOptions,
    batch: int,
    seed: int,
    *,
    images: Sequence[Clip] = (),
    joint: Joint = Joint(),
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of `batch` examples in all, of which this process reads its share, from example number `start` on.

    `workers` processes read ahead, or threads where it is 0.
    """
    if batch % processes:
        raise ValueError(f"expected a batch that divides over {processes} processes, found {batch}")
    examples = Examples(clips, images, options, joint, batch, seed, start, process, processes)
    dataset = grain.MapDataset.source(examples).batch(batch // processes)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    return iter(dataset.mp_prefetch(grain.MultiprocessingOptions(workers)) if workers else dataset)
