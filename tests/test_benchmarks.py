"""Benchmarks and experiments: every command says what it does, reads reports rightly, and judges rightly."""

import importlib
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.ablations import ABLATIONS, Ablation
from mafx.benchmarks import measure, quality
from mafx.data.clips import FolderClip
from mafx.densepose import draw_labels
from mafx.experiments import ablations, one_clip, personal

ROOT = Path(__file__).parent.parent
MODULES = [
    f"mafx.{room}.{path.stem}"
    for room in ("benchmarks", "experiments")
    for path in sorted((ROOT / "mafx" / room).glob("[!_]*.py"))
]
NEEDS = {"mafx.benchmarks.published": ("torch", "diffusers")}
TOOLS = ("mafx.benchmarks.measure", "mafx.benchmarks.mutations", "mafx.benchmarks.fuzz_readers")  # no commands


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


@pytest.mark.parametrize(
    ("measure_name", "changes", "better", "words"),
    [
        ("psnr_person", [-1.0, -2.0, -1.5, -1.0], "full", "yes"),
        ("psnr_person", [1.0, 2.0, 1.5, 1.0], "changed", "no: changed is better"),
        ("psnr_person", [1.0, -1.0, 1.0, -1.0], "neither", "no difference"),
        ("flicker_unseen", [1.0, 2.0, 1.5, 1.0], "full", "yes"),
        ("flicker_unseen", [-1.0, -2.0, -1.5, -1.0], "changed", "no: changed is better"),
    ],
)
def test_claims_are_judged_by_the_interval_of_the_difference(measure_name, changes, better, words):
    full = [10.0, 12.0, 11.0, 13.0]
    changed = [x + change for x, change in zip(full, changes, strict=True)]
    verdict = ablations.judge(
        Ablation(claim="it helps", measure=measure_name),
        evaluation(measure_name, changed),
        evaluation(measure_name, full),
    )
    assert verdict["better"] == better and verdict["expected"] == "full"
    assert verdict["difference"][0] == pytest.approx(np.mean(changes))
    row = ablations.table({"no_help": verdict}).splitlines()[-1]
    arrow = "↑" if measure_name == "psnr_person" else "↓"
    assert row.startswith(f"| no_help | it helps | {measure_name} {arrow} | 11.5 |") and row.endswith(f"| {words} |")


@pytest.mark.parametrize(
    ("name", "stages", "last"),
    [
        ("full", ["full/appearance", "full/temporal"], "full/temporal"),
        ("embedding", ["embedding/appearance", "embedding/temporal"], "embedding/temporal"),
        ("no_joint", ["no_joint/temporal"], "no_joint/temporal"),
        ("no_temporal", ["full/appearance"], "full/appearance"),
        ("guidance_2", [], "full/temporal"),
    ],
)
def test_only_what_differs_is_trained(name, stages, last, monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(ablations, "run_script", lambda *words: commands.append(words))
    assert ablations.train(name, ABLATIONS[name], tmp_path) == tmp_path / last
    assert [str(tmp_path / stage) for stage in stages] == [words[4] for words in commands]
    for words in commands:
        stage = Path(words[4]).name
        assert words[:4] == ("train.py", "--config", f"ablations:{name}:{stage}", "--workdir")
        start = Path(words[4]).parent if name != "no_joint" else tmp_path / "full"
        expected = ("--config.init_from", str(start / "appearance")) if stage == "temporal" else ()
        assert words[5:] == expected


def test_sampling_flags_of_ablations_exist():
    parser = importlib.import_module("sample").make_parser()
    for name, ablation in ABLATIONS.items():
        args = parser.parse_args(["--workdir", "RUN", "--out", "OUT", *ablations.SAMPLING, *ablation.flags])
        assert args.steps == 10, name
    assert parser.parse_args(ABLATIONS["own_noise"].flags).shared_noise is False


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
