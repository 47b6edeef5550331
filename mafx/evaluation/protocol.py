"""Evaluation: held-out clips are animated from their first frame, and measured against the truth.

Two answers are measured for each clip: the model's "result", and "copying" the first frame, which any model must beat.
The folder of an evaluation holds

    metrics.json    all numbers, those of each clip too
    metrics.md      their means as a table
    videos/         reference | motion | result | truth
    features/       what the networks of Fréchet distances see in each clip, from which those distances can be computed
    clips/          the scores of each clip as soon as it is measured

An interrupted evaluation continues behind the clips in clips/. Several processes share the clips and find the same
numbers as one.
"""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm.auto import tqdm

from mafx import media, metrics
from mafx.animation import animate
from mafx.data.clips import Clip, file_name, fingerprint_clips
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.errors import InputError
from mafx.evaluation.features import NETWORKS, MetricNetworks
from mafx.evaluation.summary import Scores, frechet_distances, summarise, table
from mafx.files import Measured, check_value, read_json
from mafx.interrupts import GOES_ON, advice_at_interrupt
from mafx.model import Model
from mafx.stamps import Facts, compare_facts, read_stamp, write_stamp, write_whole

FRAME_MEASURES = (metrics.l1, metrics.l1_published, metrics.psnr, metrics.psnr_legacy, metrics.ssim)
SIDES = ("front", "side", "back")  # of the person that frames show
METRICS_FILE, TABLE_FILE = "metrics.json", "metrics.md"
FOLDERS = {"clips": ".json", "videos": ".mp4", "features": ".npz"}  # and what is written there
OTHERS = "choose another --out, or give --overwrite to replace them"


@dataclasses.dataclass(frozen=True)
class ClipFile:
    """What a file of clips/ holds."""

    settings: dict[str, Any]
    scores: dict[str, dict[str, Measured]]


@dataclasses.dataclass(frozen=True)
class Answers:
    """The scores of a clip in metrics.json."""

    result: dict[str, Measured]
    copying: dict[str, Measured] = dataclasses.field(default_factory=dict)
    truth: dict[str, Measured] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class EvaluationFile:
    """What metrics.json holds."""

    settings: dict[str, Any]
    mean: dict[str, dict[str, tuple[Measured, Measured, Measured]]]
    clips: dict[str, Answers]


# -- The whole evaluation


def evaluate(
    model: Model,
    clips: Sequence[Clip],
    out: Path,
    *,
    options: ExampleOptions,
    frames: int | None,
    settings: dict,
    networks: MetricNetworks,
    memory: float | None = None,
    mesh: Mesh | None = None,
    overwrite: bool = False,
) -> dict:
    """Animate and measure clips, and write the results. With several processes, all call this with the same arguments.

    Args:
      model: What is evaluated.
      clips: The clips, each with a name of its own.
      out: The folder for the results, which all processes must see.
      options: How clips are read; `size` and `stride` count.
      frames: At most so many frames of each clip are animated, after its first. None means all.
      settings: Fields of `mafx.Settings`.
      networks: Networks of further measures.
      memory: GiB of the device's memory, see `mafx.animate`.
      mesh: Devices of this process, see `mafx.animate`.
      overwrite: Whether results that are there are removed first.

    Returns:
      What metrics.json holds, on every process: "settings", "mean" (a `Summary`), and "clips", the scores by clip and
      answer.

    Raises:
      InputError: `out` has results of another model, of other data or of other settings.
    """
    setup = data_facts(clips, frames, options) | {"split": [clip.name for clip in clips]}
    setup |= {**model.stamp(), **settings, "networks": [name for name in NETWORKS if name in networks]}
    _prepare_folder(out, setup, overwrite)
    process, processes = jax.process_index(), jax.process_count()
    paths = {clip.name: out / "clips" / f"{file_name(clip)}.json" for clip in clips}
    for clip in tqdm(clips[process::processes], desc="evaluating", unit="clip", disable=process > 0):
        if not paths[clip.name].exists():
            targets = np.arange(1, clip.frames, options.stride)[:frames]
            with advice_at_interrupt(GOES_ON):
                scores = measure(
                    model,
                    clip,
                    targets,
                    out,
                    options=options,
                    settings=settings,
                    networks=networks,
                    memory=memory,
                    mesh=mesh,
                )
            write_stamp(paths[clip.name], {"settings": setup, "scores": scores})
    while not all(path.exists() for path in paths.values()):  # other processes are still at work
        time.sleep(1)
    return _collect(out, setup, paths, write=process == 0)


