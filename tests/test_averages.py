"""Averages of the parameters: by hand, and in main memory as on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from micro import micro_config

from mafx.training.averages import average, in_main_memory, jit_average
from mafx.training.sharding import MAIN_MEMORY, make_mesh, parameter_sharding


def test_the_average_by_hand():
    ema, trainable = {"a": jnp.zeros(2)}, {"a": jnp.ones(2), "b": jnp.ones(2)}
    early = average(ema, trainable, jnp.asarray(0), 0.9)
    np.testing.assert_allclose(early["a"], 1 - 1 / 11, rtol=1e-6)  # follows closely
    late = average(ema, trainable, jnp.asarray(10**6), 0.9)
    np.testing.assert_allclose(late["a"], 0.1, rtol=1e-6)
    assert set(late) == {"a"}


def test_three_steps_at_once_are_those_of_parameters_that_stand_still():
    ema, trainable = {"a": jnp.zeros(2)}, {"a": jnp.ones(2)}
    together = average(ema, trainable, jnp.asarray(10**6), 0.9, every=3)
    for _ in range(3):
        ema = average(ema, trainable, jnp.asarray(10**6), 0.9)
    np.testing.assert_allclose(together["a"], ema["a"], rtol=1e-6)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_in_main_memory_they_are_what_they_are_on_the_device(fsdp, rng):
    """And stay as they were where a step was refused."""
    mesh = make_mesh({"data": -1, "fsdp": fsdp})
    config = micro_config("appearance", ema=0.9, ema_on="host", ema_every=5)
    x = {"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32), "bias": jnp.ones(3)}
    sharding = parameter_sharding(mesh, x, 64)
    trainable = jax.device_put(x, sharding)
    ema = jax.device_put({name: 2 * y for name, y in x.items()}, in_main_memory(sharding))
    assert ema["kernel"].addressable_shards[0].data.size == 128 // fsdp
    expected = average(jax.device_get(ema), x, jnp.asarray(9), 0.9, every=5)
    before = jax.device_get(ema)

    update = jit_average(config, mesh, trainable, 64)
    refused = update(ema, trainable, jnp.asarray(9), np.asarray(10, np.int32))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(refused), before)
    accepted = update(refused, trainable, jnp.asarray(10), np.asarray(10, np.int32))
    for name, values in accepted.items():
        assert values.sharding.memory_kind == MAIN_MEMORY
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)
        assert not trainable[name].is_deleted()
