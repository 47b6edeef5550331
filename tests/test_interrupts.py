"""Ctrl-C ends every command in one line with status 130, and keeps what is done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT = 120  # seconds

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from micro import MICRO, micro_config
from mafx.models.animator import SIZES
SIZES["micro"] = MICRO

def get_config(stage):
    return micro_config(stage, save_every=100000)
"""

# A command that has begun a file, and waits where Python sees no signals: in C, as XLA's compiler does.
WAITS = """
import pathlib, sys, threading
from mafx.commands import run_command
from mafx.interrupts import advice_at_interrupt, partial_path

def main():
    path = pathlib.Path("partial.mp4")
    with partial_path(path), advice_at_interrupt("the rest is kept"):
        path.write_text("half")
        {waits}

sys.exit(run_command("waits", main))
"""
IN_C = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
IN_A_CALLBACK = """
        import ctypes
        kind = ctypes.CFUNCTYPE(None)

        @kind
        def called():
            import time
            while True:
                time.sleep(0.01)

        called()
"""


def start(folder, *command):
    with open(folder.with_suffix(".log"), "w") as errors:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=errors,
        )


def said(folder):
    return folder.with_suffix(".log").read_text()


def wait_for(found, process, folder):
    ends = time.monotonic() + TIMEOUT
    while not found():
        assert process.poll() is None and time.monotonic() < ends, said(folder)
        time.sleep(0.05)


def interrupt(process, folder):
    """Its exit status, and everything that it said."""
    process.send_signal(signal.SIGINT)
    return process.wait(TIMEOUT), said(folder)


@pytest.mark.parametrize("waits", [IN_C, IN_A_CALLBACK], ids=["in C", "in a callback"])
def test_a_command_leaves_at_once_and_removes_what_is_half_written(tmp_path, waits):
    process = start(tmp_path, "-c", WAITS.format(waits=waits))
    wait_for((tmp_path / "partial.mp4").exists, process, tmp_path)
    assert interrupt(process, tmp_path) == (130, "\nwaits: interrupted; the rest is kept\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only: /proc tells what a process has imported")
@pytest.mark.parametrize("command", ["mafx.data.builders", "mafx.ahead", "mafx.training.fit", "mafx.experiments.kills"])
def test_a_command_that_still_imports_leaves_in_one_line(tmp_path, command):
    process = start(tmp_path, "-m", command)
    wait_for(lambda: "numpy" in Path(f"/proc/{process.pid}/maps").read_text(), process, tmp_path)
    assert interrupt(process, tmp_path) == (130, f"\npython -m {command}: interrupted\n")


# Reads a clip for ever.
PREPARES = """
import pathlib, sys, threading
from mafx.data import builders, staging

def read_raw(clip):
    pathlib.Path("reading").touch()
    {waits}

staging.read_raw = read_raw
sys.exit(builders.main(["clips", "--manual_dir", "raw", "--data_dir", "data"]))
"""


def test_a_preparation_says_that_it_goes_on_and_leaves_nothing_half_written(tmp_path):
    for name in "ab":
        for half in ("images", "densepose"):
            (tmp_path / "raw" / name / half).mkdir(parents=True)
    process = start(tmp_path, "-c", PREPARES.format(waits=IN_C))
    wait_for((tmp_path / "reading").exists, process, tmp_path)
    status, errors = interrupt(process, tmp_path)
    assert status == 130 and "Traceback" not in errors, errors
    last = "python -m mafx.data.builders: interrupted; what is done is kept, and the same command goes on from there"
    assert errors.splitlines()[-1] == last
    assert not list(tmp_path.rglob("*.part"))


# As a training does: the first Ctrl-C asks it to save.
ASKED = """
import pathlib, sys, threading
from mafx.commands import run_command
from mafx.interrupts import instead_of_leaving

def main():
    with instead_of_leaving(pathlib.Path("asked").touch):
        pathlib.Path("begun").touch()
        {waits}

sys.exit(run_command("waits", main))
"""


def test_the_second_interrupt_leaves_where_the_first_one_asks(tmp_path):
    process = start(tmp_path, "-c", ASKED.format(waits=IN_C))
    wait_for((tmp_path / "begun").exists, process, tmp_path)
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "asked").exists, process, tmp_path)
    assert interrupt(process, tmp_path) == (130, "\nwaits: interrupted\n")


def importing(process, folder):
    return "jaxlib" in Path(f"/proc/{process.pid}/maps").read_text()


def compiling(process, folder):
    return "Loaded the bundled model" in said(folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux only: /proc tells what a process has imported")
@pytest.mark.parametrize("moment", [importing, compiling])
def test_sampling_leaves_in_one_line(tmp_path, moment):
    process = start(tmp_path, ROOT / "sample.py", "--cache", "", "--steps", "4")
    wait_for(lambda: moment(process, tmp_path), process, tmp_path)
    time.sleep(0.5)
    status, errors = interrupt(process, tmp_path)
    assert status == 130 and "Traceback" not in errors, errors
    assert errors.splitlines()[-1] == "sample.py: interrupted"
    assert not list(tmp_path.iterdir())


def test_training_finishes_its_step_and_saves(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG.format(tests=str(ROOT / "tests")))
    command = ["--config", "small.py:appearance", "--workdir", "run", "--cache", "", "--config.steps", "100000"]
    process = start(tmp_path, ROOT / "train.py", *command)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text(), process, tmp_path)
    status, errors = interrupt(process, tmp_path)
    assert status == 130 and "Traceback" not in errors, errors
    last = errors.splitlines()[-1]
    assert last.startswith("train.py: stopped by a signal at step ")
    assert f"step {max(int(path.name) for path in (tmp_path / 'run' / 'checkpoints').iterdir())};" in last