def data_facts(clips: Sequence[Clip], frames: int | None, options: ExampleOptions) -> Facts:
    """What two evaluations must have in common to be compared."""
    taken = {"frames": frames, "stride": options.stride, "size": options.size}
    return taken | {"data": fingerprint_clips(clips)}


def _prepare_folder(out: Path, setup: Facts, overwrite: bool) -> None:
    """Make the folders, remove results if they are to be overwritten, and refuse those of other settings."""
    if jax.process_index() == 0:
        for folder in FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
        for path in _results(out) if overwrite else ():
            path.unlink()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("folder of the evaluation")
    for path in (out / "clips").glob("[!.]*.json"):
        before = _read_clip(path).settings
        nothing = dict.fromkeys(before.keys() - setup.keys())  # what only the earlier results have
        compare_facts(before, setup | nothing, f"{out} has results whose stamp", OTHERS)


def _read_clip(path: Path) -> ClipFile:
    return check_value(read_stamp(path), ClipFile, str(path))


def _results(out: Path) -> list[Path]:
    """The files of an evaluation, and no others."""
    found = [path for folder, suffix in FOLDERS.items() for path in (out / folder).glob(f"*{suffix}")]
    return found + [path for name in (METRICS_FILE, TABLE_FILE) if (path := out / name).is_file()]


def _collect(out: Path, setup: dict, paths: dict[str, Path], write: bool) -> dict:
    """Summarise the scores of all clips, given by their names and files, and `write` the summary."""
    scores: dict[str, Any] = {name: _read_clip(path).scores for name, path in paths.items()}
    mean = summarise(scores)
    features = [out / "features" / f"{path.stem}.npz" for path in paths.values()]
    for answer, distances in frechet_distances(features).items():
        mean[answer] |= distances
    evaluation = json.loads(json.dumps({"settings": setup, "mean": mean, "clips": scores}))  # as it is read again
    if write:
        write_whole(out / METRICS_FILE, json.dumps(evaluation, indent=2) + "\n")
        write_whole(out / TABLE_FILE, table(mean))
    return evaluation


def read_metrics(folder: Path) -> dict:
    """Read the metrics.json of an evaluation.

    Args:
      folder: The folder of the evaluation, or a work folder that holds it as `evaluation`.

    Returns:
      What `evaluate` has returned.

    Raises:
      InputError: There is none, or it cannot be read.
    """
    for path in (folder / METRICS_FILE, folder / "evaluation" / METRICS_FILE):
        if path.exists():
            content = read_json(path)
            check_value(content, EvaluationFile, str(path))
            return content
    raise InputError(
        f"expected an evaluation (metrics.json) in {folder}; make it by sample.py --workdir {folder} --split test"
    )


# -- One clip


