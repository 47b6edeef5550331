"""A run's held-out clips measured: the same numbers again, also when it was interrupted, and for any number of processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mafx import media
from mafx.data.clips import puppet_clips
from mafx.data.pipeline import Sampling
from mafx.errors import InputError
from mafx.evaluation.protocol import compare, evaluate, read_metrics

HERE = Path(__file__).parent
SETTINGS = {"steps": 1, "guidance_scale": 1.0}
SAMPLING = Sampling(size=(16, 16), stride=2)
CLIPS = puppet_clips("test", 3, (16, 16), frames=9)


@pytest.fixture(scope="module")
def evaluated(micro, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return evaluate(micro, CLIPS, out, SAMPLING, 3, {"step": 1}, SETTINGS), out


def test_what_is_written(evaluated):
    found, out = evaluated
    assert read_metrics(out) == json.loads((out / "metrics.json").read_text())
    assert list(found["clips"]) == [clip.name for clip in CLIPS]
    values = [scores["copying"]["psnr_person"] for scores in found["clips"].values()]
    mean, low, high = found["mean"]["copying"]["psnr_person"]
    assert mean == pytest.approx(np.mean(values)) and min(values) <= low < mean < high <= max(values)
    assert found["mean"]["result"]["psnr"][0] < found["mean"]["copying"]["psnr"][0]  # the model is random
    video, fps = media.read_video(out / "videos" / f"{CLIPS[0].name}.mp4")
    assert video.shape == (3, 16, 4 * 16, 3) and fps == 6  # every second frame of 12 a second
    assert "| psnr ↑ |" in (out / "metrics.md").read_text()


def test_goes_on_after_an_interruption_and_refuses_other_settings(evaluated, micro, tmp_path):
    found, out = evaluated
    (tmp_path / "clips").mkdir()
    for clip in CLIPS[:2]:
        name = f"clips/{clip.name}.json"
        (tmp_path / name).write_text((out / name).read_text())
    assert repr(evaluate(micro, CLIPS, tmp_path, SAMPLING, 3, {"step": 1}, SETTINGS)["mean"]) == repr(found["mean"])
    assert [p.name for p in (tmp_path / "videos").iterdir()] == [f"{CLIPS[2].name}.mp4"]
    with pytest.raises(InputError, match="steps: 1, now 2"):
        evaluate(micro, CLIPS, tmp_path, SAMPLING, 3, {"step": 1}, SETTINGS | {"steps": 2})


ONE_OF_FOUR = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 4, int(sys.argv[3]))
import test_evaluation as t
from micro import MICRO
from mafx.model import random_model
t.evaluate(random_model(MICRO, seed=1), t.CLIPS, Path(sys.argv[1]), t.SAMPLING, 3, {"step": 1}, t.SETTINGS)
"""


def test_four_processes_find_what_one_does(evaluated, tmp_path):
    found, _ = evaluated
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}", "XLA_FLAGS": ""}
    commands = [[sys.executable, "-c", ONE_OF_FOUR, str(tmp_path), address, str(i)] for i in range(4)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(errors)
    assert json.dumps(read_metrics(tmp_path)) == json.dumps(found)


def test_comparison_is_clip_by_clip(evaluated):
    found, _ = evaluated
    better = json.loads(json.dumps(found))
    for scores in better["clips"].values():
        scores["result"]["psnr"] += 1
    assert compare(better, found)["psnr"] == pytest.approx([1, 1, 1])
    del better["clips"][CLIPS[0].name]
    with pytest.raises(InputError, match="only one of them for puppet1000000"):
        compare(better, found)
