import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mafx.errors import InputError
from mafx.training.sharding import distribute_batch, make_mesh, parameter_sharding


def test_mesh_sizes():
    assert dict(make_mesh({"data": -1, "fsdp": 4}).shape) == {"data": 2, "fsdp": 4}
    assert dict(make_mesh({"data": -1}).shape) == {"data": 8, "fsdp": 1}
    for axes, message in (
        ({"data": 3}, "does not fit 8 devices"),
        ({"model": 2}, "axes data and fsdp"),
        ({"data": -1, "fsdp": -1}, "-1 for one at most"),
        ({"data": -1, "fsdp": 16}, "config.mesh.*does not fit 8 devices"),
        ({"data": -1, "fsdp": 0}, "-1 for one at most"),
    ):
        with pytest.raises(InputError, match=message):
            make_mesh(axes)


def test_the_largest_axis_that_divides_is_split():
    mesh = make_mesh({"data": 2, "fsdp": 4})

    def shape(*s):
        return jax.ShapeDtypeStruct(s, jnp.float32)

    tree = {
        "a": shape(3, 3, 320, 640),
        "b": shape(642, 320),
        "small": shape(320),
        "odd": shape(641, 321),
        "scalar": shape(),
    }
    got = {name: sharding.spec for name, sharding in parameter_sharding(mesh, tree).items()}
    assert got == {"a": P(None, None, None, "fsdp"), "b": P(None, "fsdp"), "small": P(), "odd": P(), "scalar": P()}


def test_batches_are_spread_over_all_devices(rng):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    x = rng.normal(size=(16, 3)).astype(np.float32)
    got = distribute_batch(mesh, {"x": x})["x"]
    assert {shard.data.shape for shard in got.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(got, x)
