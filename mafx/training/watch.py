"""Watching a run: numbers as JSON lines and in TensorBoard, and animations of held-out clips beside the truth."""

import io
import json
import math
import resource
import time
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from mafx import media
from mafx.animate import animate
from mafx.data.clips import Clip
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.metrics import psnr
from mafx.model import Model
from mafx.training.checkpoints import SCORE

FPS = Fraction(12)


class Journal:
    """`metrics.jsonl` and TensorBoard's files of a work folder. Only process 0 writes."""

    def __init__(self, workdir: Path):
        self._workdir, self._file = workdir, None
        if jax.process_index() == 0:
            self._file = (workdir / "metrics.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(str(workdir / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        if self._file:
            self._file.write(json.dumps({"step": step} | values) + "\n")
            for name, x in values.items():
                self._board.add_scalar(name, x, step)

    def show(self, step: int, video: np.ndarray) -> None:
        """A video uint8 `f H W 3` of held-out clips: a file, and an animated picture in TensorBoard."""
        if not self._file:
            return
        media.write_video(self._workdir / f"held_out_{step:06d}.mp4", video, FPS)
        gif = io.BytesIO()
        first, *others = map(Image.fromarray, video)
        first.save(gif, "gif", save_all=True, append_images=others, duration=round(1000 / FPS), loop=0)
        h, w = video.shape[1:3]
        image = Summary.Image(height=h, width=w, colorspace=3, encoded_image_string=gif.getvalue())
        self._board.file_writer.add_summary(Summary(value=[Summary.Value(tag="held_out", image=image)]), step)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._board.close()


class Meter:
    """Means of what the steps since the last reading gave, and their speed."""

    def __init__(self, matmul_rate: float):
        self._rate = matmul_rate * jax.device_count()
        self._restart()

    def _restart(self) -> None:
        self._began, self._examples, self._flops, self._values = time.perf_counter(), 0, 0, []

    def add(self, examples: int, flops: int, values: dict[str, float]) -> None:
        self._examples += examples
        self._flops += flops
        self._values.append(values)

    def read(self) -> dict[str, float]:
        """Means without what is not a number (loss of timesteps that no example had), examples per second, the share of the devices' matmul rate that
        the networks' arithmetic takes, and the largest memory so far in GiB."""
        seconds = time.perf_counter() - self._began
        columns = {
            name: [x for values in self._values if not math.isnan(x := values[name])] for name in self._values[0]
        }
        means = {name: float(np.mean(column)) for name, column in columns.items() if column}
        speed = {
            "examples_per_second": self._examples / seconds,
            "flop_utilisation": self._flops / seconds / self._rate,
        }
        self._restart()
        return means | speed | {"memory_gib": peak_memory() / 2**30}


def peak_memory() -> int:
    """Bytes: of the first device, or of the whole process where devices are CPU cores."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def show(
    model: Model, clips: list[Clip], options: ExampleOptions, frames: int, guidance_scale: float
) -> tuple[dict[str, float], np.ndarray]:
    """Animate the beginning of held-out clips from their first frame. Returns mean scores, and a video with a row per clip:
    reference | motion | result | truth."""
    rows, scores = [], []
    for clip in clips:
        example = read_example(clip, 0, 1 + np.arange(min(frames, clip.frames - 1)), options)
        reference, motion, truth = example["reference"], example["motion"], example["video"]
        result = animate(
            model, reference, motion, guidance_scale=guidance_scale, steps=20, sampler="dpmpp_2m", progress=False
        )
        result = media.to_uint8(result.video)
        rows.append(media.side_by_side(reference, motion, result, truth))
        person, copy = read_labels(motion)[0] > 0, np.broadcast_to(reference, truth.shape)
        scores.append([psnr(result, truth), psnr(result, truth, person), psnr(copy, truth), psnr(copy, truth, person)])
    length = min(map(len, rows))
    names = SCORE, f"{SCORE}_person", "copying_psnr", "copying_psnr_person"
    return dict(zip(names, np.mean(scores, axis=0).tolist(), strict=True)), np.concatenate(
        [row[:length] for row in rows], axis=1
    )
