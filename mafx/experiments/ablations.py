"""Train and evaluate the variants of configs/ablations.py with several seeds, and judge all claims.

    python -m mafx.experiments.ablations --runs RUNS [--only CLAIM ...] [--seeds N] [--jobs N]

It runs in the root of the repository, where configs/ lies. Every training and every evaluation is a command that is
shown as it runs; what is done already is not done again. It writes RUNS/ablations.md (the table), RUNS/ablations.json,
and for each claim a picture, RUNS/CLAIM.png, and an animated one, RUNS/CLAIM.gif.
"""

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from configs.ablations import CLAIMS, LONG, LONGER, VARIANTS, Claim, Run, get_config
from mafx import media
from mafx.commands import Parser, expand_home, parse_count, run_command
from mafx.evaluation.protocol import METRICS_FILE, read_metrics
from mafx.evaluation.summary import best_end, higher_is_better
from mafx.experiments.runs import (
    beside_one_another,
    is_evaluated,
    is_trained,
    moving_picture,
    picture,
    read_videos,
    run_python,
)
from mafx.tables import markdown_table
from mafx.training.config import STAGES

NAME = "python -m mafx.experiments.ablations"
CLIPS = {16: 48, LONG: 48, LONGER: 12}  # frames of the clips -> how many clips are evaluated
SAMPLING = ("--split", "test", "--steps", "8")
LEVEL = 0.95  # of intervals
GIF_FPS = Fraction(8)

Evaluation = dict[str, Any]  # what `mafx.evaluation.protocol.read_metrics` returns


# -- Training and evaluating


def owner(variant: str, stage: str) -> str:
    """The variant that a stage is trained for."""
    own = VARIANTS[variant]
    return variant if stage in own.stages else own.of


def train(variant: str, stage: str, seed: int, runs: Path) -> Path:
    """Train a variant as far as a stage, and return the work folder of this stage."""
    workdirs = {name: runs / owner(variant, name) / str(seed) / name for name in STAGES}
    for name in STAGES[: STAGES.index(stage) + 1]:
        argument = f"{owner(variant, name)}:{name}"
        if not is_trained(workdirs[name], get_config(argument).steps):
            flags = ["--config", f"ablations:{argument}", "--workdir", str(workdirs[name])]
            flags += ["--config.seed", str(seed)]
            if name != STAGES[0]:
                flags += ["--config.init_from", str(workdirs[STAGES[0]])]
            run_python("train.py", *flags)
    return workdirs[stage]


def evaluation_folder(run: Run, workdir: Path) -> Path:
    """Where the evaluation of a run goes: a folder of its own for each number of clips and way of sampling."""
    words = [
        f"{CLIPS[run.frames]}_clips_of_{run.frames}_frames",
        *(flag.lstrip("-").replace(".", "_") for flag in run.flags),
    ]
    return workdir / "evaluations" / "-".join(words)


def evaluate(run: Run, seed: int, runs: Path) -> Path:
    """The folder of the evaluation of a run, which is made where it is missing."""
    workdir = train(run.variant, run.stage, seed, runs)
    out = evaluation_folder(run, workdir)
    if not is_evaluated(workdir, out):
        size = ("--clips", str(CLIPS[run.frames]), "--frames", str(run.frames))
        stale = ("--overwrite",) if (out / METRICS_FILE).exists() else ()
        run_python("sample.py", "--workdir", str(workdir), "--out", str(out), *SAMPLING, *size, *run.flags, *stale)
    return out


def make_all(claims: Sequence[Claim], seeds: Sequence[int], runs: Path, jobs: int) -> dict[Run, list[Path]]:
    """Train and evaluate what the claims are about, one stage after the other, `jobs` runs at a time.

    Returns:
      Run -> the folders of its evaluations, one for each seed.
    """
    needed = dict.fromkeys(run for claim in claims for run in (claim.full, claim.changed))  # a set that keeps its order
    for stage in STAGES:
        reached = [run for run in needed if STAGES.index(run.stage) >= STAGES.index(stage)]
        owners = dict.fromkeys(owner(run.variant, stage) for run in reached)
        trainings = [(variant, stage, seed, runs) for variant in owners for seed in seeds]
        beside_one_another(train, trainings, jobs, "training")
    evaluations = [(run, seed, runs) for run in needed for seed in seeds]
    folders = iter(beside_one_another(evaluate, evaluations, jobs, "evaluation"))
    return {run: list(itertools.islice(folders, len(seeds))) for run in needed}


# -- Judging


class Interval(NamedTuple):
    """A mean, and the ends of its interval."""

    mean: float
    low: float
    high: float


