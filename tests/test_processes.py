"""Training in processes of its own: killed and started again, and several that train together."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import QUICK_COMPILATION, relative_error

from mafx.training.checkpoints import find_step, read_parameters


@pytest.fixture(scope="module")
def environment(programs):
    """Processes share what they compile. Each has one device unless it asks for more."""
    return os.environ | {"XLA_FLAGS": QUICK_COMPILATION}


def start(environment, workdir, **settings):
    command = [sys.executable, str(Path(__file__).parent / "micro.py"), str(workdir), json.dumps(settings)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, status=0):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output[-3000:]
    return output


def losses(workdir):
    values = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {x["step"]: x["loss"] for x in values if "loss" in x}


TEN = {"steps": 10, "save_every": 5}


@pytest.fixture(scope="module")
def ten_steps(environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("ten") / "whole"
    finish(start(environment, workdir, config=TEN))
    return workdir


def test_a_disk_that_becomes_full_is_one_sentence_and_the_run_goes_on(environment, ten_steps, tmp_path):
    """Files cannot grow any more from some moment on."""
    config = {"save_every": 5}
    process = start(environment, tmp_path, config=config | {"steps": 100000})
    while process.poll() is None and not (tmp_path / "checkpoints" / "10").exists():
        time.sleep(0.05)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    output = finish(process, 1)
    assert re.fullmatch(r"train.py: cannot write .*: File too large; the same command .*", output.splitlines()[-1])
    assert "Traceback" not in output and output.count("train.py:") == 1, output[-3000:]
    steps = find_step(tmp_path, "latest") + 2
    assert "Going on from step" in finish(start(environment, tmp_path, config=config | {"steps": steps}))
    found = losses(tmp_path)
    assert [*found] == [*range(1, steps + 1)] and losses(ten_steps).items() <= found.items()


@pytest.mark.parametrize(
    ("number", "batches", "status", "seen"),
    [(signal.SIGKILL, 8, -signal.SIGKILL, 7), (signal.SIGTERM, 5, 0, 5)],
)
def test_ten_steps_equal_five_a_signal_and_five(environment, ten_steps, tmp_path, number, batches, status, seen):
    finish(start(environment, tmp_path, config=TEN, signal=[number, batches]), status)
    assert max(losses(tmp_path)) == seen
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["5"]
    assert "Going on from step 5" in finish(start(environment, tmp_path, config=TEN))
    assert losses(tmp_path) == losses(ten_steps), "other batches, or other parameters"
    whole, parts = (read_parameters(workdir)[0] for workdir in (ten_steps, tmp_path))
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])


def free_address():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def test_a_process_says_that_another_is_gone(environment, tmp_path):
    """Within a minute, in one sentence."""
    settings = {"config": {"steps": 8, "save_every": 2}, "devices": 1}
    address = free_address()
    first = start(environment, tmp_path, distributed=[address, 2, 0], **settings)
    finish(start(environment, tmp_path, distributed=[address, 2, 1], signal=[9, 4], **settings), -signal.SIGKILL)
    began = time.monotonic()
    said = finish(first, 1)
    assert time.monotonic() - began < 60
    assert said.splitlines()[-1].startswith("train.py: another process is gone (") and "Traceback" not in said


def test_two_processes_equal_one(environment, tmp_path):
    """Two processes of two devices each, and one of four; parameters spread over two of them."""
    config = {"batch": 4, "steps": 2, "mesh.data": 2, "mesh.fsdp": 2, "show_clips": 1, "show_frames": 2}
    address = free_address()
    pair = [
        start(environment, tmp_path / "two", config=config, devices=2, distributed=[address, 2, i]) for i in range(2)
    ]
    for process in pair:
        finish(process)
    finish(start(environment, tmp_path / "one", config=config, devices=4))
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() == {1, 2}
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-5)
    one, two = (read_parameters(tmp_path / name)[0] for name in ("one", "two"))
    flat = [np.concatenate([np.ravel(tree[name]) for name in one]) for tree in (one, two)]
    assert relative_error(flat[1], flat[0]) < 1e-5
