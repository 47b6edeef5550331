"""Finding people in frames with DensePose R-CNN: what happens to pictures before the network, and to charts after it.

Sizes, resampling, rounding and truncation are those of detectron2, to the bit where they are integers.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from mafx.compiling import jit
from mafx.densepose.people import Person, whole_box
from mafx.densepose.proposals import Size
from mafx.densepose.rcnn import Detections, prepare
from mafx.densepose.rcnn_weights import RCNN, load_rcnn
from mafx.errors import InputError, memory_advice
from mafx.placing import default_device

MIN_SIDE, MAX_SIDE = 800, 1333  # of resized pictures, in pixels
FRAMES_AT_ONCE = 4  # on each device that is no CPU
SLOTS = (8, 4, 2, 1)  # numbers of people of a frame whose charts are computed together
ROWS_AT_ONCE = 16  # of labels: more would leave the caches
FRAMES = PartitionSpec("frames")
ADVICE = "take fewer frames at once, a smaller size, or 16 bits"


# -- Before the network


def resized_size(size: Size, min_side: int = MIN_SIDE, max_side: int = MAX_SIDE) -> Size:
    """Rows and columns of a picture after the resize.

    Args:
      size: Of the picture.
      min_side: What its shorter side becomes,
      max_side: unless the longer one became longer than this.
    """
    scale = min_side / min(size)
    rows, columns = (scale * side for side in size)
    if max(rows, columns) > max_side:
        scale = max_side / max(rows, columns)
        rows, columns = rows * scale, columns * scale
    return max(1, int(rows + 0.5)), max(1, int(columns + 0.5))


def resize_picture(picture: np.ndarray, size: Size) -> np.ndarray:
    """Resize uint8 `H W 3` to `size` by Pillow's bilinear filter, which averages where it shrinks."""
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BILINEAR))


# -- After the network


def frame_boxes(boxes: np.ndarray, resized: Size, size: Size) -> np.ndarray:
    """Boxes of the resized picture in the frame.

    Args:
      boxes: float32 `n 4`.
      resized: Rows and columns of the resized picture.
      size: Rows and columns of the frame.

    Returns:
      float32 `n 4`, inside of the frame. Some may be empty.
    """
    # In float32 a box at the edge does not always come back to the edge: its width can be a pixel less.
    scales = np.array([size[1] / resized[1], size[0] / resized[0]] * 2, np.float32)
    return np.clip(boxes * scales, 0, np.array([size[1], size[0]] * 2, np.float32))