def measure(
    model: Model,
    clip: Clip,
    targets: np.ndarray,
    out: Path,
    *,
    options: ExampleOptions,
    settings: dict,
    networks: MetricNetworks,
    memory: float | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Scores]:
    """Animate one clip from its first frame, score the answers, and write its video and features.

    Args:
      model: What is evaluated.
      clip: The clip.
      targets: Indices of the frames to animate.
      out: The folder of the evaluation.
      options: How the clip is read.
      settings: Fields of `mafx.Settings`.
      networks: Networks of further measures.
      memory: GiB of the device's memory, see `mafx.animate`.
      mesh: Devices of this process, see `mafx.animate`.

    Returns:
      Answer -> scores. The answer "truth" has the true video's flicker and drift, the least that one can hope for.
    """
    example = read_example(clip, 0, np.append(0, targets), options)  # the first render is that of the reference
    reference, motion, truth = example["reference"], example["motion"][1:], example["video"][1:]
    all_labels = read_labels(example["motion"])[0]
    reference_labels, labels = all_labels[0], all_labels[1:]
    person = labels > 0
    animation = animate(model, reference, motion, memory=memory, mesh=mesh, progress=False, **settings)
    answers = {"result": media.to_uint8(animation.video), "copying": np.broadcast_to(reference, truth.shape)}
    scores = {
        answer: score(video, truth, labels=labels, reference_labels=reference_labels, borders=animation.borders)
        for answer, video in answers.items()
    }
    if "lpips" in networks:
        for answer, video in answers.items():
            scores[answer] |= networks.lpips(video, truth, person)
    scores["truth"] = score_unseen(truth, labels, reference_labels, animation.borders)
    features = {answer: networks.features(video, person) for answer, video in {**answers, "truth": truth}.items()}
    _write_features(out / "features" / f"{file_name(clip)}.npz", features)
    videos = media.side_by_side(reference, motion, answers["result"], truth)
    media.write_video(out / "videos" / f"{file_name(clip)}.mp4", videos, clip.fps / options.stride)
    return scores


def _write_features(path: Path, features: dict[str, dict[str, np.ndarray]]) -> None:
    """Write answer -> name -> features, each under the name answer/name."""
    arrays: dict[str, Any] = {f"{answer}/{name}": x for answer, named in features.items() for name, x in named.items()}
    np.savez(path, **arrays)


def score(
    video: np.ndarray,
    truth: np.ndarray,
    *,
    labels: np.ndarray,
    reference_labels: np.ndarray,
    borders: np.ndarray | None = None,
) -> Scores:
    """All measures of one video that need no network.

    Args:
      video: uint8 `f H W 3`.
      truth: The same.
      labels: Of the truth, `f H W`.
      reference_labels: Of the reference, `H W`.
      borders: Where windows meet, bool `f - 1`: whether the change from a frame to the next one crosses a border.

    Returns:
      The values, nan where a measure is not defined. The differences at borders and elsewhere are there only if the
      video has borders.
    """
    person = labels > 0
    frames = list(zip(video, truth, person, strict=True))
    faced = [metrics.facing(frame) for frame in labels]
    values: Scores = {}
    for measure_frame in FRAME_MEASURES:
        name = measure_frame.__name__
        values[name] = np.mean([measure_frame(a, b) for a, b, _ in frames]).item()
        inside = [measure_frame(a, b, mask) if mask.any() else math.nan for a, b, mask in frames]
        values[f"{name}_person"] = metrics.mean_of_defined(inside)
    for side in SIDES:
        seen = [metrics.psnr(a, b, mask) for (a, b, mask), now in zip(frames, faced, strict=True) if now == side]
        values[f"psnr_person_{side}"] = metrics.mean_of_defined(seen)
    values["sharpness_person"] = metrics.relative_sharpness(video, truth, person)
    for name, mask in (("difference_error", None), ("difference_error_person", person)):
        changes = metrics.difference_error(video, truth, mask)
        values[name] = metrics.mean_of_defined(changes.tolist())
        if borders is not None and borders.any():
            values[f"{name}_at_borders"] = metrics.mean_of_defined(changes[borders].tolist())
            values[f"{name}_elsewhere"] = metrics.mean_of_defined(changes[~borders].tolist())
    return values | score_unseen(video, labels, reference_labels, borders)


def score_unseen(
    video: np.ndarray, labels: np.ndarray, reference_labels: np.ndarray, borders: np.ndarray | None = None
) -> Scores:
    """The measures of parts that the reference does not show; these need no truth. Arguments as for `score`."""
    colours = metrics.unseen_colours(video, labels, reference_labels)
    ends = max(1, len(video) // 4)  # frames
    values = {"flicker_unseen": metrics.flicker(colours), "drift_unseen": metrics.drift(colours, ends)}
    if borders is not None and borders.any():
        values["flicker_unseen_at_borders"] = metrics.flicker(colours, borders)
        values["flicker_unseen_elsewhere"] = metrics.flicker(colours, ~borders)
    return values
