"""train.py, and sample.py on what it trained, as users call them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from micro import MICRO

import sample
from mafx import media
from mafx.commands import claim_card
from mafx.errors import InputError
from mafx.models.animator import SIZES

ROOT = Path(__file__).parent.parent

# A config file of one's own: it may define its own sizes.
CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from micro import MICRO, micro_config
from mafx.models.animator import SIZES
SIZES["micro"] = MICRO

def get_config(stage):
    changes = {{"steps": 2, "save_every": 1, "show_clips": 1, "show_frames": 2, "show_every": 2, "data.test_clips": 3}}
    return micro_config(stage, **changes)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    (folder / "small.py").write_text(CONFIG.format(tests=str(ROOT / "tests")))
    return folder


def train(folder, *arguments):
    command = [sys.executable, str(ROOT / "train.py"), f"--cache={folder / 'programs'}", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def trained(folder):
    """A run of two steps, and what was said meanwhile."""
    done = train(folder, "--config", "small.py:appearance", "--workdir", "run", "--config.lr", "2e-3")
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stderr


@pytest.fixture
def workdir(trained, monkeypatch):
    monkeypatch.setitem(SIZES, "micro", MICRO)
    return trained[0]


def test_training_says_what_it_reached_and_what_is_next(trained):
    workdir, said = trained
    assert json.loads((workdir / "config.json").read_text())["lr"] == 2e-3
    assert "run has all 2 steps of the appearance stage" in said
    assert "dB PSNR (copying the reference:" in said and "held_out_000002.mp4" in said
    assert said.splitlines()[-1] == "Next: python sample.py --workdir run"
    assert "orbax" not in said.lower() and "WARNING" not in said


def test_a_second_start_goes_on_and_compiles_nothing_anew(folder, trained):
    programs = set((folder / "programs").iterdir())
    arguments = ("--config", "small.py:appearance", "--config.steps", "3", "--config.show_clips", "0")
    done = train(folder, *arguments, "--workdir", "run", "--config.lr=2e-3")
    assert done.returncode == 0, done.stderr
    assert "Going on from step 2" in done.stderr and "all 3 steps" in done.stderr
    new = [path.name for path in set((folder / "programs").iterdir()) - programs]
    assert not any("jit_step" in name for name in new), new


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config", "nowhere:temporal"), "expected a config file or one of the names ablations, card24, clips"),
        (("--config", "tiktok:third"), "one of appearance, temporal; found 'third'"),
        (("--config", "tiktok:temporal", "--config.modle", "sd15"), "modle"),
        (("--config", "tiktok:temporal", "stray"), "'stray' belongs to no flag"),
        (("--workdirs", "x"), "--config"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, folder):
    """Outside of the repository; configs are found by their names."""
    done = train(folder, *arguments, "--workdir", "new")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (folder / "new").exists()


def test_a_run_is_animated(workdir, tmp_path, caplog):
    caplog.set_level("INFO", "mafx")
    out = tmp_path / "run.mp4"
    sample.main(["--workdir", str(workdir), "--steps", "1", "--frames", "2", "--out", str(out), "--cache", ""])
    assert media.read_video(out)[0].shape == (2, 256, 256, 3)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["size"] == [16, 16] and record["zoom"] == 16 and record["settings"]["guidance_scale"] == 1.0
    assert "2 frames of 16x16, enlarged 16 times" in caplog.messages[-1]


def test_clips_are_measured_and_compared(workdir, tmp_path, caplog):
    caplog.set_level("INFO", "mafx")
    common = ["--workdir", str(workdir), "--split", "test", "--clips", "2", "--frames", "3", "--cache", ""]
    sample.main([*common, "--steps", "1", "--out", str(tmp_path / "one")])
    scores = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert len(scores["clips"]) == 2 and "psnr_person" in scores["mean"]["result"]
    sample.main([*common, "--steps", "2", "--checkpoint", "best", "--against", str(tmp_path / "one")])
    assert (workdir / "evaluation" / "metrics.md").is_file()
    assert "| difference | ratio |" in caplog.messages[-1] or "difference" in caplog.messages[-1]


def test_compiling_alone_reads_no_weights(workdir, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "mafx")
    monkeypatch.chdir(tmp_path)
    sample.main(["--workdir", str(workdir), "--steps", "1", "--frames", "2", "--compile_only", "--cache", ""])
    assert "Compiled 6 programs" in caplog.messages[-1]
    assert not list(tmp_path.iterdir())


def test_compiling_says_whether_a_card_is_large_enough(workdir, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "mafx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    common = ["--workdir", str(workdir), "--steps", "1", "--frames", "2", "--compile_only", "--cache", ""]
    sample.main([*common, "--memory", "8"])
    assert "Compiled 6 programs" in caplog.messages[-2]
    assert caplog.messages[-1] == "All networks fit on the device: 0.0 of 6.8 GiB are needed."
    with pytest.raises(InputError, match=r"GiB .* that may be used; take a smaller size"):
        sample.main([*common, "--memory", "0.003"])


def test_most_of_a_card_is_claimed_unless_the_user_said_how_much(monkeypatch):
    for given, expected in (
        ({}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".5"}),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, {"XLA_CLIENT_MEM_FRACTION": ".5"}),
    ):
        monkeypatch.setattr(os, "environ", dict(given))
        claim_card()
        assert os.environ == expected
