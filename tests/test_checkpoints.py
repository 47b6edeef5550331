import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from mafx.errors import InputError
from mafx.training.checkpoints import SCORE, Checkpoints, read_parameters
from mafx.training.sharding import MAIN_MEMORY, make_mesh, parameter_sharding
from mafx.training.step import TrainState, state_sharding

FACTS = {"config.batch": 8, "config.data": "1234", "version": "0"}


def make_state(mesh, step=3):
    kernel = {"a/kernel": jnp.arange(2**18, dtype=jnp.float32).reshape(512, 512), "a/bias": jnp.ones(3)}
    state = TrainState(
        jnp.asarray(step),
        kernel,
        {"b/kernel": jnp.full((4, 4), 0.5, jnp.bfloat16)},
        (kernel,),
        jax.tree.map(lambda x: x + 1, kernel),
    )
    return jax.device_put(state, parameter_sharding(mesh, state))


@pytest.fixture
def saved(tmp_path):
    state = make_state(make_mesh({"data": 2, "fsdp": 4}))
    checkpoints = Checkpoints(tmp_path, FACTS)
    checkpoints.save(state, 7, ml_collections.ConfigDict({"model": "micro"}))
    checkpoints.close()
    return tmp_path, state


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_restores_on_any_mesh(saved, devices):
    workdir, state = saved
    like = jax.tree.map(jnp.zeros_like, make_state(make_mesh({"fsdp": devices}, jax.devices()[:devices]), step=0))
    checkpoints = Checkpoints(workdir, FACTS)
    assert checkpoints.latest == 3
    checkpoints.check()
    restored, examples = checkpoints.restore(like)
    checkpoints.close()
    assert examples == 7
    assert restored.trainable["a/kernel"].sharding == like.trainable["a/kernel"].sharding
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), restored, state)


def test_averages_in_main_memory_are_restored_there_on_another_mesh(saved, tmp_path):
    _, state = saved
    values = jax.device_get(state)
    config = ml_collections.ConfigDict({"ema_on": "host"})
    for devices in (4, 2):
        mesh = make_mesh({"fsdp": devices}, jax.devices()[:devices])
        sharding = state_sharding(config, mesh, state)
        like = jax.device_put(jax.tree.map(np.zeros_like, values), sharding)
        assert like.ema["a/kernel"].sharding.memory_kind == MAIN_MEMORY
        checkpoints = Checkpoints(tmp_path / "host", FACTS)
        if checkpoints.latest is None:
            checkpoints.save(jax.device_put(values, sharding), 7, config)
        else:
            restored, _ = checkpoints.restore(like)
            assert restored.ema["a/kernel"].sharding == like.ema["a/kernel"].sharding
            assert restored.ema["a/kernel"].addressable_shards[0].data.size == 512 * 512 // devices
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), values)
        checkpoints.close()
    flat, _ = read_parameters(tmp_path / "host")
    np.testing.assert_array_equal(flat["a/kernel"], state.ema["a/kernel"])
    assert flat["a/kernel"].sharding.memory_kind != MAIN_MEMORY


def test_parameters_are_the_averaged_ones_and_the_frozen_ones(saved):
    workdir, state = saved
    flat, stamp = read_parameters(workdir)
    assert stamp["config"]["model"] == "micro"
    assert set(flat) == {"a/kernel", "a/bias", "b/kernel"}
    np.testing.assert_array_equal(flat["a/kernel"], state.ema["a/kernel"])
    assert len(flat["a/kernel"].sharding.device_set) == 1


def test_half_written_checkpoints_are_not_picked_up(saved):
    workdir, _ = saved
    (workdir / "checkpoints" / "9.orbax-checkpoint-tmp-1").mkdir()
    assert Checkpoints(workdir, FACTS).latest == 3


def test_folders_without_checkpoints(tmp_path):
    with pytest.raises(InputError, match="found no checkpoints"):
        read_parameters(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no complete checkpoint"):
        read_parameters(tmp_path)


def test_the_best_is_kept_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, FACTS, keep=1, best=1)
    for step, score in ((1, 10.0), (2, 30.0), (3, 20.0), (4, None), (5, None)):
        state = make_state(make_mesh({"fsdp": 8}), step)
        state = state._replace(ema={"a/bias": jnp.full(3, step, jnp.float32)})
        checkpoints.save(state, 0, ml_collections.ConfigDict())
        if score:
            checkpoints.rate(step, {SCORE: score})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "5"]
    for wanted, found in (("latest", 5), ("best", 2), (2, 2)):
        assert read_parameters(tmp_path, wanted)[0]["a/bias"].tolist() == [found] * 3
    with pytest.raises(InputError, match="one of the steps 2, 5"):
        read_parameters(tmp_path, 3)


def test_frozen_parameters_are_written_once(saved):
    workdir, state = saved
    checkpoints = Checkpoints(workdir, FACTS)
    checkpoints.claim_frozen(state.frozen)
    before = [path.stat().st_mtime_ns for path in sorted((workdir / "frozen").rglob("*"))]
    checkpoints.save(state._replace(step=jnp.asarray(4)), 8, ml_collections.ConfigDict())
    checkpoints.close()
    assert [path.stat().st_mtime_ns for path in sorted((workdir / "frozen").rglob("*"))] == before
    assert "frozen" not in (workdir / "checkpoints" / "4" / "state" / "_METADATA").read_text()


def test_damaged_files_are_told_in_one_line(saved):
    """Each small file of a checkpoint in turn. Some say what is known elsewhere, and are not missed."""
    workdir, state = saved
    files = sorted(path for path in workdir.rglob("*") if path.is_file() and path.stat().st_size < 3000)
    assert any(path.name == "_CHECKPOINT_METADATA" for path in files)
    refused = set()
    for path in files:
        whole = path.read_bytes()
        for content in (b"3", b'{"item_handlers": 3, "tree_metadata": []}', whole[: len(whole) // 2]):
            path.write_bytes(content)
            try:
                flat, _ = read_parameters(workdir)
                np.testing.assert_array_equal(flat["a/kernel"], state.ema["a/kernel"])
            except InputError as error:
                assert "\n" not in str(error), error
                refused.add(path.name)
        path.write_bytes(whole)
    assert {"_CHECKPOINT_METADATA", "_METADATA", "frozen.json"} & refused
    read_parameters(workdir)


def test_pipes_and_links_among_checkpoints(saved):
    workdir, _ = saved
    path = next((workdir / "checkpoints").rglob("_METADATA"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="expected a file, found a pipe"):
        read_parameters(workdir)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match="leads out of"):
        read_parameters(workdir)
