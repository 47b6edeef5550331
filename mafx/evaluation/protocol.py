"""Evaluation: every held-out clip animated from its first frame, measured against the truth and against copying that frame.

A folder with the results has `metrics.json` (all numbers, of each clip too), `metrics.md` (the same as a table), `videos/` (reference | motion |
result | truth), `features/` (what networks see in a clip) and `clips/`, one file per clip as soon as it is done: an interrupted evaluation goes on,
and several processes share the clips.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from scipy.stats import bootstrap
from tqdm.auto import tqdm

from mafx import media, metrics
from mafx.animate import animate
from mafx.data.clips import Clip
from mafx.data.examples import ExampleOptions, read_example
from mafx.densepose import read_labels
from mafx.errors import InputError
from mafx.evaluation.features import FILES, Networks, frechet_distance
from mafx.model import Model

FRAME_MEASURES = (metrics.l1, metrics.l1_published, metrics.psnr, metrics.psnr_legacy, metrics.ssim)
HIGHER_IS_BETTER = ("psnr", "psnr_legacy", "ssim")
Scores = dict[str, float]  # names of measures -> values; "_person" behind those inside the person's mask


def score(
    video: np.ndarray, truth: np.ndarray, labels: np.ndarray, shown: np.ndarray, borders: np.ndarray | None = None
) -> Scores:
    """All measures of one video; uint8 `f H W 3`, labels of the truth `f H W` and of the reference `H W`, the windows' `borders`, bool `f - 1`."""
    person = labels > 0
    values = {}
    for measure in FRAME_MEASURES:
        values[measure.__name__] = np.mean([measure(a, b) for a, b in zip(video, truth, strict=True)])
        inside = [
            measure(a, b, mask) if mask.any() else math.nan for a, b, mask in zip(video, truth, person, strict=True)
        ]
        values[f"{measure.__name__}_person"] = metrics.mean_of_defined(inside)
    for name, mask in (("difference_error", None), ("difference_error_person", person)):
        changes = metrics.difference_error(video, truth, mask)
        values[name] = metrics.mean_of_defined(changes)
        if borders is not None and borders.any():
            values |= {
                f"{name}_at_borders": metrics.mean_of_defined(changes[borders]),
                f"{name}_elsewhere": metrics.mean_of_defined(changes[~borders]),
            }
    values["flicker_unseen"] = metrics.flicker(video, labels, shown)
    return {name: float(x) for name, x in values.items()}


