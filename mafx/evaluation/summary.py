"""From the scores of clips to those of an evaluation: means, intervals, distances, comparisons and tables."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mafx.errors import InputError
from mafx.evaluation.features import frechet_distance
from mafx.files import read_arrays
from mafx.tables import markdown_table

MAX_FEATURES = 2**30  # bytes of a clip's features
HIGHER_IS_BETTER = ("psnr", "psnr_legacy", "ssim")
ONE_IS_BEST = ("sharpness",)
Scores = dict[str, float]  # measure -> value; "_person" ends the names of measures inside the person's mask
Interval = list[float]  # a mean, and the two ends of its 95 % interval, which are nan where there is none
Summary = dict[str, dict[str, Interval]]  # answer -> measure -> interval


def summarise(clips: dict[str, dict[str, Scores]]) -> Summary:
    """Mean and interval of each measure over the clips in which it is defined.

    Args:
      clips: Clip -> answer -> scores. Clips may have different measures.
    """
    summary: Summary = {}
    for answer in _union(clips.values()):
        scores = [clip.get(answer, {}) for clip in clips.values()]
        summary[answer] = {
            name: mean_interval([clip_scores.get(name, math.nan) for clip_scores in scores]) for name in _union(scores)
        }
    return summary


def _union(dicts: Iterable[dict[str, Any]]) -> list[str]:
    """The keys of all dicts, in the order in which they first appear."""
    return list(dict.fromkeys(key for content in dicts for key in content))


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of the defined values, and the ends of its 95 % interval (percentile bootstrap, from a fixed seed)."""
    return _interval(np.mean, [values])


def ratio_interval(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """The mean of `ours` divided by that of `theirs`, over pairs in which both are defined; interval as above."""
    return _interval(_ratio_of_means, [ours, theirs])


def _ratio_of_means(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    return a.mean(axis) / b.mean(axis)


def _interval(statistic: Callable, columns: Sequence[Sequence[float]]) -> Interval:
    """The statistic of the rows in which every column is defined, and its interval."""
    from scipy.stats import bootstrap  # noqa: PLC0415 (slow to import)

    values = np.array(columns, np.float64)
    values = values[:, np.isfinite(values).all(0)]
    rows = values.shape[1]
    value = float(statistic(*values, axis=0)) if rows else math.nan
    if rows < 2:
        return [value, math.nan, math.nan]
    sampled = bootstrap(
        values, statistic, paired=True, vectorized=True, method="percentile", rng=np.random.default_rng(0)
    )
    low, high = sampled.confidence_interval
    return [value, float(low), float(high)]


def frechet_distances(paths: Sequence[Path]) -> Summary:
    """Fréchet distances between the features of all answers and those of all truths, without intervals.

    Args:
      paths: The files of features, one per clip. Clips that are too short for a network count for nothing in it.
    """
    clips = [_read_features(path) for path in paths]
    distances: Summary = {}
    for key in _union(clips):
        answer, name = key.split("/")
        if answer != "truth":
            distance = frechet_distance(_features(clips, key), _features(clips, f"truth/{name}"))
            distances.setdefault(answer, {})[name] = [distance, math.nan, math.nan]
    return distances


def _read_features(path: Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, MAX_FEATURES)
    for key, x in arrays.items():
        if key.count("/") != 1 or x.ndim != 2:
            raise InputError(f"{path}: expected features `k c` under names ANSWER/NETWORK, found {key!r} of {x.shape}")
    return arrays


def _features(clips: Sequence[dict[str, np.ndarray]], key: str) -> np.ndarray:
    """The features of all clips, `k c`, or `0 0` if no clip has any."""
    parts = [clip[key] for clip in clips if key in clip and clip[key].size]
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def compare(ours: dict, theirs: dict) -> Summary:
    """The difference between the results of two evaluations, clip by clip, over the clips in which both are defined.

    Args:
      ours: What `evaluate` or `read_metrics` has returned.
      theirs: The same, for the same clips.

    Returns:
      "difference" -> measure -> the mean of ours minus theirs; and, for measures of which less is better, "ratio" ->
      measure -> the mean of ours divided by that of theirs.

    Raises:
      InputError: The clips are not the same.
    """
    odd = sorted(ours["clips"].keys() ^ theirs["clips"].keys())
    if odd:
        raise InputError(f"expected two evaluations of the same clips, found only one of them for {', '.join(odd[:3])}")
    results = [(scores["result"], theirs["clips"][clip]["result"]) for clip, scores in ours["clips"].items()]
    differences: dict[str, Interval] = {}
    ratios: dict[str, Interval] = {}
    for name in _union(result for result, _ in results):
        a, b = ([result.get(name, math.nan) for result in column] for column in zip(*results, strict=True))
        differences[name] = mean_interval(np.subtract(a, b).tolist())
        if not higher_is_better(name):
            ratios[name] = ratio_interval(a, b)
    return {"difference": differences, "ratio": ratios}


def higher_is_better(measure_name: str) -> bool:
    """Whether larger values of a measure are better, in the whole picture or inside the person's mask."""
    return measure_name.partition("_person")[0] in HIGHER_IS_BETTER


def best_end(measure_name: str) -> str:
    """Where the best values of a measure are: an arrow up, down, or to 1."""
    if measure_name.partition("_person")[0] in ONE_IS_BEST:
        return "→ 1"
    return "↑" if higher_is_better(measure_name) else "↓"


def table(summary: Summary) -> str:
    """A Markdown table with a row per measure and a column per answer, with 95 % intervals.

    Args:
      summary: What `evaluate` calls "mean", or what `compare` returns.
    """
    rows = []
    for name in _union(summary.values()):
        rows.append([f"{name} {best_end(name)}", *(_cell(intervals.get(name)) for intervals in summary.values())])
    return markdown_table(["", *summary], rows)


def _cell(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval[0]):
        return ""
    mean, low, high = interval
    return f"{mean:.4g}" if math.isnan(low) else f"{mean:.4g} [{low:.4g}, {high:.4g}]"