def chart_labels(coarse: np.ndarray, fine: np.ndarray, size: Size) -> np.ndarray:
    """Draw the labels of a person.

    Both segmentations are resized bilinearly, without averaging where they shrink. The part with the largest logit
    counts where a person is more likely than background.

    Args:
      coarse: float32 `h w 2`, background first.
      fine: float32 `h w 25`.
      size: Rows and columns of the box.

    Returns:
      uint8 `size`.
    """
    labels = np.zeros(size, np.uint8)
    if not labels.size:
        return labels
    above, below, share = _neighbours(len(fine), size[0])
    coarse, fine = (_blend(x, *_neighbours(x.shape[1], size[1]), axis=1) for x in (coarse, fine))
    for start in range(0, size[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        person, part = (_blend(x, above[rows], below[rows], share[rows], axis=0).argmax(-1) for x in (coarse, fine))
        labels[rows] = np.where(person > 0, part, 0)
    return labels


def _neighbours(count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of `size` new positions, the two of `count` old ones around it, and the share of the second."""
    scale = np.float32(count) / np.float32(size)
    places = np.maximum(scale * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5), 0)
    before = np.minimum(places.astype(np.int64), count - 1)
    return before, np.minimum(before + 1, count - 1), places - before.astype(np.float32)


def _blend(x: np.ndarray, before: np.ndarray, after: np.ndarray, share: np.ndarray, axis: int) -> np.ndarray:
    """New positions along an axis, by what `_neighbours` returns."""
    share = share.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return x.take(before, axis) * (1 - share) + x.take(after, axis) * share


# -- Frames in, people out


class _Batch(NamedTuple):
    """Frames of one size, and what `detect` makes of them."""

    frames: int
    size: Size
    resized: Size
    detections: Detections
    maps: Any


class RCNNFinder:
    """Finds people in frames.

    It compiles once for all frames of one size, and once for each of a few numbers of people.

    Attributes:
      warm_up: Frames that it wants to see before the first one: none, because it follows nobody.
    """

    warm_up = 0

    def __init__(
        self,
        weights: str | Path | RCNN,
        *,
        dtype: jnp.dtype | str = jnp.float32,
        min_size: int = MIN_SIDE,
        max_size: int = MAX_SIDE,
        frames_at_once: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Load the weights, and bring them to the devices.

        Args:
          weights: A published file, see `load_rcnn`, or what that returns.
          dtype: In which the network computes, where a file is loaded.
          min_size: Shorter side of the resized frames in pixels,
          max_size: unless the longer one became longer than this.
          frames_at_once: On all devices together, a multiple of their number. None takes one on a CPU, and
            `FRAMES_AT_ONCE` on each other device.
          devices: Share the frames. None takes JAX's default device.

        Raises:
          InputError: See `load_rcnn`; or a number does not fit.
        """
        rcnn = weights if isinstance(weights, RCNN) else load_rcnn(weights, dtype)
        devices = list(devices or [default_device()])
        on_cpu = devices[0].platform == "cpu"
        self._frames = frames_at_once or len(devices) * (1 if on_cpu else FRAMES_AT_ONCE)
        if self._frames % len(devices) or not 0 < min_size <= max_size:
            raise InputError(
                f"expected a multiple of {len(devices)} frames at once, and sides of pictures of at least 1 pixel, "
                f"the longer one last, found {self._frames} frames, {min_size} and {max_size}"
            )
        self._min_size, self._max_size = min_size, max_size
        self._mesh = Mesh(np.array(devices), ("frames",))
        self._network = rcnn.network
        self._dtype = jax.tree.leaves(rcnn.params)[0].dtype
        self._params = jax.device_put(rcnn.params, NamedSharding(self._mesh, PartitionSpec()))

    def find(self, frames: Iterable[np.ndarray]) -> Iterator[list[Person]]:
        """Find the people of each frame.

        The next batch is begun before the people of the last one are drawn, so that devices need not wait. There are
        two batches in memory at most, however many frames there are.

        Args:
          frames: RGB, uint8 `H W 3` each. Where the size changes, a new batch begins.

        Yields:
          For each frame its people, the surest first.

        Raises:
          InputError: A frame is something else, or the device is too small.
        """
        last = None
        for batch in self._batches(frames):
            begun = self._begin(batch)
            if last is not None:
                yield from self._finish(last)
            last = begun
        if last is not None:
            yield from self._finish(last)

    def _batches(self, frames: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
        for _, same in itertools.groupby(map(_check_frame, frames), key=np.shape):
            while batch := list(itertools.islice(same, self._frames)):
                yield batch

    def _begin(self, frames: list[np.ndarray]) -> _Batch:
        size = frames[0].shape[:2]
        resized = resized_size(size, self._min_size, self._max_size)
        pictures = [resize_picture(frame, resized) for frame in frames]
        pictures += pictures[-1:] * (self._frames - len(frames))
        with memory_advice(ADVICE):
            detections, maps = self._detect(self._params, self._place(np.stack(pictures)))
        return _Batch(len(frames), size, resized, detections, maps)

    def _finish(self, batch: _Batch) -> Iterator[list[Person]]:
        with memory_advice(ADVICE):
            boxes, scores = map(np.asarray, batch.detections)
        in_frame = frame_boxes(boxes, batch.resized, batch.size)
        people: list[list[Person]] = [[] for _ in range(batch.frames)]
        for slots, coarse, fine in self._charts(batch, boxes, int((scores > 0).sum(1).max())):
            for i, found in enumerate(people):
                for j, slot in enumerate(slots):
                    x0, y0, x1, y1 = in_frame[i, slot]
                    if scores[i, slot] > 0 and x1 > x0 and y1 > y0:
                        box = whole_box(in_frame[i, slot])
                        labels = chart_labels(coarse[i, j], fine[i, j], (box[3], box[2]))
                        found.append(Person(box, labels, float(scores[i, slot])))
        yield from people

    def _charts(self, batch: _Batch, boxes: np.ndarray, most: int) -> Iterator[tuple[range, np.ndarray, np.ndarray]]:
        """Numbers of people, and their coarse and fine segmentations in all frames, `b slots h w c`."""
        start = 0
        while start < most:
            count = next(n for n in SLOTS if n <= most - start)
            with memory_advice(ADVICE):
                part = self._place(boxes[:, start : start + count])
                coarse, fine = map(np.asarray, self._describe(self._params, batch.maps, part))
            yield range(start, start + count), coarse, fine
            start += count

    def _place(self, x: np.ndarray) -> jax.Array:
        return jax.device_put(x, NamedSharding(self._mesh, FRAMES))

    @functools.cached_property
    def _detect(self) -> Any:
        def detect(params: dict, pictures: jax.Array) -> Any:
            x = prepare(pictures, self._dtype)
            return self._network.apply({"params": params}, x, pictures.shape[1:3], method="detect")

        return self._compiled(detect)

    @functools.cached_property
    def _describe(self) -> Any:
        def describe(params: dict, maps: list[jax.Array], boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
            charts: Any = self._network.apply({"params": params}, maps, boxes, method="describe")
            return charts.coarse, charts.fine  # what is not asked for is not computed

        return self._compiled(describe)

    def _compiled(self, function: Any) -> Any:
        """The function of parameters and frames, with the frames shared by all devices."""

        def exact(*args: Any) -> Any:
            # Accelerators would multiply float32 with fewer bits, which moves boxes by a third of a pixel.
            precision = "highest" if self._dtype == jnp.float32 else None
            with jax.default_matmul_precision(precision):
                return function(*args)

        def program(params: dict, *arrays: Any) -> Any:
            specs = (PartitionSpec(), *(FRAMES for _ in arrays))
            return jax.shard_map(exact, mesh=self._mesh, in_specs=specs, out_specs=FRAMES)(params, *arrays)

        return jit(program)


def _check_frame(frame: np.ndarray) -> np.ndarray:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
        raise InputError(f"expected frames uint8 H W 3, found {frame.dtype} {frame.shape}")
    return frame
