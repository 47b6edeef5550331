"""From clips to batches: choose frames and reference, crop, flip, shuffle by seed, and split over processes.

A batch is a dict of arrays: `reference` `b H W 3`, `motion` and `video` `b f H W 3`, all uint8, and `key` `b`, the
description of each example. Clips with cached latents give `reference` `b h w c` and `video` `b f h w c` in float16.

Every random choice follows from the seed and the number of an example, before batches are split over processes. The
order of the batches therefore depends neither on the number of processes nor on that of reading workers.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Generator, Sequence
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
from absl import flags

from mafx import media
from mafx.data.clips import Clip
from mafx.densepose import BACKGROUND, FLIPPED, draw_labels, read_labels
from mafx.errors import InputError
from mafx.interrupts import ignore_interrupts, unheard_interrupts

CROPS = ("centre", "random")
REFERENCES = ("random", "first")
CENTRE = (0.5, 0.5)
ENDLESS = 2**40  # examples; grain needs a length
READ_THREADS = 2
READ_AHEAD = 4  # batches
DEAD_WORKER = "Worker process was terminated"  # how grain's message begins

# Second component of the seeds, so that draws for different purposes are independent.
KIND_SEED = 0
EXAMPLE_SEED = 1
SHUFFLE_SEED = 2


@dataclasses.dataclass(frozen=True)
class ExampleOptions:
    """How an example is taken from a clip.

    Attributes:
      frames: Number of target frames, f.
      stride: Distance between them. Clips that are too short for it take the largest distance that fits.
      reference: "first" takes the first frame of the clip, "random" any.
      distance: Least distance of a random reference from the first target frame, where the clip allows it.
      size: Rows and columns in pixels.
      flip: Mirror half of the examples, with the labels of left and right swapped.
      crop: "centre" or "random": which part is kept of frames of other proportions; the same for all frames of an
        example.
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
    """Image-video joint training (MagicAnimate, arXiv 2311.16498): some batches hold single pictures.

    With r uniform in [0, 1], a batch holds pictures of the image set where r < `images`, else single frames of clips
    where r < `images + frames`, else clips. In the paper's terms `images` is tau_0 or tau_1, and `images + frames`
    is tau_2.
    """

    images: float = 0.0
    frames: float = 0.0


# -- One example


