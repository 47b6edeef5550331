"""Training steps and runs: equal on any mesh, exact in what they freeze, exact when they go on after a stop."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import relative_error
from micro import MICRO, example, micro_config

from mafx.data.clips import puppet_clips
from mafx.data.examples import ExampleOptions, batches
from mafx.densepose import BACKGROUND
from mafx.training.averages import in_main_memory
from mafx.training.checkpoints import Checkpoints, read_parameters
from mafx.training.loop import gather, train
from mafx.training.runs import load_run
from mafx.training.sharding import DEVICE_MEMORY, distribute_batch, make_mesh, parameter_sharding
from mafx.training.step import (
    drop_motion,
    flatten,
    jit_step,
    shows_person,
    split,
    state_maker,
)


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
    return step(state, batch, np.asarray(1, np.int32))


def test_a_mesh_of_eight_equals_one_device(micro):
    settings = micro_config(
        "appearance", train_only=(("motion_modules", False), ("^(unet|appearance|control|text)/", True), (".*", False))
    )
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
    run("appearance", tmp_path, steps=30, lr=3e-3, **{"schedule.prediction": "v"})
    values = losses(tmp_path)
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:3])


def test_non_finite_loss_stops_and_keeps_the_batch(run, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d+ is not finite(.|\n)*puppet0000\d\d") as error:
        run("appearance", tmp_path, steps=30, lr=1e30, clip=1e30)
    step = int(re.search(r"step (\d+)", str(error.value))[1])
    batch = np.load(tmp_path / f"non_finite_{step}_0.npz")
    assert batch["video"].shape == (8, 1, 16, 16, 3) and len(batch["key"]) == 8
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


def test_accumulated_steps_equal_one_of_their_gradients_mean(micro):
    """Two steps of one batch, accumulated, update as one step does; in between nothing moves."""
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    config = micro_config("appearance", accumulate=2, **{"loss.reference_dropout": 0.0})
    config.train_only = (("^unet/decoder/conv_out", True), (".*", False))
    state, batch, step = one_step_parts(config, micro.params, mesh)
    begin = jax.tree.map(np.asarray, state.trainable)
    state, _ = step(state, batch, np.asarray(1, np.int32))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state.trainable), begin)
    state, metrics = step(state, batch, np.asarray(2, np.int32))
    assert int(state.step) == 2 and np.isfinite(metrics["loss"])
    for name, x in state.trainable.items():
        assert (np.asarray(x) != begin[name]).any(), name


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


def test_a_dropped_motion_is_background_and_weighs_nobody():
    motion = jnp.asarray(np.stack([example((16, 16), 2, i).motion for i in range(16)]))
    dropped = drop_motion(jax.random.key(0), motion, 0.5)
    gone = np.array([(np.asarray(x) == np.array(BACKGROUND)).all() for x in dropped])
    assert 2 < gone.sum() < 14
    np.testing.assert_array_equal(dropped[~gone], motion[~gone])
    assert not shows_person(dropped, (16, 2, 8, 8))[gone].any()
    assert drop_motion(jax.random.key(0), motion, 0.0) is motion
