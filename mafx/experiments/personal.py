"""What a low-rank update from one clip of a person gains for that person and costs others, see configs/personal.py.

    python -m mafx.experiments.personal --runs RUNS

It runs in the root of the repository, where configs/ lies. The bundled model is trained on 5 seconds of each of some
held-out puppets. Every training is a command that is shown as it runs; what is done already is not done again. Before
and after, it animates that puppet in held-out motions, and other held-out puppets in theirs. It writes RUNS/personal.md
(the table), RUNS/personal.json, and a picture for each puppet, RUNS/NUMBER.png: the reference, then before | after |
truth at some moments. Flags that it does not know go to train.py, for example --config.steps 100.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mafx import media
from mafx.bundled import SUITABLE
from mafx.commands import Parser, add_cache_flag, expand_home, parse_count, run_command
from mafx.compiling import keep_programs
from mafx.data.clips import HALVES, TEST_SEEDS, PuppetClip
from mafx.data.examples import ExampleOptions
from mafx.evaluation.features import MetricNetworks
from mafx.evaluation.protocol import evaluate
from mafx.evaluation.summary import mean_interval
from mafx.experiments.runs import is_trained, picture, read_videos, run_python
from mafx.low_rank import apply_update
from mafx.model import Model
from mafx.pretrained.layout import save_pretrained
from mafx.sources import find_source
from mafx.tables import markdown_table
from mafx.training.config import parse_config
from mafx.training.runs import load_update

NAME = "python -m mafx.experiments.personal"
CONFIG = "personal:puppets:appearance"
SECONDS = 5  # of the clip that is trained on
FIRST = TEST_SEEDS  # identity; the config's rate and kernels were chosen on it
TRAINED_MOVEMENT = 1_500_000  # what is added to an identity for the movement that is trained on, which no test has
FRAMES = 16  # of each animation
MEASURES = ("psnr", "psnr_person")

Evaluation = dict[str, Any]  # what `mafx.evaluation.protocol.evaluate` returns


# -- Clips


def training_clip(identity: int, size: media.Size) -> PuppetClip:
    """The clip of a puppet that is trained on; its end is held out."""
    return PuppetClip(identity, identity + TRAINED_MOVEMENT, size)


def own_clips(identity: int, count: int, size: media.Size) -> list[PuppetClip]:
    """The same puppet in other motions."""
    return [PuppetClip(identity, FIRST + i, size) for i in range(count)]


def other_clips(trained: int, count: int, size: media.Size) -> list[PuppetClip]:
    """Other puppets in motions of their own, behind those that are trained on."""
    return [PuppetClip(FIRST + i, FIRST + i, size) for i in range(trained, trained + count)]


def write_clip(clip: PuppetClip, folder: Path) -> None:
    """Write a clip as a folder with images/ and densepose/."""
    folder.mkdir(parents=True, exist_ok=True)
    for half, pictures in zip(HALVES, clip.read(np.arange(clip.frames)), strict=True):
        media.write_video(folder / half, pictures, clip.fps)


# -- Training and evaluating


def train(identity: int, runs: Path, size: media.Size, flags: Sequence[str]) -> Path:
    """Train an update for a puppet, and return its work folder."""
    clip, folder, workdir = training_clip(identity, size), runs / f"clip{identity}", runs / f"update{identity}"
    if not is_trained(workdir, parse_config(CONFIG, list(flags)).steps):
        write_clip(clip, folder)
        data = ["--config.data.path", str(folder), "--config.data.train_frames", str(int(SECONDS * clip.fps))]
        start = ["--config.init_from", str(runs / "bundled"), "--config.show_clips", "0"]  # they are measured below
        run_python("train.py", "--config", CONFIG, "--workdir", str(workdir), *data, *start, *flags)
    return workdir


def evaluate_model(model: Model, clips: Sequence[PuppetClip], out: Path) -> Evaluation:
    """The evaluation of a model, with the settings that suit the bundled one."""
    return evaluate(
        model,
        clips,
        out,
        options=ExampleOptions(size=model.size, stride=1),
        frames=FRAMES,
        settings={"guidance_scale": 1.0, **SUITABLE},
        networks=MetricNetworks(None),
    )


# -- Judging


def scores_of(evaluation: Evaluation, measure: str) -> np.ndarray:
    """A measure of each clip, in the order of the clips."""
    return np.array([scores["result"][measure] for scores in evaluation["clips"].values()])


def row(title: str, pairs: Sequence[tuple[Evaluation, Evaluation]], measure: str) -> list[object]:
    """A row of the table: before, after, and the difference with its interval over all clips of all pairs."""
    before, after = (np.concatenate([scores_of(pair[i], measure) for pair in pairs]) for i in (0, 1))
    mean, low, high = mean_interval((after - before).tolist())
    difference = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    return [title, measure, len(before), f"{before.mean():.2f}", f"{after.mean():.2f}", difference]


def table(own: Mapping[int, tuple], others: Mapping[int, tuple]) -> str:
    """A Markdown table of what each update gains for its puppet, and what all of them cost others."""
    rows = []
    for measure in MEASURES:
        rows += [row(f"puppet {identity}", [pair], measure) for identity, pair in own.items()]
        rows.append(row("all of them", list(own.values()), measure))
        rows.append(row("other puppets", list(others.values()), measure))
    return markdown_table(("", "measure", "clips", "before", "after", "difference, 95 %"), rows, words=2)


# -- The command


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--runs", type=Path, required=True, help="Folder for all work folders and results.")
    add("--puppets", type=parse_count, default=3, help="Puppets that are trained on (default 3).")
    add("--motions", type=parse_count, default=8, help="Held-out motions of each of them (default 8).")
    add("--others", type=parse_count, default=16, help="Other puppets (default 16).")
    add_cache_flag(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    args, flags = make_parser().parse_known_args(arguments)
    runs = expand_home(args.runs).resolve()
    keep_programs(args.cache)
    model = find_source(None, None).load("float32")
    if not (runs / "bundled").exists():
        save_pretrained(model, runs / "bundled")
    strangers = other_clips(args.puppets, args.others, model.size)
    before_others = evaluate_model(model, strangers, runs / "before" / "others")
    own, others = {}, {}
    for identity in range(FIRST, FIRST + args.puppets):
        workdir = train(identity, runs, model.size, flags)
        personal = apply_update(model, load_update(workdir))
        clips = own_clips(identity, args.motions, model.size)
        before, after = runs / "before" / str(identity), workdir / "own"
        own[identity] = evaluate_model(model, clips, before), evaluate_model(personal, clips, after)
        others[identity] = before_others, evaluate_model(personal, strangers, workdir / "others")
        Image.fromarray(picture(list(read_videos(before, after)))).save(runs / f"{identity}.png")
        print(f"\n{table(own, others)}", flush=True)
    (runs / "personal.md").write_text(table(own, others))
    (runs / "personal.json").write_text(json.dumps({"own": own, "others": others}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
