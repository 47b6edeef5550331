"""Training steps and runs: equal on any mesh, exact in what they freeze, exact when they go on after a stop."""

import dataclasses
import json
import multiprocessing
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import relative_error
from micro import MICRO, example, micro_config
from PIL import Image

from mafx.data.clips import puppet_clips
from mafx.data.examples import ExampleOptions, batches
from mafx.densepose import BACKGROUND
from mafx.diffusion.losses import pseudo_huber
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.models.animator import Animator
from mafx.training import loop
from mafx.training.averages import in_main_memory
from mafx.training.checkpoints import Checkpoints, find_step, read_parameters
from mafx.training.loop import gather, train
from mafx.training.optimiser import make_optimiser
from mafx.training.runs import keep_vocabulary, load_run
from mafx.training.sharding import DEVICE_MEMORY, distribute_batch, make_mesh, parameter_sharding
from mafx.training.step import (
    diffusion_loss,
    drop_motion,
    init_state,
    jit_step,
    make_step,
    shows_person,
    split,
    state_maker,
)
from mafx.training.watch import Journal, Meter
from mafx.trees import flatten


@pytest.fixture
def run(one_device):
    """Train with a micro config: its stage, the work folder, and what differs."""

    def run(stage, workdir, **changes):
        return train(micro_config(stage, **changes), workdir, one_device)

    return run


def losses(workdir):
    return [
        values["loss"]
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
        if "loss" in (values := json.loads(line))
    ]


MIN_ELEMENTS = 64  # of arrays that are split over devices, so that these small ones are


LESS = {  # memory between the steps
    "accumulate": 2,
    "accumulate_dtype": "bfloat16",
    "moments_dtype": "bfloat16",
    "ema_on": "host",
    "ema_every": 3,
}


def one_step_parts(config, params, mesh, sizes=MICRO):
    """A state, a batch and the jitted step."""
    init = state_maker(config)
    sharding = parameter_sharding(mesh, jax.eval_shape(init, params), MIN_ELEMENTS)
    state = jax.jit(init, out_shardings=sharding)(params)
    options = ExampleOptions(frames=config.data.frames, stride=1, size=tuple(config.data.size))
    iterator = batches(puppet_clips("train", 16, tuple(config.data.size)), options, config.batch, 0)
    step = jit_step(config, sizes, np.array([0, 1], np.int32), mesh, state, MIN_ELEMENTS)
    return state, distribute_batch(mesh, next(iterator)), step


def one_step(config, params, mesh, sizes=MICRO):
    state, batch, step = one_step_parts(config, params, mesh, sizes)
    return step(state, batch, np.int32(1), np.uint32(config.seed))


def test_a_mesh_of_eight_equals_one_device(micro):
    settings = micro_config("appearance", batch=8)
    alone, metrics = one_step(settings, micro.params, make_mesh({"data": 1}, jax.devices()[:1]))
    spread, others = one_step(settings, micro.params, make_mesh({"data": 2, "fsdp": 4}))
    kernel = spread.trainable["unet/encoder/conv_in/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), rel=1e-5)
    gathered = jax.tree.map(np.asarray, (alone.trainable, spread.trainable))
    flat = [np.concatenate([tree[name].ravel() for name in gathered[0]]) for tree in gathered]
    assert relative_error(flat[1], flat[0]) < 1e-5


def test_the_temporal_stage_leaves_all_else_bit_equal(micro):
    settings = micro_config("temporal")
    before, _ = split(flatten(micro.params), settings.train_only)
    state, metrics = one_step(settings, micro.params, make_mesh({"data": 1}, jax.devices()[:1]))
    assert all("motion_modules" in name and not name.endswith("/pe") for name in state.trainable)
    for name, x in state.frozen.items():
        np.testing.assert_array_equal(x, flatten(micro.params)[name])
    assert all((np.asarray(state.trainable[name]) != np.asarray(before[name])).any() for name in before)
    assert np.isfinite(metrics["loss"])


def test_latents_that_show_the_person():
    clip = example((16, 24), 2)
    shown = shows_person(jnp.asarray(clip.motion[None]), (1, 2, 4, 6))
    expected = np.add.reduceat(np.add.reduceat(clip.labels > 0, np.arange(0, 16, 4), 1), np.arange(0, 24, 4), 2) > 0
    np.testing.assert_array_equal(shown[0], expected)
    assert 0.1 < expected.mean() < 0.9


def test_rules_must_cover_everything():
    flat = {"a/x": jnp.ones(1), "b/y": jnp.ones(1)}
    trainable, frozen = split(flat, [("^a", True), (".*", False)])
    assert (set(trainable), set(frozen)) == ({"a/x"}, {"b/y"})
    for rules, message in (
        ([("^a", True)], "no rule says whether b/y"),
        ([("^c", True), (".*", True)], "apply to no parameter: "),
        ([("", False)], "everything"),
    ):
        with pytest.raises(ValueError, match=message):
            split(flat, rules)


def test_training_learns(run, tmp_path):
    # v prediction has more to learn than tiny latents
    run("appearance", tmp_path, batch=8, steps=30, lr=3e-3, **{"schedule.prediction": "v"})
    values = losses(tmp_path)
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:3])


