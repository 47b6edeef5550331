"""Where parameters lie: on the host or on a device, in which order of axes, and which networks at which time.

NumPy arrays wait on the host until an animation places them on its device. JAX arrays are on a device already, and are
used where they lie.
"""

import math
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from mafx.models.kernels import NO_CAPABILITY, device_capability

# cuDNN convolves with kernels `o h w c`. A kernel `h w c o` whose axes lie on the card in that order is not copied.
CUDNN_KERNEL_ORDER = Layout(major_to_minor=(3, 0, 1, 2), tiling=())
KERNEL_AXES = 4  # only kernels of convolutions have so many


def host_sharding() -> Sharding:
    """Main memory as JAX sees it; the first device where JAX was told to see nothing else."""
    try:
        (device, *_) = jax.local_devices(backend="cpu")
    except RuntimeError:
        (device, *_) = jax.local_devices()
    return SingleDeviceSharding(device)


def host_array(x: np.ndarray | jax.Array, dtype: jnp.dtype | str) -> Any:
    """An array as loaded models keep it: NumPy's, or JAX's where main memory is also that of the device."""
    if jax.default_backend() == "cpu":
        return jnp.asarray(x, dtype)
    return np.ascontiguousarray(x, jnp.dtype(dtype))


def default_sharding(params: dict, mesh: Mesh | None) -> Sharding | None:
    """Where the arrays of an animation lie; None leaves it to JAX."""
    if mesh is not None:
        return NamedSharding(mesh, PartitionSpec())
    device = default_device()
    is_placed = any(isinstance(x, jax.Array) for x in jax.tree.leaves(params))
    return SingleDeviceSharding(device) if is_nvidia(device) and not is_placed else None


def default_device() -> jax.Device:
    """The device that JAX uses where none is named."""
    (device,) = jnp.empty(()).devices()
    return device


def is_nvidia(device: jax.Device) -> bool:
    """Whether a device is an NVIDIA card."""
    return device.platform == "gpu" and device_capability(device) != NO_CAPABILITY


def parameter_format(x: Any, sharding: Sharding | None) -> Sharding | Format | None:
    """Where and how a parameter lies on a device: kernels of convolutions in cuDNN's order on NVIDIA cards."""
    if sharding is None or len(x.shape) != KERNEL_AXES or not is_nvidia(next(iter(sharding.device_set))):
        return sharding
    return Format(CUDNN_KERNEL_ORDER, sharding)


def parameters_on_device(params: dict, sharding: Sharding | None) -> dict:
    """Shapes of parameters as they will lie on a device."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parameter_format(x, sharding))

    return jax.tree.map(shape, params)


def shapes_on_device(tree: Any, sharding: Sharding | None) -> Any:
    """Shapes of other arrays as they will lie on a device."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays, or shapes, of a tree."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))


def movable_bytes(params: dict) -> int:
    """Bytes of the parameters that wait on the host, or would, where they are shapes."""
    return bytes_of([x for x in jax.tree.leaves(params) if not isinstance(x, jax.Array)])


class Moved(NamedTuple):
    """What was brought to a device, and how long that took."""

    bytes: int
    seconds: float


class _Placed(NamedTuple):
    """A network on the device. `source` are the leaves that it was placed from."""

    source: list
    params: dict
    bytes: int


class DeviceNetworks:
    """The networks of a model that are on a device. They stay there until others need the room. Threads may share it.

    Attributes:
      sharding: Where on the device, or on which devices; None leaves it to JAX.
      moved: What was brought there so far.
    """

    def __init__(self, sharding: Sharding | None):
        self.sharding = sharding
        self.moved = Moved(0, 0.0)
        self._placed: dict[str, _Placed] = {}
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Of the networks that are there, and were brought there."""
        return sum(network.bytes for network in self._placed.values())

    def fetch(
        self, params: dict, names: Sequence[str], room: float = math.inf, following: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The parameters of some networks, on the device.

        Args:
          params: Parameters of all networks, by their names. An array must not be changed in place.
          names: The networks that are needed. One without parameters is left out.
          room: Bytes that networks may take there. Others leave for it, those first that are needed last.
          following: The networks that will be needed, in that order.
        """
        with self._lock:
            return self._fetch(params, names, room, following)

    def _fetch(self, params: dict, names: Sequence[str], room: float, following: Sequence[str]) -> dict[str, Any]:
        self._forget_changed(params)
        names = [name for name in names if name in params]
        arriving = [name for name in names if name not in self._placed and self._must_move(params[name])]
        others = [name for name in self._placed if name not in names]
        order = {name: place for place, name in reversed(list(enumerate(following)))}
        others.sort(key=lambda name: order.get(name, len(following)))
        while others and self.bytes + sum(bytes_of(params[name]) for name in arriving) > room:
            del self._placed[others.pop()]
        for name in arriving:
            self._place(name, params[name])
        return {name: self._placed[name].params if name in self._placed else params[name] for name in names}

    def _forget_changed(self, params: dict) -> None:
        """Networks leave whose parameters are not those that they were placed from."""
        for name, network in list(self._placed.items()):
            leaves = jax.tree.leaves(params.get(name, {}))
            if [id(x) for x in leaves] != [id(x) for x in network.source]:
                del self._placed[name]

    def _must_move(self, params: dict) -> bool:
        return self.sharding is not None or any(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))

    def _place(self, name: str, params: dict) -> None:
        began = time.perf_counter()
        placed = jax.tree.map(lambda x: jax.device_put(x, parameter_format(x, self.sharding)), params)
        jax.block_until_ready(placed)
        size, (moved, seconds) = bytes_of(params), self.moved
        self._placed[name] = _Placed(jax.tree.leaves(params), placed, size)
        self.moved = Moved(moved + size, seconds + time.perf_counter() - began)