def crossed_interval(values: np.ndarray) -> Interval:
    """The mean over seeds and clips, and its interval for other seeds and other clips.

    Seeds and clips are crossed random effects. The variance of the mean is estimated from the mean squares of the
    two-way analysis of variance, as MS_seeds + MS_clips - MS_rest over the number of values, at least as much as either
    alone. Its degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946).

    Args:
      values: `s n`, of s seeds and n clips; at least two clips. With one seed the interval is for other clips only.
    """
    from scipy import stats  # noqa: PLC0415 (slow to import)

    seeds, clips = values.shape
    mean = values.mean()
    of_seeds, of_clips = values.mean(1, keepdims=True) - mean, values.mean(0, keepdims=True) - mean
    clips_square = seeds * np.square(of_clips).sum() / (clips - 1)
    squares, freedoms = np.array([clips_square]), np.array([clips - 1])
    variance = clips_square
    if seeds > 1:
        rest = values - mean - of_seeds - of_clips
        rest_freedom = (seeds - 1) * (clips - 1)
        seeds_square = clips * np.square(of_seeds).sum() / (seeds - 1)
        squares = np.array([seeds_square, clips_square, np.square(rest).sum() / rest_freedom])
        freedoms = np.array([seeds - 1, clips - 1, rest_freedom])
        variance = max(seeds_square + clips_square - squares[2], seeds_square, clips_square)
    if variance == 0:
        return Interval(float(mean), float(mean), float(mean))
    freedom = variance**2 / (np.square(squares) / freedoms).sum()
    reach = stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance / values.size)
    return Interval(float(mean), float(mean - reach), float(mean + reach))


def scores_of(evaluations: Sequence[Evaluation], measure: str) -> np.ndarray:
    """A measure by seeds and clips, `s n`; nan where it is not defined."""
    scores = [[clip["result"].get(measure) for clip in evaluation["clips"].values()] for evaluation in evaluations]
    return np.array(scores, np.float64)


def judge(claim: Claim, changed: Sequence[Evaluation], full: Sequence[Evaluation]) -> dict[str, Any]:
    """Judge a claim by evaluations of the same clips, one for each seed.

    Returns:
      "full" and "changed", the measure of both; "difference", an `Interval` of the changed minus the full; "better",
      "neither" where that includes zero; "seeds" and "clips", the numbers of those in which the measure is defined.
    """
    scores = {"changed": scores_of(changed, claim.measure), "full": scores_of(full, claim.measure)}
    defined = np.isfinite(scores["changed"] - scores["full"]).all(0)
    scores = {name: values[:, defined] for name, values in scores.items()}
    difference = crossed_interval(scores["changed"] - scores["full"])
    better = "neither"
    if difference.low > 0 or difference.high < 0:
        better = "changed" if (difference.low > 0) == higher_is_better(claim.measure) else "full"
    return {
        "full": float(scores["full"].mean()),
        "changed": float(scores["changed"].mean()),
        "difference": difference,
        "better": better,
        "seeds": len(changed),
        "clips": int(defined.sum()),
    }


def verdict_words(claim: Claim, better: str) -> str:
    """Whether a claim holds."""
    if better == claim.better:
        return "yes"
    if better == "neither":
        return "no difference"
    return f"no: {better} is better"


def table(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table with a row for each claim."""
    rows = []
    for name, found in verdicts.items():
        claim = CLAIMS[name]
        difference = "{:+.3g} [{:+.3g}, {:+.3g}]".format(*found["difference"])
        words = (
            f"{claim.words} ({claim.source})",
            claim.reason,
            claim.design,
            f"{claim.measure} {best_end(claim.measure)}",
        )
        count = f"{found['seeds']} x {found['clips']}"
        verdict = verdict_words(claim, found["better"])
        rows.append((*words, count, found["full"], found["changed"], difference, verdict))
    header = ("claim", "why", "change", "measure", "seeds x clips", "without", "with", "difference, 95 %", "holds")
    return markdown_table(header, rows, words=4)


# -- The command


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add, names = parser.add_argument, list(CLAIMS)
    add("--runs", type=Path, required=True, help="Folder for all work folders and results.")
    add("--only", nargs="+", choices=names, default=names, metavar="CLAIM", help="Claims (default: all).")
    add("--seeds", type=parse_count, default=3, help="Trainings of each variant (default 3).")
    add("--jobs", type=parse_count, default=1, help="Commands at a time, each on its share of the cores (default 1).")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    runs = expand_home(args.runs).resolve()
    folders = make_all([CLAIMS[name] for name in args.only], range(args.seeds), runs, args.jobs)
    verdicts: dict[str, dict[str, Any]] = {}
    for name in args.only:
        claim = CLAIMS[name]
        full, changed = ([read_metrics(folder) for folder in folders[run]] for run in (claim.full, claim.changed))
        verdicts[name] = judge(claim, changed, full)
        clips = list(read_videos(folders[claim.full][0], folders[claim.changed][0]))
        Image.fromarray(picture(clips)).save(runs / f"{name}.png")
        media.write_video(runs / f"{name}.gif", moving_picture(clips), GIF_FPS)
        (runs / "ablations.json").write_text(json.dumps(verdicts, indent=2) + "\n")
    (runs / "ablations.md").write_text(table(verdicts))
    print(f"\n{table(verdicts)}")


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