def test_non_finite_loss_stops_and_keeps_the_batch(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d+ is not finite(.|\n)*puppet0000\d\d") as error:
        run("appearance", tmp_path, steps=30, lr=1e30, clip=1e30)
    step = int(re.search(r"step (\d+)", str(error.value))[1])
    batch = np.load(tmp_path / f"non_finite_{step}_0.npz")
    assert batch["video"].shape == (2, 1, 16, 16, 3) and len(batch["key"]) == 2
    params, _ = read_parameters(tmp_path)
    assert Checkpoints(tmp_path, {}).latest == step - 1 and all(np.isfinite(x).all() for x in params.values())


def test_stages_follow_one_another_and_animate(run, tmp_path, caplog):
    caplog.set_level("INFO", "mafx")
    assert run("appearance", tmp_path / "a", steps=1) == {}
    changes = {"init_from": str(tmp_path / "a"), "ema_on": "host"}
    run("temporal", tmp_path / "b", steps=1, show_clips=1, show_frames=2, **changes)
    first, second = (read_parameters(tmp_path / name)[0] for name in "ab")
    changed = {name for name in first if (np.asarray(first[name]) != np.asarray(second[name])).any()}
    assert changed and all("motion_modules" in name and not name.endswith("/pe") for name in changed)
    video = tmp_path / "b" / "held_out_000001.mp4"
    assert video.is_file()
    scores = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(scores) == {"step", "held_out_psnr", "held_out_psnr_person", "copying_psnr", "copying_psnr_person"}
    model = load_run(tmp_path / "b")
    assert model.size == (16, 16) and model.schedule.prediction == "sample"
    assert str(tmp_path / "b") in repr(model) and len(repr(model)) < 300
    farewell = caplog.messages[-1]
    assert f"{scores['held_out_psnr']:.2f} dB" in farewell and str(video) in farewell
    assert f"python sample.py --workdir {tmp_path / 'b'}" in farewell


def test_a_run_is_saved_before_it_is_shown_and_goes_on_as_it_was_begun(run, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no pictures")

    monkeypatch.setattr(loop, "show", fail)
    with pytest.raises(RuntimeError, match="no pictures"):
        run("appearance", tmp_path, steps=2, show_clips=1)
    assert find_step(tmp_path, "latest") == 2
    begun = (tmp_path / "config.json").read_text()
    for stage, changes, field in (
        ("temporal", {}, "config.stage 'appearance', expected 'temporal'"),
        ("appearance", {"batch": 16}, "config.batch 2, expected 16"),
        ("appearance", {"accumulate": 2}, "config.accumulate 1, expected 2"),
        ("appearance", {"data.train_clips": 8}, "config.data '"),
        ("appearance", {"networks.renders": "sticks"}, "config.networks {"),
        ("appearance", {"dtype": "bfloat16"}, "config.dtype 'float32', expected 'bfloat16'"),
        ("appearance", {"moments_dtype": "bfloat16"}, "config.moments_dtype"),
        ("appearance", {"train_only": ((".*", True),)}, "config.train_only"),
    ):
        with pytest.raises(InputError, match=f"step 2 in .* has {field}.*give the one it was begun with") as error:
            run(stage, tmp_path, steps=3, **changes)
        assert len(str(error.value).splitlines()) == 1
        assert (tmp_path / "config.json").read_text() == begun


def test_work_folders_that_are_none(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="--workdir: expected a folder to write into, found .*file"):
            run("appearance", workdir)
    assert (tmp_path / "file").read_text() == "mine"


def test_lines_of_steps_that_are_taken_again_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}, "loss": 0.5}}\n' for step in (1, 2, 3)]
    path.write_text("".join(lines) + '{"step": 4, "lo')
    journal = Journal(tmp_path, done=2)
    journal.write(3, {"loss": 0.25})
    journal.close()
    assert path.read_text() == "".join(lines[:2]) + '{"step": 3, "loss": 0.25}\n'


