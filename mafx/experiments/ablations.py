"""Train and evaluate all ablations of configs/ablations.py, and judge the claim behind each.

    python benchmarks/ablations.py --runs RUNS [--only NAME ...]

Every training and evaluation is a command that is shown as it runs; what is done already is not done again. Writes RUNS/ablations.md, the table,
RUNS/ablations.json, and pictures of each claim, RUNS/NAME.png and NAME.gif, which moves.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.ablations import ABLATIONS, LONG, Ablation, get_config
from mafx import media
from mafx.evaluation.protocol import compare, higher_is_better, read_metrics
from mafx.training.checkpoints import find_step
from mafx.training.config import STAGES

ROOT = Path(__file__).resolve().parents[1]
CLIPS = {16: 64, LONG: 24}  # of so many frames
SAMPLING = ("--split", "test", "--steps", "10")
MOMENTS = 3  # of a clip in a picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--only", nargs="+", choices=list(ABLATIONS), default=list(ABLATIONS))
    args = parser.parse_args()
    found = {}
    for name in dict.fromkeys([*(base(ABLATIONS[name]) for name in args.only), *args.only]):
        ablation = ABLATIONS[name]
        workdir = train(name, ablation, args.runs)
        out = args.runs / name / "evaluation"
        size = ("--clips", str(CLIPS[ablation.frames]), "--frames", str(ablation.frames))
        if not (out / "metrics.json").exists():
            run("sample.py", "--workdir", str(workdir), "--out", str(out), *SAMPLING, *size, *ablation.flags)
        found[name] = read_metrics(out)
        if ablation.claim:
            videos = list(read_videos(args.runs / base(ablation) / "evaluation", out))
            Image.fromarray(picture(videos)).save(args.runs / f"{name}.png")
            media.write_video(args.runs / f"{name}.gif", moving_picture(videos), Fraction(8))
    rows = {name: judge(ABLATIONS[name], found[name], found) for name in found if ABLATIONS[name].claim}
    (args.runs / "ablations.json").write_text(json.dumps(rows, indent=2) + "\n")
    (args.runs / "ablations.md").write_text(table(rows))
    print(f"\n{table(rows)}")


def base(ablation: Ablation) -> str:
    """What it is compared with."""
    return "full_long" if ablation.frames == LONG else "full"


def train(name: str, ablation: Ablation, runs: Path) -> Path:
    """The work folder of an ablation's last stage, trained as far as it needs to be."""
    own = {
        stage for stage in ablation.trains if ablation.config
    }  # where nothing differs, the full model's folders serve
    folder = {stage: runs / (name if stage in own else "full") / stage for stage in STAGES}
    for stage in ablation.trains:
        if (
            not (folder[stage] / "checkpoints").is_dir()
            or find_step(folder[stage], "latest") < get_config(f"{name}:{stage}").steps
        ):
            start = () if stage == "appearance" else ("--config.init_from", str(folder["appearance"]))
            run("train.py", "--config", f"configs/ablations.py:{name}:{stage}", "--workdir", str(folder[stage]), *start)
    return folder["appearance" if ablation.trains == ("appearance",) else "temporal"]


def run(script: str, *arguments: str) -> None:
    command = ["python", script, *arguments]
    print(f"\n$ {shlex.join(command)}", flush=True)
    subprocess.run([sys.executable, str(ROOT / script), *arguments], check=True, cwd=ROOT)


def judge(ablation: Ablation, changed: dict, found: dict[str, dict]) -> dict[str, object]:
    """The claim's measure for both, how much better the full model is by it, and whether that is as claimed."""
    full, name = found[base(ablation)], ablation.measure
    difference = compare(changed, full)["difference"][name]
    low, high = (
        sorted(-x for x in difference[1:]) if higher_is_better(name) else difference[1:]
    )  # of what the full model is better by
    better = "full" if low > 0 else "changed" if high < 0 else "neither"
    return {
        "claim": ablation.claim,
        "measure": name,
        "full": full["mean"]["result"][name],
        "changed": changed["mean"]["result"][name],
        "difference": difference,
        "expected": ablation.better,
        "better": better,
    }


def table(rows: dict[str, dict]) -> str:
    """Markdown, a row per ablation."""
    lines = [
        "| change | claim | measure | full | changed | difference, 95 % | as claimed |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    for name, row in rows.items():
        arrow = "↑" if higher_is_better(row["measure"]) else "↓"
        numbers = "{:.4g} | {:.4g} | {:+.3g} [{:+.3g}, {:+.3g}]".format(
            row["full"][0], row["changed"][0], *row["difference"]
        )
        verdict = (
            "yes"
            if row["better"] == row["expected"]
            else "no difference"
            if row["better"] == "neither"
            else f"no: {row['better']} is better"
        )
        lines.append(f"| {name} | {row['claim']} | {row['measure']} {arrow} | {numbers} | {verdict} |")
    return "\n".join(lines) + "\n"


def read_videos(full: Path, changed: Path, clips: int = 3) -> Iterator[tuple[np.ndarray, ...]]:
    """Of the first clips of two evaluations: reference, full, changed and truth, each `f h w c`."""
    for path in sorted((full / "videos").glob("*.mp4"))[:clips]:
        videos = (media.read_video(folder / "videos" / path.name)[0] for folder in (full, changed))
        (reference, _, ours, truth), (_, _, theirs, _) = (np.split(video, 4, axis=2) for video in videos)
        yield reference, ours, theirs, truth


def picture(videos: Sequence[tuple[np.ndarray, ...]], zoom: int = 3) -> np.ndarray:
    """A row per clip: the reference, then full | changed | truth at some moments."""
    rows = []
    for reference, *others in videos:
        moments = np.linspace(0, len(reference) - 1, MOMENTS + 1).round().astype(int)[1:]
        rows.append(np.concatenate([reference[0], *(x[i] for i in moments for x in others)], axis=1))
    return media.enlarge(np.concatenate(rows), zoom)


def moving_picture(videos: Sequence[tuple[np.ndarray, ...]], zoom: int = 4) -> np.ndarray:
    """`f h w c`, a row per clip: full | changed | truth."""
    rows = [media.side_by_side(*others) for _, *others in videos]
    return media.enlarge(np.concatenate(rows, axis=1), zoom)


if __name__ == "__main__":
    main()
