"""Benchmarks and experiments: every command says what it does, reads reports rightly, and judges rightly."""

import dataclasses
import importlib
import importlib.util
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from micro import example

from configs.ablations import CLAIMS, VARIANTS, Claim, Run
from mafx.benchmarks import measure, quality
from mafx.data.clips import FolderClip
from mafx.densepose import draw_labels
from mafx.errors import InputError
from mafx.evaluation.protocol import score
from mafx.experiments import ablations, everything, one_clip, personal
from mafx.experiments.runs import beside_one_another, is_trained
from mafx.training.config import check_config, parse_config

ROOT = Path(__file__).parent.parent
MODULES = [
    f"mafx.{room}.{path.stem}"
    for room in ("benchmarks", "experiments")
    for path in sorted((ROOT / "mafx" / room).glob("[!_]*.py"))
]
NEEDS = {"mafx.benchmarks.published": ("torch", "diffusers")}
TOOLS = (
    "mafx.benchmarks.measure",
    "mafx.benchmarks.mutations",
    "mafx.benchmarks.fuzz_readers",
    "mafx.experiments.runs",
)


@pytest.fixture(params=MODULES)
def module(request):
    for package in NEEDS.get(request.param, ()):
        pytest.importorskip(package, reason=f"{request.param} needs {package}")
    return request.param


def test_modules_are_commands_that_say_how_they_are_called(module):
    imported = importlib.import_module(module)
    if module in TOOLS:
        assert not hasattr(imported, "main")
        return
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {module} [FLAGS]")
    assert f"\n    python -m {module}" in done.stdout, "the docstring has no example"


# -- Speed


def test_rows_are_set_beside_what_was_measured_before():
    measured = {
        "machine": [{"name": "matrix product", "TFLOP/s": 2.0}, {"name": "copy", "GB/s": 7.0}],
        "reference": [{"name": "a step", "seconds": 3.0}, {"name": "memory", "GiB": 1.0}],
        "whole": None,  # it failed
    }
    rows = [{"name": "a step", "seconds": 1.5, "TFLOP/s": 0.5}, {"name": "memory", "GiB": 4.0}]
    step, peak = measure.set_beside(rows, measured)
    assert step == rows[0] | {"of the matrix product": 0.25, "reference": 3.0, "times faster": 2.0}
    assert peak == rows[1]
    assert measure.set_beside(rows, {}) == rows


def test_a_table_has_a_column_for_every_figure():
    table = measure.rows_table([{"name": "a", "seconds": 1.0}, {"name": "b", "GiB": 2.5}], "tiny, whole")
    assert table.splitlines() == [
        "| tiny, whole | seconds | GiB |",
        "| --- | --: | --: |",
        "| a | 1 |  |",
        "| b |  | 2.5 |",
    ]


# -- Quality


def test_videos_are_scored_against_both_and_within_the_person():
    black = np.zeros((2, 8, 8, 3), np.uint8)
    labels = np.zeros((2, 8, 8), np.int64)
    labels[:, :4] = 7  # the person is above
    motion = draw_labels(labels)
    off_above = black.copy()
    off_above[:, :4] = 255
    example = {"motion": motion, "video": off_above}
    to_full, to_truth, to_person = quality.score(black, black, example)
    assert to_full == 100
    assert to_truth == pytest.approx(-10 * math.log10(0.5)) and to_person == pytest.approx(0)


def test_speed_is_relative_to_the_first_row():
    scores = dict.fromkeys(quality.SCORES, 20.0)
    full = {"line": "DDIM", **quality.FULL, "seconds": 3.0, **scores, quality.TO_FULL: 100.0}
    fast = {"line": "reuse", **quality.FULL, "reuse": 2, "guidance_interval": (0, 600), "seconds": 2.0, **scores}
    *_, first, second = quality.table([full, fast]).splitlines()
    assert first == "| DDIM | ddim | 25 | 0 to 1000 | 1 | 1.00 x |  | 20.00 | 20.00 |"
    assert second == "| reuse | ddim | 25 | 0 to 600 | 2 | 1.50 x | 20.00 | 20.00 | 20.00 |"


