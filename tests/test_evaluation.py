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
from mafx.data.examples import ExampleOptions
from mafx.errors import InputError
from mafx.evaluation.features import Networks, frechet_distance
from mafx.evaluation.protocol import compare, evaluate, read_metrics

HERE = Path(__file__).parent
SETTINGS = {"steps": 1, "guidance_scale": 1.0}
SAMPLING = ExampleOptions(size=(16, 16), stride=2)
NONE = Networks(None)
CLIPS = puppet_clips("test", 3, (16, 16), frames=9)


@pytest.fixture(scope="module")
def evaluated(micro, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return evaluate(micro, CLIPS, out, SAMPLING, 3, {"step": 1}, SETTINGS, NONE), out


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
    for name in (x for clip in CLIPS[:2] for x in (f"clips/{clip.name}.json", f"features/{clip.name}.npz")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((out / name).read_bytes())
    assert repr(evaluate(micro, CLIPS, tmp_path, SAMPLING, 3, {"step": 1}, SETTINGS, NONE)["mean"]) == repr(
        found["mean"]
    )
    assert [p.name for p in (tmp_path / "videos").iterdir()] == [f"{CLIPS[2].name}.mp4"]
    with pytest.raises(InputError, match="steps: 1, now 2"):
        evaluate(micro, CLIPS, tmp_path, SAMPLING, 3, {"step": 1}, SETTINGS | {"steps": 2}, NONE)


ONE_OF_FOUR = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 4, int(sys.argv[3]))
import test_evaluation as t
from micro import MICRO
from mafx.model import random_model
t.evaluate(random_model(MICRO, seed=1), t.CLIPS, Path(sys.argv[1]), t.SAMPLING, 3, {"step": 1}, t.SETTINGS, t.NONE)
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
        scores["result"]["l1"] /= 2
    difference, ratio = compare(better, found).values()
    assert difference["psnr"] == pytest.approx([1, 1, 1]) and ratio["l1"] == pytest.approx([0.5, 0.5, 0.5])
    del better["clips"][CLIPS[0].name]
    with pytest.raises(InputError, match="only one of them for puppet1000000"):
        compare(better, found)


class Colours(Networks):
    """A network that is at hand: the mean colour of each frame."""

    def __init__(self):
        self._tensors = {"fid": None}

    def features(self, video, person):
        return {"fid": video.mean((1, 2))}


def test_distances_are_between_all_clips(micro, tmp_path):
    found = evaluate(micro, CLIPS, tmp_path, SAMPLING, 3, {"step": 1}, SETTINGS, Colours())
    videos = [media.read_video(tmp_path / "videos" / f"{clip.name}.mp4")[0] for clip in CLIPS]
    copies, truths = (np.concatenate([np.split(x, 4, axis=2)[i].mean((1, 2)) for x in videos]) for i in (0, 3))
    assert found["mean"]["copying"]["fid"][0] == pytest.approx(
        frechet_distance(copies, truths), rel=0.2
    )  # the videos are compressed
    assert found["mean"]["result"]["fid"][0] > 2 * found["mean"]["copying"]["fid"][0]  # the model is random
    again = evaluate(micro, CLIPS, tmp_path, SAMPLING, 3, {"step": 1}, SETTINGS, Colours())
    assert repr(again) == repr(found)
    with pytest.raises(InputError, match=r"networks: \['fid'\], now \[\]"):
        evaluate(micro, CLIPS, tmp_path, SAMPLING, 3, {"step": 1}, SETTINGS, NONE)
