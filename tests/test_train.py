"""Training steps and runs: equal on any mesh, exact in what they freeze, exact when they go on after a stop."""

import functools
import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MICRO

from mafx.data.clips import puppet_clips
from mafx.data.pipeline import Sampling, batches
from mafx.diffusion.schedule import Schedule
from mafx.models import animator
from mafx.training import loop
from mafx.training.checkpoints import read_parameters
from mafx.training.sharding import batch_sharding, distribute_batch, make_mesh, parameter_sharding, replicated
from mafx.training.step import autoencoder_loss, diffusion_loss, flatten, init_state, make_optimiser, make_step, split

sys.path.insert(0, str(Path(__file__).parent.parent))


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(animator.SIZES, "micro", MICRO)
    one = make_mesh({"data": 1}, jax.devices()[:1])
    monkeypatch.setattr(loop, "make_mesh", lambda axes: one)  # whole runs on one device, for they compile long enough

    def make(stage, **changes):
        config = importlib.import_module("configs.puppets").get_config(stage)
        config.model, config.batch, config.decay, config.warmup = "micro", 8, "constant", 0
        config.data.size, config.data.train_clips, config.data.frames = (16, 16), 16, 1 if stage != "temporal" else 2
        config.log_every, config.save_every, config.show_every = 1, 1000, 1000
        config.update(changes)
        return config

    return make


def one_step(config, params, mesh, count=1):
    optimiser, rate = make_optimiser(config)
    loss = diffusion_loss(animator.Animator(MICRO), Schedule(**config.schedule), np.array([0, 1], np.int32), config.loss)
    init = functools.partial(init_state, rules=config.train_only, optimiser=optimiser, dtype=jnp.float32)
    sharding = parameter_sharding(mesh, jax.eval_shape(init, params))
    state = jax.jit(init, out_shardings=sharding)(params)
    sampling = Sampling(config.data.frames, 1, 0, tuple(config.data.size))
    iterator = batches(puppet_clips("train", 16, tuple(config.data.size)), sampling, config.batch, 0)
    step = jax.jit(
        make_step(loss, optimiser, rate, config), in_shardings=(sharding, batch_sharding(mesh)), out_shardings=(sharding, replicated(mesh))
    )
    for _ in range(count):
        state, metrics = step(state, distribute_batch(mesh, next(iterator)))
    return state, metrics


def test_a_mesh_of_eight_equals_one_device(config, micro, monkeypatch):
    monkeypatch.setattr("mafx.training.sharding.SMALL", 64)  # so that these small arrays are split as well
    settings = config("appearance")
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
    settings = config("autoencoder", steps=6)
    loop.train(settings, tmp_path / "whole")
    settings.steps = 3
    loop.train(settings, tmp_path / "parts")
    settings.steps = 6
    loop.train(settings, tmp_path / "parts")
    whole, parts = (read_parameters(tmp_path / name)[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], parts[name])
    losses = [[json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_autoencoder_learns(config, tmp_path):
    settings = config("autoencoder", steps=40, lr=3e-3)
    loop.train(settings, tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert callable(autoencoder_loss(animator.Animator(MICRO), settings.loss))


def test_non_finite_loss_stops_and_keeps_the_batch(config, tmp_path):
    with pytest.raises(FloatingPointError, match="loss of step"):
        loop.train(config("autoencoder", steps=30, lr=1e30, clip=1e30), tmp_path)
    assert len(list(tmp_path.glob("non_finite_*.npz"))) == 1


def test_stages_follow_one_another_and_animate(config, tmp_path):
    loop.train(config("autoencoder", steps=1), tmp_path / "a")
    loop.train(config("appearance", steps=1, show_clips=1, init_from=str(tmp_path / "a")), tmp_path / "b")
    first, second = (read_parameters(tmp_path / name)[0] for name in "ab")
    np.testing.assert_array_equal(first["autoencoder/quant_conv/kernel"], second["autoencoder/quant_conv/kernel"])
    assert (tmp_path / "b" / "held_out_000001.mp4").is_file()
    scores = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(scores) == {"step", "held_out_psnr", "held_out_psnr_of_copying"}
    model = loop.load_workdir(tmp_path / "b")
    assert loop.trained_size(tmp_path / "b") == (16, 16)
    assert model.schedule.prediction == "v"
