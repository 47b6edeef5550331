"""Evaluation gives the same numbers again, also after an interruption, and for any number of processes."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from micro import MICRO

from mafx import jobs, media
from mafx.data.clips import PuppetClip, puppet_clips
from mafx.data.examples import ExampleOptions
from mafx.errors import InputError
from mafx.evaluation import protocol
from mafx.evaluation.features import MetricNetworks, frechet_distance
from mafx.evaluation.protocol import evaluate, read_metrics
from mafx.evaluation.summary import compare, frechet_distances, summarise, table
from mafx.model import random_model
from mafx.program import Animation
from mafx.settings import Settings
from mafx.sources import find_source

HERE = Path(__file__).parent
SETTINGS = {"steps": 1, "guidance_scale": 1.0, "guidance_interval": (0, 1000)}
OPTIONS = ExampleOptions(size=(16, 16), stride=2)
NONE = MetricNetworks(None)
CLIPS = puppet_clips("test", 3, (16, 16), frames=9)


def run(model, out, clips=CLIPS, **changes):
    """Evaluate with the settings of these tests, and `changes`."""
    arguments = {"options": OPTIONS, "frames": 3, "settings": SETTINGS, "networks": NONE}
    return evaluate(model, clips, out, **(arguments | changes))


@pytest.fixture(scope="module")
def evaluated(micro, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    return run(micro, out), out


def test_what_is_written(evaluated):
    evaluation, out = evaluated
    assert read_metrics(out) == json.loads((out / "metrics.json").read_text())
    assert list(evaluation["clips"]) == [clip.name for clip in CLIPS]
    values = [scores["copying"]["psnr_person"] for scores in evaluation["clips"].values()]
    mean, low, high = evaluation["mean"]["copying"]["psnr_person"]
    assert mean == pytest.approx(np.mean(values)) and min(values) <= low < mean < high <= max(values)
    assert evaluation["mean"]["result"]["psnr"][0] < evaluation["mean"]["copying"]["psnr"][0]  # the model is random
    video, fps = media.read_video(out / "videos" / f"{CLIPS[0].name}.mp4")
    assert video.shape == (3, 16, 4 * 16, 3) and fps == 6  # every second frame of 12 a second
    assert "| psnr ↑ |" in (out / "metrics.md").read_text()


def test_goes_on_after_an_interruption_and_refuses_other_settings(evaluated, micro, tmp_path):
    evaluation, out = evaluated
    for name in (x for clip in CLIPS[:2] for x in (f"clips/{clip.name}.json", f"features/{clip.name}.npz")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((out / name).read_bytes())
    assert repr(run(micro, tmp_path)["mean"]) == repr(evaluation["mean"])
    assert [p.name for p in (tmp_path / "videos").iterdir()] == [f"{CLIPS[2].name}.mp4"]
    with pytest.raises(InputError, match="steps 1, expected 2"):
        run(micro, tmp_path, settings=SETTINGS | {"steps": 2})
    with pytest.raises(InputError, match=r"guidance_interval \[0, 1000\], expected None"):
        run(micro, tmp_path, settings={"steps": 1, "guidance_scale": 1.0})


def test_three_mixed_up_evaluations_are_refused(evaluated, micro):
    """Of other weights, of another dtype, of other data: by name, before anything is animated."""
    _, out = evaluated
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), micro.params)
    for model, clips, field in (
        (random_model(MICRO, seed=2), CLIPS, "weights"),
        (dataclasses.replace(micro, params=half), CLIPS, "dtype"),
        (micro, [dataclasses.replace(clip, fps=Fraction(10)) for clip in CLIPS], "data"),
    ):
        with pytest.raises(InputError, match=rf"results whose stamp has {field} '\w+', expected '\w+'; choose another"):
            run(model, out, clips)


def quick(monkeypatch):
    """Copies the reference instead of animating it."""

    def copy(model, reference, motion, **_):
        video = np.broadcast_to(reference / np.float32(255), motion.shape)
        return Animation(video=video, latents=np.zeros(0), borders=np.zeros(len(motion) - 1, bool))

    monkeypatch.setattr(protocol, "animate", copy)


def test_what_a_kill_leaves_blocks_nothing(micro, tmp_path, monkeypatch):
    quick(monkeypatch)
    (tmp_path / "clips").mkdir()
    for name in (f".{CLIPS[0].name}.json", f".{CLIPS[0].name}.json.part"):
        (tmp_path / "clips" / name).write_text('{"settings": {"fra')
    assert len(run(micro, tmp_path)["clips"]) == 3


def test_names_of_clips_lead_nowhere_else(micro, tmp_path, monkeypatch):
    quick(monkeypatch)

    class Named(PuppetClip):
        name = "../../outside"

    class Hidden(PuppetClip):
        name = ".hidden"

    out = tmp_path / "a" / "b"
    evaluation = run(micro, out, [Named(1, 1, (16, 16), 9), Hidden(1, 1, (16, 16), 9)])
    assert list(evaluation["clips"]) == ["../../outside", ".hidden"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and [path.name for path in out.parent.iterdir()] == ["b"]
    for folder, suffix in protocol.FOLDERS.items():
        names = {path.name for path in (out / folder).iterdir()}
        assert names == {f"..%2F..%2Foutside{suffix}".replace("..", "%2E.", 1), f"%2Ehidden{suffix}"}


def test_results_are_overwritten_on_demand_and_nothing_else_is(micro, tmp_path, monkeypatch):
    quick(monkeypatch)
    run(micro, tmp_path)
    (tmp_path / "videos" / "notes.txt").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    evaluation = run(micro, tmp_path, CLIPS[:1], settings=SETTINGS | {"steps": 2}, overwrite=True)
    assert evaluation["settings"]["steps"] == 2
    assert [path.name for path in (tmp_path / "clips").iterdir()] == [f"{CLIPS[0].name}.json"]
    assert (tmp_path / "videos" / "notes.txt").read_text() == "mine" and (tmp_path / "checkpoints").is_dir()


def test_a_changed_result_is_told(micro, tmp_path, monkeypatch):
    quick(monkeypatch)
    run(micro, tmp_path)
    path = tmp_path / "clips" / f"{CLIPS[0].name}.json"
    path.write_text(path.read_text().replace('"psnr": ', '"psnr": 1', 1))
    with pytest.raises(InputError, match=r"puppet1000000-1000000\.json is damaged"):
        run(micro, tmp_path)


def test_all_devices_of_a_process_take_part(micro, tmp_path, monkeypatch):
    given = []

    def evaluated(*_, mesh, **__):
        given.append(mesh)
        return {"mean": {}}

    monkeypatch.setattr(jobs, "evaluate", evaluated)
    monkeypatch.setattr(jobs, "find_step", lambda *_: 1)
    data = ml_collections.ConfigDict({"name": "puppets", "size": (16, 16), "test_clips": 1})
    source = dataclasses.replace(find_source(None, None), data=data, load=lambda _: micro)
    options = {"workdir": tmp_path, "checkpoint": "latest", "split": "test", "out": tmp_path, "options": OPTIONS}
    jobs.evaluate_run(source, Settings(), "float32", **options, clips=1, frames=1, metric_networks=None, against=None)
    assert given[0].size == len(jax.local_devices()) > 1


def test_another_evaluation_is_read_before_anything_is_loaded(evaluated, tmp_path, monkeypatch):
    """One that is not there, and one of other data."""
    monkeypatch.setattr(jobs, "find_step", lambda *_: 1)
    data = ml_collections.ConfigDict({"name": "puppets", "size": (16, 16), "test_clips": 1})
    source = dataclasses.replace(find_source(None, None), data=data, load=lambda _: pytest.fail("loaded"))
    options = {"workdir": tmp_path, "checkpoint": "latest", "split": "test", "out": tmp_path, "options": OPTIONS}
    for against, message in ((tmp_path, "expected an evaluation"), (evaluated[1], "has data .*evaluate both alike")):
        with pytest.raises(InputError, match=message):
            jobs.evaluate_run(
                source, Settings(), "float32", **options, clips=1, frames=3, metric_networks=None, against=against
            )


ONE_OF_FOUR = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 4, int(sys.argv[3]))
import test_evaluation
from micro import MICRO
from mafx.model import random_model
test_evaluation.run(random_model(MICRO, seed=1), Path(sys.argv[1]))
"""


