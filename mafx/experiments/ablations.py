"""Train and evaluate all ablations of configs/ablations.py, and judge the claim behind each.

    python -m mafx.experiments.ablations --runs RUNS [--only NAME ...]

It runs in the root of the repository, where configs/ lies. Every training and every evaluation is a command that is
shown as it runs; what is done already is not done again. It writes RUNS/ablations.md (the table), RUNS/ablations.json,
and for each claim a picture, RUNS/NAME.png, and an animated one, RUNS/NAME.gif.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from configs.ablations import ABLATIONS, LONG, Ablation, get_config
from mafx import media
from mafx.commands import Parser, expand_home, run_command
from mafx.evaluation.protocol import compare, higher_is_better, read_metrics
from mafx.tables import markdown_table
from mafx.training.checkpoints import find_step, read_checkpoint_stamp
from mafx.training.config import CONFIGS, STAGES

NAME = "python -m mafx.experiments.ablations"
ROOT = CONFIGS.parent
CLIPS = {16: 64, LONG: 24}  # frames of the clips -> how many clips are evaluated
SAMPLING = ("--split", "test", "--steps", "10")
SHOWN_CLIPS = 3
MOMENTS = 3  # of a clip in a picture
GIF_FPS = Fraction(8)
PICTURE_ZOOM, GIF_ZOOM = 3, 4

Verdict = dict[str, Any]  # what `judge` returns


class Videos(NamedTuple):
    """Videos of one clip, each uint8 `f H W 3`: of the full model, of the changed one, and the truth."""

    reference: np.ndarray
    full: np.ndarray
    changed: np.ndarray
    truth: np.ndarray


# -- Training and evaluating


def base_name(ablation: Ablation) -> str:
    """The ablation that this one is compared with: no change, on clips of the same length."""
    return "full_long" if ablation.frames == LONG else "full"


def train(name: str, ablation: Ablation, runs: Path) -> Path:
    """Train an ablation as far as it needs to be, and return the work folder of its last stage."""
    # Where no field of the config differs, the folders of the full model serve.
    own_stages = ablation.trains if ablation.config else ()
    workdirs = {stage: runs / (name if stage in own_stages else "full") / stage for stage in STAGES}
    for stage in ablation.trains:
        if not is_trained(workdirs[stage], get_config(f"{name}:{stage}").steps):
            flags = ["--config", f"ablations:{name}:{stage}", "--workdir", str(workdirs[stage])]
            if stage != "appearance":
                flags += ["--config.init_from", str(workdirs["appearance"])]
            run_script("train.py", *flags)
    return workdirs["appearance" if ablation.trains == ("appearance",) else "temporal"]


def is_trained(workdir: Path, steps: int) -> bool:
    return (workdir / "checkpoints").is_dir() and find_step(workdir, "latest") >= steps


def evaluate(workdir: Path, out: Path, ablation: Ablation) -> dict:
    """The evaluation of an ablation in the folder `out`."""
    if not is_evaluated(workdir, out):
        size = ("--clips", str(CLIPS[ablation.frames]), "--frames", str(ablation.frames))
        run_script("sample.py", "--workdir", str(workdir), "--out", str(out), *SAMPLING, *size, *ablation.flags)
    return read_metrics(out)


def is_evaluated(workdir: Path, out: Path) -> bool:
    """Whether `out` has the evaluation of the newest checkpoint, not that of an earlier run in the same folder."""
    if not (out / "metrics.json").exists():
        return False
    settings, stamp = read_metrics(out)["settings"], read_checkpoint_stamp(workdir, "latest")
    return all(settings.get(name) == stamp[name] for name in ("run", "step"))


def run_script(script: str, *arguments: str) -> None:
    """Show a command, and run it in the root of the repository."""
    print(f"\n$ {shlex.join(['python', script, *arguments])}", flush=True)
    subprocess.run([sys.executable, str(ROOT / script), *arguments], check=True, cwd=ROOT)


# -- Judging


def judge(ablation: Ablation, changed: dict, full: dict) -> Verdict:
    """Judge a claim by two evaluations.

    Args:
      ablation: Its `measure` is compared.
      changed: The evaluation of the changed model, as `mafx.evaluation.protocol.read_metrics` gives it.
      full: The same of the full model.

    Returns: The measure of both, the difference between them, which of them is better ("neither", where the interval
      of the difference includes zero), and which was expected to be.
    """
    measure = ablation.measure
    difference = compare(changed, full)["difference"][measure]
    _, low, high = difference
    changed_is_larger, full_is_larger = low > 0, high < 0
    better = "neither"
    if changed_is_larger or full_is_larger:
        better = "changed" if changed_is_larger == higher_is_better(measure) else "full"
    return {
        "claim": ablation.claim,
        "measure": measure,
        "full": full["mean"]["result"][measure],
        "changed": changed["mean"]["result"][measure],
        "difference": difference,
        "expected": ablation.better,
        "better": better,
    }


def verdict_words(verdict: Verdict) -> str:
    """Whether a claim holds."""
    if verdict["better"] == verdict["expected"]:
        return "yes"
    if verdict["better"] == "neither":
        return "no difference"
    return f"no: {verdict['better']} is better"


def table(verdicts: Mapping[str, Verdict]) -> str:
    """A Markdown table with a row for each ablation."""
    rows = []
    for name, verdict in verdicts.items():
        measure = f"{verdict['measure']} {'↑' if higher_is_better(verdict['measure']) else '↓'}"
        mean, low, high = verdict["difference"]
        difference = f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]"
        means = (verdict["full"][0], verdict["changed"][0])
        rows.append((name, verdict["claim"], measure, *means, difference, verdict_words(verdict)))
    header = ("change", "claim", "measure", "full", "changed", "difference, 95 %", "as claimed")
    return markdown_table(header, rows, words=3)


# -- Showing


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


# -- The command


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    names = list(ABLATIONS)
    parser.add_argument("--runs", type=Path, required=True, help="Folder for all work folders and results.")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="Ablations (default: all).")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    runs = expand_home(args.runs).resolve()
    evaluations: dict[str, dict] = {}
    verdicts: dict[str, Verdict] = {}
    # What is compared with comes first.
    for name in dict.fromkeys([*(base_name(ABLATIONS[name]) for name in args.only), *args.only]):
        ablation = ABLATIONS[name]
        out = runs / name / "evaluation"
        evaluations[name] = evaluate(train(name, ablation, runs), out, ablation)
        if ablation.claim:
            base = base_name(ablation)
            verdicts[name] = judge(ablation, evaluations[name], evaluations[base])
            clips = list(read_videos(runs / base / "evaluation", out))
            Image.fromarray(picture(clips)).save(runs / f"{name}.png")
            media.write_video(runs / f"{name}.gif", moving_picture(clips), GIF_FPS)
    (runs / "ablations.json").write_text(json.dumps(verdicts, indent=2) + "\n")
    (runs / "ablations.md").write_text(table(verdicts))
    print(f"\n{table(verdicts)}")


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
