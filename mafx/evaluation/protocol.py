"""Evaluation: every held-out clip animated from its first frame, measured against the truth and against copying that frame.

A folder with the results has `metrics.json` (all numbers, of each clip too), `metrics.md` (the same as a table), `videos/` (reference | motion |
result | truth) and `clips/`, one file per clip as soon as it is done: an interrupted evaluation goes on, and several processes share the clips.
"""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from scipy.stats import bootstrap
from tqdm.auto import tqdm

from mafx import media, metrics
from mafx.animate import animate
from mafx.data.clips import Clip
from mafx.data.pipeline import Sampling, read_example
from mafx.densepose import read_labels
from mafx.errors import InputError
from mafx.model import Model

FRAME_MEASURES = (metrics.l1, metrics.l1_published, metrics.psnr, metrics.psnr_legacy, metrics.ssim)
HIGHER_IS_BETTER = ("psnr", "psnr_legacy", "ssim")
Scores = dict[str, float]  # names of measures -> values; "_person" behind those inside the person's mask


def score(video: np.ndarray, truth: np.ndarray, labels: np.ndarray, shown: np.ndarray) -> Scores:
    """All measures of one video; uint8 `f H W 3`, labels of the truth `f H W` and of the reference `H W`."""
    person = labels > 0
    values = {}
    for measure in FRAME_MEASURES:
        values[measure.__name__] = np.mean([measure(a, b) for a, b in zip(video, truth, strict=True)])
        inside = [measure(a, b, mask) for a, b, mask in zip(video, truth, person, strict=True) if mask.any()]
        values[f"{measure.__name__}_person"] = np.mean(inside) if inside else np.nan
    for name, mask in (("difference_error", None), ("difference_error_person", person)):
        changes = metrics.difference_error(video, truth, mask)
        values[name] = np.nanmean(changes) if np.isfinite(changes).any() else np.nan
    values["flicker_unseen"] = metrics.flicker(video, labels, shown)
    return {name: float(x) for name, x in values.items()}


def evaluate(model: Model, clips: Sequence[Clip], out: Path, sampling: Sampling, frames: int | None, which: dict, settings: dict) -> dict:
    """Animate and measure `clips`, at most `frames` frames of each behind the first, and write `out`.

    `settings` are those of `animate`; `which` says what model it is, so that an evaluation is not continued with another.
    With several processes each takes every so many-th clip; all see the same folder. Returns what metrics.json holds, on every process.
    Raises InputError where `out` has results of other settings.
    """
    said = {"frames": frames, "stride": sampling.stride, "size": list(sampling.size), "split": [clip.name for clip in clips]} | which | settings
    for folder in (out / "clips", out / "videos"):
        folder.mkdir(parents=True, exist_ok=True)
    for path in (out / "clips").glob("*.json"):
        if (found := json.loads(path.read_text())["settings"]) != said:
            odd = next(name for name in said if found.get(name) != said[name])
            raise InputError(f"{out} has results of other settings ({odd}: {found.get(odd)!r}, now {said[odd]!r}); choose another --out or remove it")
    process, processes = jax.process_index(), jax.process_count()
    for clip in tqdm(clips[process::processes], desc="evaluating", unit="clip", disable=process > 0):
        done = out / "clips" / f"{clip.name}.json"
        if done.exists():
            continue
        targets = np.arange(1, clip.frames, sampling.stride)[:frames]
        example = read_example(clip, 0, np.append(0, targets), sampling)  # with the reference's own render
        reference, motion, truth = example["reference"], example["motion"][1:], example["video"][1:]
        shown, *labels = read_labels(example["motion"])[0]
        labels = np.stack(labels)
        video = media.to_uint8(animate(model, reference, motion, progress=False, **settings).video)
        answers = {"result": video, "copying": np.broadcast_to(reference, truth.shape)}
        scores = {name: score(answer, truth, labels, shown) for name, answer in answers.items()}
        scores["truth"] = {"flicker_unseen": metrics.flicker(truth, labels, shown)}
        media.write_video(out / "videos" / f"{clip.name}.mp4", media.side_by_side(reference, motion, video, truth), clip.fps / sampling.stride)
        _write_json(done, {"settings": said, "scores": scores})
    files = {clip.name: out / "clips" / f"{clip.name}.json" for clip in clips}
    while not all(path.exists() for path in files.values()):  # other processes are not done yet
        time.sleep(1)
    scores = {name: json.loads(path.read_text())["scores"] for name, path in files.items()}
    found = {"settings": said, "mean": summarise(scores), "clips": scores}
    if process == 0:
        _write_json(out / "metrics.json", found)
        (out / "metrics.md").write_text(table(found["mean"]))
    return found


def summarise(scores: dict[str, dict[str, Scores]]) -> dict[str, dict[str, list[float]]]:
    """Answer -> measure -> mean over clips and its 95 % interval, without clips for which the measure is not defined."""
    first = next(iter(scores.values()))
    columns = {answer: {name: [clip[answer][name] for clip in scores.values()] for name in first[answer]} for answer in first}
    return {answer: {name: mean_interval(column) for name, column in names.items()} for answer, names in columns.items()}


def mean_interval(values: Sequence[float]) -> list[float]:
    """Mean, and the ends of its 95 % percentile bootstrap interval; the same numbers whenever it is asked."""
    values = np.array([x for x in values if not math.isnan(x)])
    if len(values) < 2:
        return [float(values.mean()) if len(values) else math.nan, math.nan, math.nan]
    interval = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return [float(x) for x in (values.mean(), *interval)]


def compare(ours: dict, theirs: dict) -> dict[str, list[float]]:
    """Measure -> mean difference of the results, ours minus theirs, clip by clip, with its 95 % interval.

    Raises InputError where the clips differ."""
    if ours["clips"].keys() != theirs["clips"].keys():
        odd = sorted(ours["clips"].keys() ^ theirs["clips"].keys())
        raise InputError(f"expected two evaluations of the same clips, found only one of them for {', '.join(odd[:3])}")
    pairs = [(clip["result"], theirs["clips"][name]["result"]) for name, clip in ours["clips"].items()]
    return {name: mean_interval([a[name] - b[name] for a, b in pairs]) for name in pairs[0][0]}


def table(mean: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: a row per measure, a column per answer, with 95 % intervals."""
    columns = list(mean)
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name in mean[columns[0]]:
        arrow = "↑" if name.removesuffix("_person") in HIGHER_IS_BETTER else "↓"
        lines.append(f"| {name} {arrow} | " + " | ".join(_cell(mean[column].get(name)) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _cell(interval: list[float] | None) -> str:
    return "" if interval is None or math.isnan(interval[0]) else "{:.4g} [{:.4g}, {:.4g}]".format(*interval)


def read_metrics(folder: Path) -> dict:
    """The metrics.json of an evaluation, or of the one in a work folder. Raises InputError where there is none."""
    for path in (folder / "metrics.json", folder / "evaluation" / "metrics.json"):
        if path.is_file():
            return json.loads(path.read_text())
    raise InputError(f"expected an evaluation (metrics.json) in {folder}; make it by sample.py --workdir {folder} --split test")


def _write_json(path: Path, content: dict) -> None:
    """In one piece: who finds the file finds it whole."""
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
