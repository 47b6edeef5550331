"""The command that kills trainings sees what differs, and what was hit."""

import jax.numpy as jnp
import ml_collections
import pytest

from mafx.experiments import kills
from mafx.training.checkpoints import Checkpoints
from mafx.training.step import TrainState


def write_training(workdir, value=1.0, loss=0.5):
    state = TrainState(jnp.asarray(24), {"a": jnp.full(3, value)}, {"b": jnp.ones(2)}, (), {"a": jnp.ones(3)})
    checkpoints = Checkpoints(workdir, {})
    checkpoints.save(state, 0, ml_collections.ConfigDict())
    checkpoints.close()
    lines = [f'{{"step": {step}, "loss": {loss}}}\n' for step in range(1, kills.STEPS + 1)]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    return workdir


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return write_training(tmp_path_factory.mktemp("alone") / "run")


def test_equal_trainings_do_not_differ_and_others_do_by_name(alone, tmp_path):
    assert kills.differences(alone, write_training(tmp_path / "same")) == []
    (odd,) = kills.differences(alone, write_training(tmp_path / "other", value=1.0 + 2**-23))
    assert "trainable" in odd and "'a'" in odd
    assert kills.differences(alone, write_training(tmp_path / "loss", loss=0.25)) == ["losses"]
    with (tmp_path / "same" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 24, "loss": 0.5}\n')
    assert kills.differences(alone, tmp_path / "same") == ["25 lines of metrics.jsonl"]


def test_what_was_hit_is_seen_by_what_is_left(alone, tmp_path):
    assert kills.hit(tmp_path) == "starting"
    latents = tmp_path / "latents" / "puppets"
    latents.mkdir(parents=True)
    (latents / "0.npy").touch()
    assert kills.hit(tmp_path) == "encoding latents"
    for i in range(kills.CLIPS):
        (latents / f"{i}.npy").touch()
    assert kills.hit(tmp_path) == "compiling"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert kills.losses(tmp_path) == {1: 0.5} and kills.hit(tmp_path).startswith("training")
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir(parents=True)
    assert kills.hit(tmp_path) == "writing a checkpoint"
    assert kills.checkpoint_steps(alone) == [24] and kills.checkpoint_steps(tmp_path) == []