def test_a_writer_that_is_gone_is_told(tmp_path, monkeypatch):
    """What is written for TensorBoard goes through a thread, which a full disk ends."""
    from tensorboardX.record_writer import RecordWriter  # noqa: PLC0415

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("threading.excepthook", lambda _: None)
    journal = Journal(tmp_path)
    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(OSError, match="cannot write .*tensorboard; the same command goes on from the"):
        for step in range(1, 100):
            journal.write(step, {"loss": 1.0})
            time.sleep(0.05)
    monkeypatch.undo()
    journal.close()


def test_a_meter_counts_no_time_in_which_it_is_paused(monkeypatch):
    now = iter([0.0, 10.0, 110.0, 12.0 + 100.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    meter = Meter(1.0)
    with meter.paused():
        meter.add(24, 0, {"loss": 1.0})
    monkeypatch.setattr(meter, "_restart", lambda: None)
    assert meter.read()["examples_per_second"] == 2.0


def test_one_process_writes_the_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    keep_vocabulary({"vocab.json": "{}"}, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    keep_vocabulary({"vocab.json": "{}"}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vocab.json"]


def saved_arrays(workdir, step):
    """All arrays of a checkpoint's state by their paths."""
    with ocp.PyTreeCheckpointer() as reader:
        tree = reader.restore((workdir / "checkpoints" / str(step) / "state").absolute())
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(tree)}


def test_two_steps_and_two_equal_four_with_less_memory(run, tmp_path):
    """The stop falls between two updates of the averages, and the averages are what a run is read as."""
    run("appearance", tmp_path / "whole", steps=4, **LESS)
    for steps in (2, 4):
        run("appearance", tmp_path / "parts", steps=steps, **LESS)
    whole, parts = (saved_arrays(tmp_path / name, 4) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name, x in whole.items():
        np.testing.assert_array_equal(x, parts[name], err_msg=name)
    kinds = {name: x.dtype for name, x in whole.items() if x.ndim}
    assert {str(x) for name, x in kinds.items() if "optimiser" in name} == {"bfloat16"}
    assert {str(x) for name, x in kinds.items() if "optimiser" not in name} == {"float32"}
    model = flatten(load_run(tmp_path / "whole").params)
    trained = [name for name in model if f"['ema']['{name}']" in whole]
    assert any((whole[f"['ema']['{name}']"] != whole[f"['trainable']['{name}']"]).any() for name in trained)
    for name in trained:
        np.testing.assert_array_equal(model[name], whole[f"['ema']['{name}']"])


@pytest.fixture
def at_step_3(monkeypatch):
    """Call a function when the third batch goes to the devices."""

    def at_step_3(function):
        calls, distribute = [], loop.distribute_batch

        def counted(*args):
            calls.append(time.monotonic())
            if len(calls) == 3:
                function()
            return distribute(*args)

        monkeypatch.setattr(loop, "distribute_batch", counted)
        return calls

    return at_step_3


def test_a_dead_worker_is_told_at_once_and_what_is_done_is_saved(run, tmp_path, at_step_3):
    def kill():
        multiprocessing.active_children()[0].kill()

    calls = at_step_3(kill)
    with pytest.raises(ChildProcessError, match=r"reads data was killed, .*; step \d+ is saved, and the same command"):
        run("appearance", tmp_path, steps=100, **{"data.workers": 2})
    assert time.monotonic() - calls[2] < 60
    assert 3 <= find_step(tmp_path, "latest") < 100


def test_data_that_are_gone_are_told_and_what_is_done_is_saved(run, tmp_path, at_step_3):
    clip = example((16, 16), 12)
    for half, pictures in (("images", clip.video), ("densepose", clip.motion)):
        (tmp_path / "data" / half).mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / "data" / half / f"{i}.png")
    changes = {"data.name": "folder", "data.path": str(tmp_path / "data"), "data.train_frames": 10}
    at_step_3(lambda: (tmp_path / "data" / "images").rename(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"images/\d+\.png.*; step \d+ is saved") as error:
        run("appearance", tmp_path / "run", steps=100, **changes)
    assert len(str(error.value).splitlines()) == 1
    (tmp_path / "gone").rename(tmp_path / "data" / "images")
    step = find_step(tmp_path / "run", "latest")
    assert 3 <= step < 100
    for name in ("run", "alone"):
        run("appearance", tmp_path / name, steps=step + 2, **changes)
    got, expected = (saved_arrays(tmp_path / name, step + 2) for name in ("run", "alone"))
    for name, x in expected.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)


def test_averages_in_main_memory_are_those_of_the_device(run, tmp_path):
    for place in ("device", "host"):
        run("appearance", tmp_path / place, steps=3, ema_on=place)
    device, host = (read_parameters(tmp_path / place)[0] for place in ("device", "host"))
    for name, x in device.items():
        np.testing.assert_allclose(host[name], x, rtol=1e-6, atol=1e-7, err_msg=name)


def test_gathered_parameters_are_whole_and_of_one_dtype():
    mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
    x = {"kernel": jnp.arange(64.0).reshape(16, 4), "bias": jnp.ones(3)}
    sharding = parameter_sharding(mesh, x, 8)
    spread = jax.device_put(x, sharding)
    assert spread["kernel"].addressable_shards[0].data.shape == (4, 4)
    for params in (spread, jax.device_put(x, in_main_memory(sharding))):
        for dtype in (jnp.dtype("bfloat16"), jnp.dtype("float32")):
            whole = gather(params, mesh, dtype)
            for name, values in whole.items():
                assert values.dtype == dtype and values.devices() == {mesh.devices.flat[0]}
                assert values.sharding.memory_kind == DEVICE_MEMORY
                np.testing.assert_array_equal(values, x[name].astype(dtype))
    there, here = gather(spread, mesh, jnp.dtype("float32"))["bias"], spread["bias"].addressable_data(0)
    assert there.unsafe_buffer_pointer() == here.unsafe_buffer_pointer(), "was copied"


def toy_step(batch, done=0, **changes):
    """A step of a toy loss, whose answer does not depend on the key: the state, and the metrics."""
    config = micro_config("appearance", decay="cosine", steps=4, lr=0.1, ema=0.5, **changes)

    def loss(flat, examples, key, done):
        error = jnp.square(examples["x"] @ flat["w"]).mean()
        return error, {"loss_t0": jnp.where(examples["x"][0, 0] > 0, error, jnp.nan)}

    optimiser, rate = make_optimiser(config)
    state = init_state({"w": jnp.ones((3, 2)), "v": jnp.ones(1)}, (("w", True), (".*", False)), optimiser, jnp.float32)
    state = state._replace(step=jnp.asarray(done, jnp.int32))
    step = make_step(loss, optimiser, rate, config)
    return step(state, {"x": jnp.asarray(batch)}, jnp.asarray(done + 1), jnp.uint32(0))


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_a_step_of_accumulated_batches_is_a_step_of_their_examples(rng, dtype, limit):
    batch = rng.normal(size=(8, 3)).astype(np.float32)
    whole, expected = toy_step(batch)
    parts, metrics = toy_step(batch.reshape(4, 2, 3), accumulate=4, accumulate_dtype=dtype)
    assert int(parts.step) == 1
    for name in ("loss", "gradient_norm", "learning_rate"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=limit, err_msg=name)
    assert np.isfinite(metrics["loss_t0"]), "a batch without this quarter of the times counts for nothing"
    np.testing.assert_allclose(parts.ema["w"], whole.ema["w"], rtol=limit)
    assert (np.asarray(parts.trainable["w"]) != 1).all()


def test_whatever_is_counted_in_steps_counts_updates(rng):
    """The cosine is at its end behind the last step, whether or not batches are accumulated."""
    batch = rng.normal(size=(8, 3)).astype(np.float32)
    for done in (0, 2, 4):
        rates = [
            float(toy_step(batch.reshape(shape), done, accumulate=accumulate)[1]["learning_rate"])
            for accumulate, shape in ((1, (8, 3)), (4, (4, 2, 3)))
        ]
        assert rates[0] == rates[1]
    assert rates[0] == pytest.approx(0.05 * 0.1)


def test_the_person_weighs_also_where_its_motion_is_dropped(micro):
    """The loss of one step in which every motion is dropped."""
    clip = example((16, 16), 1)
    batch = {"reference": clip.reference[None], "motion": clip.motion[None], "video": clip.video[None]}
    seen = []
    for person in (1.0, 5.0):
        options = micro_config("appearance", **{"loss.person": person, "loss.motion_dropout": 1.0}).loss
        loss = diffusion_loss(
            Animator(MICRO.without_temporal_layers()), Schedule(), np.array([0, 1], np.int32), options
        )
        flat = {name: x for name, x in flatten(micro.params).items() if "motion_modules" not in name}
        arrays = {name: jnp.asarray(x) for name, x in batch.items()}
        seen.append(float(jax.jit(loss)(flat, arrays, jax.random.key(0), jnp.zeros(()))[0]))
    assert abs(seen[0] / seen[1] - 1) > 1e-3


def test_consistency_tuning_begins_as_diffusion_and_then_follows_itself(micro):
    """At first the target is the truth; later it is the network's own answer, which is nearer."""
    clip = example((16, 16), 1)
    batch = {"reference": clip.reference[None], "motion": clip.motion[None], "video": clip.video[None]}
    flat = {name: x for name, x in flatten(micro.params).items() if "motion_modules" not in name}
    arguments = flat, {name: jnp.asarray(x) for name, x in batch.items()}, jax.random.key(0)

    def make_loss(**options):
        changes = {f"loss.{name}": value for name, value in options.items()}
        config = micro_config("appearance", **changes, **{"loss.reference_dropout": 0.0})
        networks = Animator(MICRO.without_temporal_layers())
        return diffusion_loss(networks, Schedule(**config.schedule), np.array([0, 1], np.int32), config.loss)

    plain, _ = jax.jit(make_loss())(*arguments, jnp.asarray(0.0))
    tuned = jax.jit(make_loss(halvings=3))
    first, later = (float(tuned(*arguments, jnp.asarray(done))[0]) for done in (0.0, 0.99))
    assert first == pytest.approx(float(pseudo_huber(plain)), rel=1e-4)
    assert later < 0.9 * first
    guided_plain, _ = jax.jit(make_loss(guidance=2.0))(*arguments, jnp.asarray(0.0))
    guided = jax.jit(jax.value_and_grad(make_loss(halvings=3, guidance=2.0), has_aux=True))
    (first_guided, _), _ = guided(*arguments, jnp.asarray(0.0))
    (later_guided, _), gradient = guided(*arguments, jnp.asarray(0.99))
    assert float(first_guided) == pytest.approx(float(pseudo_huber(guided_plain)), rel=1e-4)
    assert abs(float(first_guided) / first - 1) > 1e-4, "what the truth is a target for is guided"
    assert float(later_guided) == pytest.approx(later, rel=1e-5), (
        "what follows the network's own answers takes them as they are"
    )
    assert all(np.isfinite(x).all() for x in gradient.values())


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"remat": "blocks"}])
def test_half_precision_and_remat_give_the_same_step(micro, change):
    """Rematerialisation to float32 rounding, bfloat16 to its own."""
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    losses = {}
    for name, changes in (("plain", {}), ("changed", change)):
        config = micro_config("temporal", **changes)
        sizes = dataclasses.replace(MICRO, unet=dataclasses.replace(MICRO.unet, remat=config.remat))
        state, metrics = one_step(config, micro.params, mesh, sizes)
        losses[name] = float(metrics["loss"]), float(metrics["gradient_norm"])
        assert all(x.dtype == jnp.float32 for x in state.trainable.values())
        assert all(x.dtype == jnp.dtype(config.dtype) for x in state.frozen.values())
    limit = 0.1 if "dtype" in change else 1e-4
    np.testing.assert_allclose(losses["changed"], losses["plain"], rtol=limit)


def test_a_dropped_motion_is_background():
    motion = jnp.asarray(np.stack([example((16, 16), 2, i).motion for i in range(16)]))
    dropped = drop_motion(jax.random.key(0), motion, 0.5)
    gone = np.array([(np.asarray(x) == np.array(BACKGROUND)).all() for x in dropped])
    assert 2 < gone.sum() < 14
    np.testing.assert_array_equal(dropped[~gone], motion[~gone])
    assert drop_motion(jax.random.key(0), motion, 0.0) is motion
