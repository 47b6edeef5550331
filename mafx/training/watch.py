"""Watching a run: numbers as JSON lines and in TensorBoard, and animations of held-out clips beside the truth."""

import contextlib
import io
import json
import math
import resource
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from mafx import media
from mafx.animation import animate
from mafx.data.clips import Clip
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.errors import InputError
from mafx.files import Measured, parse_json
from mafx.metrics import psnr
from mafx.model import Model
from mafx.stamps import write_whole
from mafx.training.checkpoints import SCORE, explained

METRICS_FILE = "metrics.jsonl"
BOARD = "tensorboard"
FPS = Fraction(12)  # of the video that shows held-out clips
SHOW_SAMPLER = "dpmpp_2m"
SHOW_STEPS = 20  # where this sampler has converged


def video_path(workdir: Path, step: int) -> Path:
    """Where a work folder has the video of held-out clips behind a step."""
    return workdir / f"held_out_{step:06d}.mp4"


class Journal:
    """`metrics.jsonl` and TensorBoard's files of a work folder. Only process 0 writes."""

    def __init__(self, workdir: Path, done: int = 0):
        """What an earlier start wrote of steps after `done` is forgotten: they are taken again."""
        from tensorboardX import SummaryWriter  # noqa: PLC0415 (slow to import)

        self._workdir, self._file = workdir, None
        if jax.process_index() == 0:
            path = workdir / METRICS_FILE
            if path.exists():
                write_whole(path, "".join(_lines_until(done, path.read_text("utf-8", "replace"))))
            self._file = path.open("a", buffering=1)
            others = threading.enumerate()
            self._board = SummaryWriter(str(workdir / BOARD), purge_step=done + 1)
            self._writers = [thread for thread in threading.enumerate() if thread not in others]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write values of a step by their names. Raises OSError where that fails."""
        if not self._file:
            return
        with explained(f"cannot write {self._workdir / METRICS_FILE}"):
            self._file.write(json.dumps({"step": step} | values) + "\n")
        if not all(thread.is_alive() for thread in self._writers):  # another value would wait for ever
            raise OSError(f"cannot write {self._workdir / BOARD}; the same command goes on from the checkpoint before")
        for name, x in values.items():
            self._board.add_scalar(name, x, step)

    def show(self, step: int, video: np.ndarray) -> None:
        """Write a video uint8 `f H W 3` of held-out clips: a file, and an animated picture in TensorBoard."""
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415 (slow to import)

        if not self._file:
            return
        media.write_video(video_path(self._workdir, step), video, FPS)
        gif = io.BytesIO()
        first, *others = map(Image.fromarray, video)
        first.save(gif, "gif", save_all=True, append_images=others, duration=round(1000 / FPS), loop=0)
        h, w = video.shape[1:3]
        image = Summary.Image(height=h, width=w, colorspace=3, encoded_image_string=gif.getvalue())
        self._board.file_writer.add_summary(Summary(value=[Summary.Value(tag="held_out", image=image)]), step)

    def close(self) -> None:
        if self._file:
            with explained(f"cannot write into {self._workdir}"), contextlib.closing(self._board):
                self._file.close()


def _lines_until(done: int, text: str) -> Iterator[str]:
    """The whole lines of `metrics.jsonl` of the steps up to `done`."""
    for line in text.splitlines(keepends=True):
        with contextlib.suppress(InputError):  # a line that a kill has left half-written
            values = parse_json(line, "metrics.jsonl", dict[str, int | Measured])
            if line.endswith("\n") and values.get("step", done + 1) <= done:
                yield line


class Meter:
    """Means of the metrics of all steps since the last reading, and the speed of these steps."""

    def __init__(self, matmul_rate: float):
        """`matmul_rate` is that of one device, in floating-point operations per second."""
        self._rate = matmul_rate * jax.device_count()
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._examples = 0
        self._flops = 0
        self._steps: list[dict[str, float]] = []

    def add(self, examples: int, flops: int, values: dict[str, float]) -> None:
        """One more step: its examples, its floating-point operations, its metrics."""
        self._examples += examples
        self._flops += flops
        self._steps.append(values)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile takes no time of the steps."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """Read and start anew.

        Returns: Means of the metrics without values that are nan (a quarter of the diffusion times that no example
          had); "examples_per_second"; "flop_utilisation", the share of the devices' matmul rate that the networks'
          arithmetic takes; "memory_gib", the largest memory so far.
        """
        seconds = time.perf_counter() - self._began
        means = {}
        for name in self._steps[0]:
            column = [values[name] for values in self._steps if not math.isnan(values[name])]
            if column:
                means[name] = float(np.mean(column))
        means["examples_per_second"] = self._examples / seconds
        means["flop_utilisation"] = self._flops / seconds / self._rate
        means["memory_gib"] = peak_memory() / 2**30
        self._restart()
        return means


def peak_memory() -> int:
    """The largest memory so far in bytes: of the first device, or of the whole process where devices are CPU cores."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def show(
    model: Model, clips: Sequence[Clip], options: ExampleOptions, frames: int, guidance_scale: float
) -> tuple[dict[str, float], np.ndarray]:
    """Animate the beginning of held-out clips from their first frame.

    Args:
      model: The model.
      clips: What to animate.
      options: How examples are taken from clips.
      frames: Largest number of frames behind the first.
      guidance_scale: Of the animation.

    Returns: Mean scores in dB (see below for their names), and a video uint8 `f H W 3` with a row per clip: reference,
      motion, result, truth.
    """
    rows, scores = [], []
    settings: dict[str, Any] = {
        "steps": SHOW_STEPS,
        "sampler": SHOW_SAMPLER,
        "guidance_scale": guidance_scale,
        "progress": False,
    }
    for clip in clips:
        example = read_example(clip, 0, 1 + np.arange(min(frames, clip.frames - 1)), options)
        reference, motion, truth = example["reference"], example["motion"], example["video"]
        result = media.to_uint8(animate(model, reference, motion, **settings).video)
        rows.append(media.side_by_side(reference, motion, result, truth))
        person, copy = read_labels(motion)[0] > 0, np.broadcast_to(reference, truth.shape)
        scores.append([psnr(result, truth), psnr(result, truth, person), psnr(copy, truth), psnr(copy, truth, person)])
    names = SCORE, f"{SCORE}_person", "copying_psnr", "copying_psnr_person"
    length = min(map(len, rows))
    video = np.concatenate([row[:length] for row in rows], axis=1)
    return dict(zip(names, np.mean(scores, axis=0).tolist(), strict=True)), video
