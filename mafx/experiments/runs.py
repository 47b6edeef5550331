"""What experiments share: commands that are shown as they run, and pictures that set two evaluations side by side."""

import concurrent.futures
import os
import queue
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm.auto import tqdm

from mafx import media
from mafx.errors import InputError
from mafx.evaluation.protocol import METRICS_FILE, read_metrics
from mafx.training.checkpoints import find_step, read_checkpoint_stamp
from mafx.training.config import CONFIGS

ROOT = CONFIGS.parent
SHOWN_CLIPS = 3
MOMENTS = 3  # of a clip in a picture
PICTURE_ZOOM, GIF_ZOOM = 3, 4
Result = TypeVar("Result")


def run_python(*words: str) -> None:
    """Show a command of Python, and run it in the root of the repository. Raises InputError where it fails."""
    command = shlex.join(["python", *words])
    print(f"\n$ {command}", flush=True)
    if status := subprocess.run([sys.executable, *words], check=False, cwd=ROOT).returncode:
        raise InputError(f"a command ended with status {status}, and says why above: {command}")


def beside_one_another(work: Callable[..., Result], tasks: Sequence[tuple], jobs: int, unit: str) -> list[Result]:
    """What `work` returns for each of the tasks, done `jobs` at a time, each on its own share of the CPU cores.

    Small networks keep one core busy, but not two. The commands that `work` runs are on the cores of its thread.
    """
    cores: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    if jobs > 1 and hasattr(os, "sched_setaffinity"):  # not everywhere
        every = sorted(os.sched_getaffinity(0))
        for share in range(jobs):
            cores.put(every[share % len(every) :: jobs])

    def take_cores() -> None:
        if not cores.empty():
            os.sched_setaffinity(0, cores.get())

    with concurrent.futures.ThreadPoolExecutor(jobs, initializer=take_cores) as pool:
        running = [pool.submit(work, *task) for task in tasks]
        try:
            for done in tqdm(concurrent.futures.as_completed(running), total=len(running), unit=unit):
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [done.result() for done in running]


def is_trained(workdir: Path, steps: int) -> bool:
    """Whether a training has come to its end. Where there is no checkpoint yet, or none that is whole, it has not."""
    try:
        return find_step(workdir, "latest") >= steps
    except InputError:
        return False


def is_evaluated(workdir: Path, out: Path) -> bool:
    """Whether `out` has the evaluation of the newest checkpoint, not that of an earlier run in the same folder."""
    if not (out / METRICS_FILE).exists():
        return False
    settings, stamp = read_metrics(out)["settings"], read_checkpoint_stamp(workdir, "latest")
    return all(settings.get(name) == stamp[name] for name in ("run", "step"))


class Videos(NamedTuple):
    """Videos of one clip, each uint8 `f H W 3`: of the full model, of the changed one, and the truth."""

    reference: np.ndarray
    full: np.ndarray
    changed: np.ndarray
    truth: np.ndarray


def read_videos(full: Path, changed: Path) -> Iterator[Videos]:
    """The videos of the first clips of two evaluations."""
    for path in sorted((full / "videos").glob("*.mp4"))[:SHOWN_CLIPS]:
        # A video of an evaluation is reference | motion | result | truth.
        full_shown, changed_shown = (media.read_video(folder / "videos" / path.name)[0] for folder in (full, changed))
        reference, _, full_result, truth = np.split(full_shown, 4, axis=2)
        _, _, changed_result, _ = np.split(changed_shown, 4, axis=2)
        yield Videos(reference, full_result, changed_result, truth)


def picture(clips: Sequence[Videos]) -> np.ndarray:
    """A row per clip, uint8 `H W 3`: the reference, then full | changed | truth at some moments."""
    rows = []
    for clip in clips:
        moments = np.linspace(0, len(clip.truth) - 1, MOMENTS + 1).round().astype(int)[1:]
        frames = [video[i] for i in moments for video in (clip.full, clip.changed, clip.truth)]
        rows.append(np.concatenate([clip.reference[0], *frames], axis=1))
    return media.enlarge(np.concatenate(rows), PICTURE_ZOOM)


def moving_picture(clips: Sequence[Videos]) -> np.ndarray:
    """A row per clip, uint8 `f H W 3`: full | changed | truth."""
    rows = [media.side_by_side(clip.full, clip.changed, clip.truth) for clip in clips]
    return media.enlarge(np.concatenate(rows, axis=1), GIF_ZOOM)
