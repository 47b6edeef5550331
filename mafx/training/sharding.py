"""Where arrays live: a mesh of devices, batches split over it, parameters spread over it by their shapes. Models know nothing of this."""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = DATA, FSDP = "data", "fsdp"
SMALL = 2**16  # elements; arrays below are kept whole everywhere


def make_mesh(axes: dict[str, int], devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes "data" and "fsdp". One size may be -1: whatever the devices leave. `{"data": -1, "fsdp": 4}`."""
    devices = jax.devices() if devices is None else devices
    sizes = {DATA: 1, FSDP: 1} | dict(axes)
    if set(sizes) != set(AXES) or list(sizes.values()).count(-1) > 1:
        raise ValueError(f"expected a mesh of the axes {DATA} and {FSDP}, one of them -1 at most, found {dict(axes)}")
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(f"a mesh of {dict(axes)} does not fit {len(devices)} devices")
    grid = mesh_utils.create_device_mesh(
        tuple(sizes.values()), devices, allow_split_physical_axes=True
    )  # 8 by 8 of a 4x4x4 torus, too
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh, tree):
    """A sharding for every array of a tree: its largest axis that "fsdp" divides, whole where the array is small."""

    def shard(x) -> NamedSharding:
        size = mesh.shape[FSDP]
        fitting = [axis for axis, n in enumerate(x.shape) if n % size == 0]
        if size == 1 or math.prod(x.shape) < SMALL or not fitting:
            return replicated(mesh)
        axis = max(fitting, key=lambda axis: x.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[FSDP if i == axis else None for i in range(len(x.shape))]))

    return jax.tree.map(shard, tree)


def distribute_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process' share of a batch -> the global arrays; keys, which are words, stay where they are."""
    return {
        name: jax.make_array_from_process_local_data(batch_sharding(mesh), x)
        for name, x in batch.items()
        if name != "key"
    }


def distribute_parameters(sharding: dict[str, NamedSharding], params: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Arrays that every process has in its main memory -> the global arrays: a device gets its own part only."""
    return {
        name: jax.make_array_from_callback(x.shape, sharding[name], lambda index, x=x: x[index])
        for name, x in params.items()
    }