def draw_example(clip: Clip, options: ExampleOptions, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Choose an example of a clip at random, and read it. A clip of one frame is its own reference.

    Args:
      clip: Where the frames come from.
      options: How they are chosen.
      rng: Advanced by the draws.

    Returns:
      An example, as `read_example` gives it.
    """
    longest_stride = (clip.frames - 1) // max(1, options.frames - 1)
    stride = max(1, min(options.stride, longest_stride))
    span = (options.frames - 1) * stride
    start = int(rng.integers(0, max(1, clip.frames - span)))
    target = np.minimum(start + stride * np.arange(options.frames), clip.frames - 1)
    distant = np.flatnonzero(np.abs(np.arange(clip.frames) - start) >= options.distance)
    # Drawn also where the first frame is taken, so that this option changes no later draw.
    reference = int(rng.choice(distant)) if len(distant) else int(rng.integers(clip.frames))
    if options.reference == "first":
        reference = 0
    flip = options.flip and bool(rng.random() < 0.5)
    at = (rng.random(), rng.random()) if options.crop == "random" else CENTRE
    return read_example(clip, reference, target, options, flip, at)


def read_example(
    clip: Clip,
    reference: int,
    target: np.ndarray,
    options: ExampleOptions,
    flip: bool = False,
    at: tuple[float, float] = CENTRE,
) -> dict[str, np.ndarray]:
    """Read the example with given frames.

    Args:
      clip: Where the frames come from.
      reference: Index of the reference.
      target: Indices of the target frames, `f`.
      options: Its `size` is used.
      flip: Whether to mirror the example.
      at: Where the crop lies between top and bottom, and between left and right, 0 to 1.

    Returns:
      `reference` `H W 3`, `motion` and `video` `f H W 3`, and `key`, a string.
    """
    video, motion = clip.read(np.append(reference, target))
    motion = np.stack([media.fit(render, options.size, background=BACKGROUND, at=at) for render in motion])
    if video.dtype == np.uint8:  # cached latents have their size already
        video = np.stack([media.fit(frame, options.size, at=at) for frame in video])
    if flip:
        video = video[:, :, ::-1]
        labels, _ = read_labels(motion[:, :, ::-1])
        motion = draw_labels(FLIPPED[labels])
    key = f"{clip.name}, reference {reference}, frames {target[0]} to {target[-1]}{', flipped' if flip else ''}"
    return {"reference": video[0], "motion": motion[1:], "video": video[1:], "key": np.array(key)}


# -- Batches


@dataclasses.dataclass(frozen=True)
class Examples:
    """The part of an endless row of examples that one process reads; consecutive `batch` of the row make a batch.

    Every process has its own stretch of each batch. Joined in the order of the processes, the stretches are the batch
    of a single process. `batches` documents the attributes.
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
    alike: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """Example `i` of this process."""
        share = self.batch // self.processes
        batch_of_run, place_in_share = divmod(i, share)
        number = self.start + batch_of_run * self.batch + self.process * share + place_in_share
        # All examples of a batch, and of batches that are stacked, are of one kind, so that they have one shape.
        kind = np.random.default_rng([self.seed, KIND_SEED, number // (self.batch * self.alike)]).random()
        rng = np.random.default_rng([self.seed, EXAMPLE_SEED, number])
        single = dataclasses.replace(self.options, frames=1)
        if kind < self.joint.images:
            image = self.images[int(rng.integers(len(self.images)))]
            return draw_example(image, single, rng)
        epoch, place = divmod(number, len(self.clips))
        clip = self.clips[_shuffled(len(self.clips), self.seed, epoch)[place]]
        options = single if kind < self.joint.images + self.joint.frames else self.options
        return draw_example(clip, options, rng)


@functools.lru_cache(maxsize=2)  # a batch spans at most two epochs, where clips are many
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, SHUFFLE_SEED, epoch]).permutation(count)


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
    alike: int = 1,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Read batches without end. Each epoch takes every clip once, in an order of its own.

    Args:
      clips: The data set.
      options: How examples are taken from clips.
      batch: Number of examples of a batch, over all processes.
      seed: Of every random choice.
      images: Clips of one frame each, for joint training.
      joint: How often a batch holds single pictures.
      start: Number of the first example, a multiple of `batch` and `alike`: a later start continues an earlier row.
      process: Index of this process.
      processes: Number of processes that share each batch.
      workers: Number of processes that read ahead; 0 reads in threads of this process.
      alike: Number of batches in a row that are of one kind in joint training.

    Yields:
      This process' share of each batch: a dict of arrays, as the module says.

    Raises:
      InputError: The batch cannot be divided over the processes, or the start is inside of a batch.
      ChildProcessError: A process that reads ahead was killed.
    """
    import grain  # noqa: PLC0415 (slow to import)

    if batch % processes:
        raise InputError(f"config.batch: expected a batch that divides over {processes} processes, found {batch}")
    if start % (batch * alike):
        raise InputError(f"expected to go on between steps of {batch * alike} examples, found {start} that were drawn")
    examples = Examples(clips, images, options, joint, batch, seed, start, process, processes, alike)
    dataset = grain.MapDataset.source(examples).batch(batch // processes)
    reading = grain.ReadOptions(num_threads=READ_THREADS, prefetch_buffer_size=READ_AHEAD)
    dataset = dataset.to_iter_dataset(reading)
    if workers:
        _prepare_for_workers()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers), ignore_interrupts)
    return _told_where_a_worker_is_gone(iter(dataset))


def _prepare_for_workers() -> None:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain hands absl's flags on to its processes; mafx's commands have none
    # Python's own process for this frees the shared memory of processes that were killed. It need not warn of that.
    before = os.environ.get("PYTHONWARNINGS", "")
    os.environ["PYTHONWARNINGS"] = f"{before},ignore:resource_tracker".lstrip(",")
    resource_tracker.ensure_running()
    os.environ["PYTHONWARNINGS"] = before


def _told_where_a_worker_is_gone(batches: Any) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of an iterator of grain, which is closed behind them."""
    try:
        with contextlib.closing(batches):
            with unheard_interrupts():  # while workers start, and are not ready to ignore them
                first = next(batches)
            yield first
            yield from batches
    except RuntimeError as error:
        if DEAD_WORKER not in str(error):
            raise
        reason = "a process that reads data was killed, perhaps for lack of main memory"
        raise ChildProcessError(f"{reason}; fewer --config.data.workers take less") from error