# -- Experiments


def evaluation(measure_name, values):
    """An evaluation of as many clips as there are values."""
    clips = {f"clip{i}": {"result": {measure_name: x}} for i, x in enumerate(values)}
    return {"clips": clips, "mean": {"result": {measure_name: [float(np.mean(values)), 0.0, 0.0]}}}


def claim_of(**changes):
    claim = Claim("it helps", "ours", "why not", "without it", Run())
    return dataclasses.replace(claim, **changes)


@pytest.mark.parametrize(
    ("measure_name", "changes", "better", "words"),
    [
        ("psnr_person", [-1.0, -2.0, -1.5, -1.0], "full", "yes"),
        ("psnr_person_back", [1.0, 2.0, 1.5, 1.0], "changed", "no: changed is better"),
        ("psnr_person", [1.0, -1.0, 1.0, -1.0], "neither", "no difference"),
        ("flicker_unseen", [1.0, 2.0, 1.5, 1.0], "full", "yes"),
        ("flicker_unseen", [-1.0, -2.0, -1.5, -1.0], "changed", "no: changed is better"),
    ],
)
def test_claims_are_judged_by_the_interval_of_the_difference(measure_name, changes, better, words, monkeypatch):
    full = [10.0, 12.0, 11.0, 13.0]
    changed = [x + change for x, change in zip(full, changes, strict=True)]
    claim = claim_of(measure=measure_name)
    seeds = [[evaluation(measure_name, values)] * 2 for values in (changed, full)]
    found = ablations.judge(claim, *seeds)
    assert found["better"] == better and (found["seeds"], found["clips"]) == (2, 4)
    assert found["difference"].mean == pytest.approx(np.mean(changes))
    monkeypatch.setitem(CLAIMS, "it", claim)
    row = ablations.table({"it": found}).splitlines()[-1]
    arrow = "↑" if "psnr" in measure_name else "↓"
    beginning = f"| it helps (ours) | why not | without it | {measure_name} {arrow} | 2 x 4 | 11.5 |"
    assert row.startswith(beginning) and row.endswith(f"| {words} |")


def test_clips_without_a_measure_count_for_nothing():
    full, changed = evaluation("psnr", [1.0, 2.0, 4.0]), evaluation("psnr", [2.0, float("nan"), 5.5])
    found = ablations.judge(claim_of(measure="psnr"), [changed], [full])
    assert found["clips"] == 2 and found["full"] == 2.5 and found["difference"].mean == 1.25


@pytest.mark.parametrize(("of_seeds", "of_clips", "of_rest"), [(1.0, 0.1, 0.3), (0.1, 1.0, 0.3), (0.0, 0.0, 1.0)])
def test_intervals_hold_the_mean_of_other_seeds_and_clips(rng, of_seeds, of_clips, of_rest):
    held = []
    for _ in range(400):
        values = of_seeds * rng.normal(size=(3, 1)) + of_clips * rng.normal(size=(1, 20))
        interval = ablations.crossed_interval(values + of_rest * rng.normal(size=(3, 20)))
        held.append(interval.low <= 0 <= interval.high)
    assert np.mean(held) > 0.92, "95 % are claimed"


def test_the_interval_of_one_seed_is_that_of_students_test(rng):
    from scipy import stats  # noqa: PLC0415 (slow to import)

    values = rng.normal(size=12)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    found = ablations.crossed_interval(values[None])
    np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high))