def test_four_processes_find_what_one_does(evaluated, tmp_path):
    evaluation, _ = evaluated
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}", "XLA_FLAGS": flags}
    commands = [[sys.executable, "-c", ONE_OF_FOUR, str(tmp_path), address, str(i)] for i in range(4)]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(errors)
    found = read_metrics(tmp_path)
    assert found["settings"] == evaluation["settings"] and found["clips"].keys() == evaluation["clips"].keys()
    # Programs for one device round otherwise than those for eight, so that a colour may be another one by 1 of 255.
    for own, expected in zip(jax.tree.leaves(found["mean"]), jax.tree.leaves(evaluation["mean"]), strict=True):
        assert own == pytest.approx(expected, rel=1e-3, nan_ok=True)


def test_comparison_is_clip_by_clip(evaluated):
    evaluation, _ = evaluated
    better = json.loads(json.dumps(evaluation))
    for scores in better["clips"].values():
        scores["result"]["psnr"] += 1
        scores["result"]["l1"] /= 2
    difference, ratio = compare(better, evaluation).values()
    assert difference["psnr"] == pytest.approx([1, 1, 1]) and ratio["l1"] == pytest.approx([0.5, 0.5, 0.5])
    del better["clips"][CLIPS[0].name]
    with pytest.raises(InputError, match="only one of them for puppet1000000"):
        compare(better, evaluation)


