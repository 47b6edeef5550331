"""Where arrays live: a mesh of devices, batches spread over it, parameters spread over it by their shapes.

Models know nothing of this.
"""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mafx.errors import InputError

AXES = DATA, FSDP = "data", "fsdp"
DEVICE_MEMORY, MAIN_MEMORY = "device", "pinned_host"  # JAX's names; devices read this main memory by themselves
MIN_ELEMENTS = 2**16  # arrays with fewer elements are kept whole on every device


def make_mesh(axes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes "data" and "fsdp".

    Args:
      axes: Sizes of the axes, 1 where one is absent; one of them may be -1: what the others leave.
      devices: What the mesh is made of; all devices by default.

    Raises:
      InputError: Where the axes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {DATA: 1, FSDP: 1} | dict(axes)
    counts = all(isinstance(size, int) and (size > 0 or size == -1) for size in sizes.values())
    if set(sizes) != set(AXES) or not counts or list(sizes.values()).count(-1) > 1:
        raise InputError(
            f"config.mesh: expected devices for the axes {DATA} and {FSDP}, -1 for one at most, found {dict(axes)}"
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = {name: len(devices) // known if size == -1 else size for name, size in sizes.items()}
    if math.prod(sizes.values()) != len(devices):
        raise InputError(
            f"config.mesh: {dict(axes)} does not fit {len(devices)} devices, which {DATA} times {FSDP} must be"
        )
    # Splitting physical axes allows, for example, 8 by 8 devices of a 4x4x4 torus.
    grid = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """Examples, the first axis, are spread over all devices. Of `stacked` batches they are the second axis."""
    spec = PartitionSpec((DATA, FSDP))
    return NamedSharding(mesh, PartitionSpec(None, *spec) if stacked else spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device has the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh, tree, min_elements: int = MIN_ELEMENTS):
    """A sharding for every array of a tree (or for its shapes).

    An array is split along the largest of its axes that "fsdp" divides. Arrays without such an axis, and those with
    fewer than `min_elements` elements, are whole on every device.
    """
    size = mesh.shape[FSDP]

    def shard(x) -> NamedSharding:
        divisible = [axis for axis, n in enumerate(x.shape) if n % size == 0]
        if size == 1 or math.prod(x.shape) < min_elements or not divisible:
            return replicated(mesh)
        largest = max(divisible, key=lambda axis: x.shape[axis])
        spec = [FSDP if axis == largest else None for axis in range(len(x.shape))]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(shard, tree)


def distribute_batch(mesh: Mesh, batch: dict[str, np.ndarray], stacked: bool = False) -> dict[str, jax.Array]:
    """This process' share of a batch to the global arrays. Keys, which are words, stay where they are."""
    sharding = batch_sharding(mesh, stacked)
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in batch.items() if name != "key"}


def distribute_parameters(sharding: dict[str, NamedSharding], params: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Arrays that every process has in its main memory to the global arrays. A device gets its own part only."""

    def distribute(name: str, x: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(x.shape, sharding[name], lambda index: x[index])

    return {name: distribute(name, x) for name, x in params.items()}