@pytest.mark.parametrize(
    ("variant", "stage", "stages"),
    [
        ("full", "temporal", ["full/2/appearance", "full/2/temporal"]),
        ("full", "appearance", ["full/2/appearance"]),
        ("embedding", "temporal", ["embedding/2/appearance", "embedding/2/temporal"]),
        ("set", "temporal", ["full/2/appearance", "set/2/temporal"]),
    ],
)
def test_only_what_differs_is_trained(variant, stage, stages, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(ablations, "run_python", lambda *words: commands.append(words))
    assert ablations.train(variant, stage, 2, tmp_path) == tmp_path / stages[-1]
    assert [str(tmp_path / name) for name in stages] == [words[4] for words in commands]
    for words in commands:
        workdir = Path(words[4])
        own = workdir.parent.parent.name
        assert words[:4] == ("train.py", "--config", f"ablations:{own}:{workdir.name}", "--workdir")
        start = ("--config.init_from", str(tmp_path / stages[0])) if workdir.name == "temporal" else ()
        assert words[5:] == ("--config.seed", "2", *start)


def test_all_runs_of_a_claim_are_made_once(monkeypatch, tmp_path):
    """Each stage of each variant and seed, the first stages first; then the evaluations."""
    made = []
    monkeypatch.setattr(ablations, "train", lambda variant, stage, seed, runs: made.append((stage, variant, seed)))
    monkeypatch.setattr(ablations, "evaluate", lambda run, seed, runs: made.append(("evaluation", run.variant, seed)))
    claims = [CLAIMS[name] for name in ("temporal", "order", "embedding")]
    ablations.make_all(claims, range(2), tmp_path, jobs=1)
    stages = {"appearance": ["full", "embedding"], "temporal": ["full", "set", "embedding"]}
    trained = [(stage, variant, seed) for stage, variants in stages.items() for variant in variants for seed in (0, 1)]
    evaluated = [("evaluation", variant, seed) for variant in ("full", "full", "set", "embedding") for seed in (0, 1)]
    assert made == [*trained, *evaluated]


def test_a_training_that_was_stopped_before_its_first_checkpoint_is_not_done(tmp_path):
    assert not is_trained(tmp_path / "nothing", 10)
    (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
    assert not is_trained(tmp_path / "stopped", 10)


def test_jobs_run_on_their_own_cores():
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores, and a system that gives them to threads")
    before, barrier, found = os.sched_getaffinity(0), threading.Barrier(2, timeout=10), {}

    def work(name):
        barrier.wait()  # both at once
        found[name] = os.sched_getaffinity(0)

    beside_one_another(work, [("a",), ("b",)], 2, "task")
    assert found["a"] | found["b"] == before and not found["a"] & found["b"]
    assert os.sched_getaffinity(0) == before


def test_no_more_jobs_begin_after_one_has_failed():
    done = []

    def work(number):
        if number == 1:
            raise ValueError("one fails")
        time.sleep(0.05)
        done.append(number)

    with pytest.raises(ValueError, match="one fails"):
        beside_one_another(work, [(i,) for i in range(1, 20)], 1, "task")
    assert len(done) < 18


def test_claims_name_what_there_is():
    """Variants, stages, flags of sample.py, measures; and no two ways of sampling share a folder."""
    parser = importlib.import_module("sample").make_parser()
    clip = example((32, 32), 20)
    borders = np.arange(19) == 9
    known = score(clip.video, clip.video, labels=clip.labels, reference_labels=clip.labels[0], borders=borders)
    runs = {run for claim in CLAIMS.values() for run in (claim.full, claim.changed)}
    for run in runs:
        args = parser.parse_args(["--workdir", "RUN", "--out", "OUT", *ablations.SAMPLING, *run.flags])
        assert args.steps == 8 and run.variant in VARIANTS and run.frames in ablations.CLIPS
        assert VARIANTS[run.variant].of in VARIANTS
    folders = {ablations.evaluation_folder(run, Path(run.variant, run.stage)) for run in runs}
    assert len(folders) == len(runs)
    for name, claim in CLAIMS.items():
        assert claim.measure in known and claim.full != claim.changed, name
        assert claim.full.frames == claim.changed.frames and claim.source in ("paper", "ours")
    assert {run.variant for run in runs} == set(VARIANTS)


def test_everything_is_listed_and_what_is_there_is_not_done_again(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(everything, "run_python", lambda *words: ran.append(words))
    everything.main(["--runs", str(tmp_path), "--list"])
    listed = capsys.readouterr().out
    assert not ran and "$ python train.py --config puppets:appearance" in listed and "h on two CPU cores" in listed

    (tmp_path / "speed_quality.json").write_text("{}")
    everything.main(["--runs", str(tmp_path), "--only", "personal", "speed_quality"])
    assert ran == [("-m", "mafx.experiments.personal", "--runs", str(tmp_path / "personal"))]
    assert "speed_quality.json is there" in capsys.readouterr().out


def test_the_folder_of_everything_is_made_and_a_failure_is_one_sentence(tmp_path, monkeypatch):
    """Some commands write into the folder itself."""
    failing = everything.Part("it", 0.1, (("-c", "raise SystemExit(3)"),), tmp_path / "runs" / "mirror.json")
    monkeypatch.setattr(everything, "parts_in", lambda runs: {"mirror": failing})
    with pytest.raises(InputError, match="a command ended with status 3, and says why above: python -c"):
        everything.main(["--runs", str(tmp_path / "runs"), "--only", "mirror"])
    assert (tmp_path / "runs").is_dir()


def test_the_commands_of_everything_can_be_read(tmp_path):
    """Each one by its own parser, and its config by the trainer's."""
    for part in everything.parts_in(tmp_path).values():
        assert part.result.is_relative_to(tmp_path)
        for script, *flags in part.commands:
            if script == "train.py":
                check_config(parse_config(flags[flags.index("--config") + 1], flags[4:]))
            elif script == "sample.py":
                importlib.import_module("sample").make_parser().parse_args(flags)
            else:
                module = importlib.import_module(flags[0])
                module.make_parser().parse_args(flags[1:])


def test_the_nearest_render_differs_in_the_fewest_pixels():
    trained = np.array([[[0, 0], [0, 0]], [[1, 1], [2, 2]], [[1, 1], [1, 1]]])
    held_out = np.array([[[1, 1], [2, 3]], [[0, 0], [0, 4]]])
    assert one_clip.nearest_renders(trained, held_out).tolist() == [1, 0]


def test_no_clip_of_one_person_is_trained_on_and_measured(tmp_path):
    trained = [personal.training_clip(personal.FIRST + i, (8, 8)) for i in range(3)]
    own = [clip for i in range(3) for clip in personal.own_clips(personal.FIRST + i, 8, (8, 8))]
    others = personal.other_clips(3, 8, (8, 8))
    assert not {clip.movement for clip in trained} & {clip.movement for clip in own + others}
    assert not {clip.identity for clip in trained} & {clip.identity for clip in others}
    assert len({clip.name for clip in trained + own + others}) == 3 + 24 + 8

    personal.write_clip(trained[0], tmp_path)
    written, indices = FolderClip(tmp_path), np.arange(trained[0].frames)
    assert written.frames == trained[0].frames
    for got, expected in zip(written.read(indices), trained[0].read(indices), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_table_of_one_person_has_differences_clip_by_clip():
    def evaluation(*values):
        return {"clips": {str(i): {"result": {"psnr": x, "psnr_person": x - 5}} for i, x in enumerate(values)}}

    own = {7: (evaluation(20.0, 22.0), evaluation(21.0, 25.0)), 8: (evaluation(10.0, 10.0), evaluation(12.0, 14.0))}
    others = {7: (evaluation(20.0), evaluation(19.0)), 8: (evaluation(20.0), evaluation(18.0))}
    lines = personal.table(own, others).splitlines()
    assert lines[2].startswith("| puppet 7 | psnr | 2 | 21.00 | 23.00 | +2.00 [")
    assert lines[4].startswith("| all of them | psnr | 4 | 15.50 | 18.00 | +2.50 [")
    assert lines[9].startswith("| other puppets | psnr_person | 2 | 15.00 | 13.50 | -1.50 [-2.00, -1.00]")