def evaluate(
    model: Model,
    clips: Sequence[Clip],
    out: Path,
    options: ExampleOptions,
    frames: int | None,
    which: dict,
    settings: dict,
    networks: Networks,
) -> dict:
    """Animate and measure `clips`, at most `frames` frames of each behind the first, and write `out`.

    `settings` are those of `animate`; `which` says what model it is, so that an evaluation is not continued with another. `networks` add the measures
    that they are for. With several processes each takes every so many-th clip; all see the same folder. Returns what metrics.json holds, on every
    process. Raises InputError where `out` has results of other settings.
    """
    said = (
        {"frames": frames, "stride": options.stride, "size": list(options.size), "split": [clip.name for clip in clips]}
        | which
        | settings
    )
    said["networks"] = [name for name in FILES if name in networks]
    for folder in ("clips", "videos", "features"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for path in (out / "clips").glob("*.json"):
        if (found := json.loads(path.read_text())["settings"]) != said:
            odd = next(name for name in said if found.get(name) != said[name])
            raise InputError(
                f"{out} has results of other settings ({odd}: {found.get(odd)!r}, now {said[odd]!r}); choose another --out or remove it"
            )
    process, processes = jax.process_index(), jax.process_count()
    done = {clip.name: out / "clips" / f"{clip.name}.json" for clip in clips}
    for clip in tqdm(clips[process::processes], desc="evaluating", unit="clip", disable=process > 0):
        if not done[clip.name].exists():
            targets = np.arange(1, clip.frames, options.stride)[:frames]
            scores = measure(model, clip, targets, out, options, settings, networks)
            _write_json(done[clip.name], {"settings": said, "scores": scores})
    while not all(path.exists() for path in done.values()):  # other processes are not done yet
        time.sleep(1)
    scores = {name: json.loads(path.read_text())["scores"] for name, path in done.items()}
    mean = summarise(scores)
    for answer, distances in frechet_distances([out / "features" / f"{name}.npz" for name in scores]).items():
        mean[answer] |= distances
    found = {"settings": said, "mean": mean, "clips": scores}
    if process == 0:
        _write_json(out / "metrics.json", found)
        (out / "metrics.md").write_text(table(found["mean"]))
    return found


def measure(
    model: Model,
    clip: Clip,
    targets: np.ndarray,
    out: Path,
    options: ExampleOptions,
    settings: dict,
    networks: Networks,
) -> dict[str, Scores]:
    """Animate frames of one clip from its first, and score the result; writes its video and features."""
    example = read_example(clip, 0, np.append(0, targets), options)  # with the reference's own render
    reference, motion, truth = example["reference"], example["motion"][1:], example["video"][1:]
    shown, *labels = read_labels(example["motion"])[0]
    labels = np.stack(labels)
    animation = animate(model, reference, motion, progress=False, **settings)
    answers = {"result": media.to_uint8(animation.video), "copying": np.broadcast_to(reference, truth.shape)}
    scores = {name: score(answer, truth, labels, shown, animation.borders) for name, answer in answers.items()}
    if "lpips" in networks:
        for name, answer in answers.items():
            scores[name] |= networks.lpips(answer, truth, labels > 0)
    features = {answer: networks.features(video, labels > 0) for answer, video in (answers | {"truth": truth}).items()}
    np.savez(
        out / "features" / f"{clip.name}.npz",
        **{f"{answer}/{name}": x for answer, found in features.items() for name, x in found.items()},
    )
    scores["truth"] = {"flicker_unseen": metrics.flicker(truth, labels, shown)}
    videos = media.side_by_side(reference, motion, answers["result"], truth)
    media.write_video(out / "videos" / f"{clip.name}.mp4", videos, clip.fps / options.stride)
    return scores


def frechet_distances(paths: Sequence[Path]) -> dict[str, dict[str, list[float]]]:
    """Answer -> measure -> the distance between the features of all its clips and those of the truth, without an interval."""
    clips = [np.load(path) for path in paths]
    found: dict[str, dict] = {}
    for key in clips[0].files:
        answer, name = key.split("/")
        if answer != "truth":
            of_all = (
                np.concatenate([x for clip in clips if (x := clip[f"{kind}/{name}"]).size])
                for kind in (answer, "truth")
            )
            found.setdefault(answer, {})[name] = [frechet_distance(*of_all), math.nan, math.nan]
    return found


def summarise(scores: dict[str, dict[str, Scores]]) -> dict[str, dict[str, list[float]]]:
    """Answer -> measure -> mean over clips and its 95 % interval, without clips for which the measure is not defined."""
    first = next(iter(scores.values()))
    columns = {
        answer: {name: [clip[answer][name] for clip in scores.values()] for name in first[answer]} for answer in first
    }
    return {
        answer: {name: mean_interval(column) for name, column in names.items()} for answer, names in columns.items()
    }


def mean_interval(values: Sequence[float]) -> list[float]:
    """Mean, and the ends of its 95 % percentile bootstrap interval; the same numbers whenever it is asked."""
    return _interval(np.mean, [values])


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The mean of `ours` as a multiple of that of `theirs`, pair by pair, likewise."""
    return _interval(lambda a, b, axis: a.mean(axis) / b.mean(axis), [ours, theirs])


def _interval(statistic: Callable, columns: Sequence[Sequence[float]]) -> list[float]:
    """Of the rows in which every column is defined."""
    columns = np.array(columns, np.float64)
    columns = columns[:, np.isfinite(columns).all(0)]
    if columns.shape[1] < 2:
        return [float(statistic(*columns, axis=0)) if columns.size else math.nan, math.nan, math.nan]
    options = {"paired": True, "vectorized": True, "method": "percentile"}
    found = bootstrap(columns, statistic, rng=np.random.default_rng(0), **options).confidence_interval
    return [float(x) for x in (statistic(*columns, axis=0), *found)]


def compare(ours: dict, theirs: dict) -> dict[str, dict[str, list[float]]]:
    """How two evaluations' results differ, clip by clip, with 95 % intervals: "difference" -> measure -> ours minus theirs, and "ratio" -> measure ->
    ours as a multiple of theirs, for measures of which less is better.

    Raises InputError where the clips differ.
    """
    if ours["clips"].keys() != theirs["clips"].keys():
        odd = sorted(ours["clips"].keys() ^ theirs["clips"].keys())
        raise InputError(f"expected two evaluations of the same clips, found only one of them for {', '.join(odd[:3])}")
    columns = {name: [] for name in next(iter(ours["clips"].values()))["result"]}
    for clip, scores in ours["clips"].items():
        for name, pairs in columns.items():
            pairs.append((scores["result"][name], theirs["clips"][clip]["result"].get(name, math.nan)))
    found = {"difference": {name: mean_interval([a - b for a, b in pairs]) for name, pairs in columns.items()}}
    return found | {
        "ratio": {
            name: ratio_interval(*zip(*pairs, strict=True))
            for name, pairs in columns.items()
            if not higher_is_better(name)
        }
    }


def higher_is_better(measure: str) -> bool:
    return measure.removesuffix("_person") in HIGHER_IS_BETTER


def table(mean: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: a row per measure, a column per answer, with 95 % intervals."""
    columns = list(mean)
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name in mean[columns[0]]:
        arrow = "↑" if higher_is_better(name) else "↓"
        lines.append(f"| {name} {arrow} | " + " | ".join(_cell(mean[column].get(name)) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def _cell(interval: list[float] | None) -> str:
    if interval is None or math.isnan(interval[0]):
        return ""
    return "{:.4g}".format(*interval) + ("" if math.isnan(interval[1]) else " [{1:.4g}, {2:.4g}]".format(*interval))


def read_metrics(folder: Path) -> dict:
    """The metrics.json of an evaluation, or of the one in a work folder. Raises InputError where there is none."""
    for path in (folder / "metrics.json", folder / "evaluation" / "metrics.json"):
        if path.is_file():
            return json.loads(path.read_text())
    raise InputError(
        f"expected an evaluation (metrics.json) in {folder}; make it by sample.py --workdir {folder} --split test"
    )


def _write_json(path: Path, content: dict) -> None:
    """In one piece: who finds the file finds it whole."""
    part = path.with_name(f".{path.name}")
    part.write_text(json.dumps(content, indent=2) + "\n")
    part.replace(path)