@pytest.fixture(scope="module")
def unequal(micro, tmp_path_factory):
    """An evaluation of a clip that is one window and one that is several."""
    clips = [puppet_clips("test", 2, (16, 16), frames)[i] for i, frames in enumerate((5, 9))]
    settings = SETTINGS | {"window": 4, "overlap": 1}
    options = ExampleOptions(size=(16, 16), stride=1)
    out = tmp_path_factory.mktemp("unequal")
    return run(micro, out, clips, frames=None, options=options, settings=settings)


def test_clips_of_unequal_length(unequal):
    """A measure that only some clips have is a mean over these, whichever clip comes first."""
    one, several = unequal["clips"].values()
    for measure in ("difference_error_at_borders", "difference_error_person_elsewhere"):
        assert measure not in one["result"] and measure in several["result"]
        assert unequal["mean"]["result"][measure][0] == several["result"][measure]
        assert f"| {measure} ↓ |" in table(unequal["mean"])
    backwards = summarise(dict(reversed(unequal["clips"].items())))
    assert {answer: set(values) for answer, values in backwards.items()} == {
        answer: set(values) for answer, values in unequal["mean"].items()
    }
    assert backwards["result"]["psnr"][0] == pytest.approx(np.mean([x["result"]["psnr"] for x in (one, several)]))


@pytest.mark.parametrize("order", [1, -1])
def test_clips_of_unequal_length_are_compared(unequal, order):
    clips = dict(list(unequal["clips"].items())[::order])
    comparison = compare({"clips": clips}, unequal)
    for measure in ("psnr", "difference_error", "difference_error_at_borders"):
        assert comparison["difference"][measure][0] == 0
    assert comparison["ratio"]["difference_error_at_borders"][0] == 1
    missing = compare(unequal, {"clips": {name: {"result": {"psnr": 0.0}} for name in clips}})
    assert math.isnan(missing["difference"]["l1"][0]) and not math.isnan(missing["difference"]["psnr"][0])


def test_clips_too_short_for_a_network(tmp_path, rng):
    """Features of no window count for nothing; where no clip has any, the distance is not defined."""
    nothing = np.zeros((0, 0), np.float32)
    truth, result = rng.normal(size=(5, 2)), rng.normal(size=(4, 2))
    np.savez(tmp_path / "a.npz", **{"result/fvd": nothing, "truth/fvd": nothing})
    np.savez(tmp_path / "b.npz", **{"result/fvd": result, "truth/fvd": truth})
    assert math.isnan(frechet_distances([tmp_path / "a.npz"])["result"]["fvd"][0])
    both = frechet_distances([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert both["result"]["fvd"][0] == frechet_distance(result, truth)


class Colours(MetricNetworks):
    """A network that needs no file: the mean colour of each frame."""

    def __init__(self):
        self._tensors = {"fid": None}

    def features(self, video, person):
        return {"fid": video.mean((1, 2))}


def test_distances_are_between_all_clips(micro, tmp_path):
    evaluation = run(micro, tmp_path, networks=Colours())
    videos = [media.read_video(tmp_path / "videos" / f"{clip.name}.mp4")[0] for clip in CLIPS]
    copies, truths = (np.concatenate([np.split(x, 4, axis=2)[i].mean((1, 2)) for x in videos]) for i in (0, 3))
    fid = {answer: evaluation["mean"][answer]["fid"][0] for answer in ("copying", "result")}
    assert fid["copying"] == pytest.approx(frechet_distance(copies, truths), rel=0.2)  # the videos are compressed
    assert fid["result"] > 2 * fid["copying"]  # the model is random
    again = run(micro, tmp_path, networks=Colours())
    assert repr(again) == repr(evaluation)
    with pytest.raises(InputError, match=r"networks \['fid'\], expected \[\]"):
        run(micro, tmp_path)
