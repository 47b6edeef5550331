"""Training steps and runs: equal on any mesh, exact in what they freeze, exact when they go on after a stop."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro import MICRO, example, micro_config

from mafx.data.clips import puppet_clips
from mafx.data.examples import ExampleOptions, batches
from mafx.training import loop
from mafx.training.checkpoints import Checkpoints, read_parameters
from mafx.training.sharding import distribute_batch, make_mesh, parameter_sharding
from mafx.training.step import flatten, init_state, jit_step, make_optimiser, shows_person, split


@pytest.fixture
def config(one_device):
    return micro_config


def losses(workdir):
    return [
        values["loss"]
        for line in (workdir / "metrics.jsonl").read_text().splitlines()
        if "loss" in (values := json.loads(line))
    ]


def one_step(config, params, mesh):
    init = functools.partial(
        init_state, rules=config.train_only, optimiser=make_optimiser(config)[0], dtype=jnp.float32
    )
    state = jax.jit(init, out_shardings=parameter_sharding(mesh, jax.eval_shape(init, params)))(params)
    options = ExampleOptions(frames=config.data.frames, stride=1, size=tuple(config.data.size))
    iterator = batches(puppet_clips("train", 16, tuple(config.data.size)), options, config.batch, 0)
    step = jit_step(config, MICRO, np.array([0, 1], np.int32), mesh, state)
    return step(state, distribute_batch(mesh, next(iterator)), np.asarray(1, np.int32))


def test_a_mesh_of_eight_equals_one_device(config, micro, monkeypatch):
    monkeypatch.setattr("mafx.training.sharding.SMALL", 64)  # so that these small arrays are split as well
    settings = config(
        "appearance", train_only=(("motion_modules", False), ("^(unet|appearance|control|text)/", True), (".*", False))
    )
    alone, metrics = one_step(settings, micro.params, make_mesh({"data": 1}, jax.devices()[:1]))
    spread, others = one_step(settings, micro.params, make_mesh({"data": 2, "fsdp": 4}))
    kernel = spread.trainable["unet/encoder/conv_in/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    assert float(metrics["loss"]) == pytest.approx(float(others["loss"]), rel=1e-5)
    gathered = jax.tree.map(np.asarray, (alone.trainable, spread.trainable))
    norm = lambda tree: np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in tree.values()))  # noqa: E731
    difference = {name: gathered[0][name] - gathered[1][name] for name in gathered[0]}
    assert norm(difference) / norm(gathered[0]) < 1e-5


def test_the_temporal_stage_leaves_all_else_bit_equal(config, micro):
    settings = config("temporal")
    before, _ = split(flatten(micro.params), settings.train_only)
    state, metrics = one_step(settings, micro.params, make_mesh({"data": 1}, jax.devices()[:1]))
    assert all("motion_modules" in name and not name.endswith("/pe") for name in state.trainable)
    for name, x in state.frozen.items():
        np.testing.assert_array_equal(x, flatten(micro.params)[name])
    assert all((np.asarray(state.trainable[name]) != np.asarray(before[name])).any() for name in before)
    assert np.isfinite(metrics["loss"])


def test_runs_from_when_remat_was_a_switch_are_read(config):
    old = config("temporal").copy_and_resolve_references()
    for switch, name in ((True, "blocks"), (False, "none")):
        with old.ignore_type():
            old.remat = switch
        assert loop.model_sizes(old).unet.remat == name


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
        ([("^c", True), (".*", True)], "meet no parameter: "),
        ([("", False)], "everything"),
    ):
        with pytest.raises(ValueError, match=message):
            split(flat, rules)


def test_going_on_is_bit_equal(config, tmp_path):
    """Six steps equal three, a stop, and three more, in the parameters, their averages and the optimiser; and so does the data."""
    settings = config("appearance", steps=6)
    loop.train(settings, tmp_path / "whole")
    settings.steps = 3
    loop.train(settings, tmp_path / "parts")
    settings.steps = 6
    loop.train(settings, tmp_path / "parts")
    whole, parts = (read_parameters(tmp_path / name)[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts") and len(losses(tmp_path / "whole")) == 6


def test_training_learns(config, tmp_path):
    loop.train(
        config("appearance", steps=30, lr=3e-3, **{"schedule.prediction": "v"}), tmp_path
    )  # has more to learn than tiny latents
    values = losses(tmp_path)
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:3])


def test_non_finite_loss_stops_and_keeps_the_batch(config, tmp_path):
    with pytest.raises(FloatingPointError, match=r"step \d+ is not finite(.|\n)*puppet0000\d\d") as error:
        loop.train(config("appearance", steps=30, lr=1e30, clip=1e30), tmp_path)
    step = int(re.search(r"step (\d+)", str(error.value))[1])
    batch = np.load(tmp_path / f"non_finite_{step}_0.npz")
    assert batch["video"].shape == (8, 1, 16, 16, 3) and len(batch["key"]) == 8
    params, _ = read_parameters(tmp_path)
    assert Checkpoints(tmp_path).latest == step - 1 and all(np.isfinite(x).all() for x in params.values())


def test_stages_follow_one_another_and_animate(config, tmp_path):
    loop.train(config("appearance", steps=1), tmp_path / "a")
    loop.train(config("temporal", steps=1, show_clips=1, show_frames=2, init_from=str(tmp_path / "a")), tmp_path / "b")
    first, second = (read_parameters(tmp_path / name)[0] for name in "ab")
    changed = {name for name in first if (np.asarray(first[name]) != np.asarray(second[name])).any()}
    assert changed and all("motion_modules" in name and not name.endswith("/pe") for name in changed)
    assert (tmp_path / "b" / "held_out_000001.mp4").is_file()
    scores = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(scores) == {"step", "held_out_psnr", "held_out_psnr_person", "copying_psnr", "copying_psnr_person"}
    model = loop.load_workdir(tmp_path / "b")
    assert loop.read_config(tmp_path / "b").data.size == [16, 16]
    assert model.schedule.prediction == "sample"
