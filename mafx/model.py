"""A model: the networks' sizes and parameters, together with what it takes to use them."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

import mafx
from mafx.diffusion.schedule import Schedule
from mafx.errors import InputError
from mafx.models.animator import SIZES, Animator, AnimatorConfig, parameter_shapes
from mafx.models.temporal import frame_sinusoid
from mafx.models.text import Tokenizer
from mafx.placing import DeviceNetworks, host_array
from mafx.stamps import Facts, fingerprint
from mafx.trees import flatten, unflatten

ORIGIN = ("run", "step", "trained_on", "batch")  # facts of a stamp that a model keeps
# Names of what networks compute in.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"} | {x: x for x in ("float32", "bfloat16", "float16")}
RANDOM_NUMBERS = 2**22  # drawn once for all tensors of a random model: drawing billions would take minutes


@dataclasses.dataclass(repr=False)
class Model:
    """What is loaded, animated and saved.

    Attributes:
      config: Sizes of the networks.
      params: Nested dict of arrays, one leaf per published tensor. All have one dtype, in which the networks compute.
        NumPy arrays wait on the host, JAX arrays are on a device, see `mafx.placing`.
      tokenizer: Turns text into ids.
      schedule: The noise schedule that the model was trained on.
      size: Rows and columns in pixels that the model was trained at.
      source: Where the model came from, for people to read.
      origin: Facts of the stamp that lay beside it, those of `ORIGIN`: where it came from.
    """

    config: AnimatorConfig
    params: dict
    tokenizer: Tokenizer = Tokenizer()
    schedule: Schedule = Schedule()
    size: tuple[int, int] = (512, 512)
    source: str = "memory"
    origin: Facts = dataclasses.field(default_factory=dict)
    _on_device: dict[Sharding | None, DeviceNetworks] = dataclasses.field(default_factory=dict, init=False)

    def on_device(self, sharding: Sharding | None) -> DeviceNetworks:
        """Its networks on a device, where they stay from one animation to the next."""
        return self._on_device.setdefault(sharding, DeviceNetworks(sharding))

    @property
    def networks(self) -> Animator:
        return Animator(self.config)

    @property
    def dtype(self) -> jnp.dtype:
        return jax.tree.leaves(self.params)[0].dtype

    def stamp(self) -> Facts:
        """What tells this model from others: its origin, its dtype, the version, the fingerprint of its weights."""
        weights = fingerprint(flatten(self.params))
        return self.origin | {"dtype": str(self.dtype), "version": mafx.__version__, "weights": weights}

    def __repr__(self) -> str:
        count = sum(x.size for x in jax.tree.leaves(self.params))
        name = next((name for name, config in SIZES.items() if config == self.config), "own sizes")
        H, W = self.size
        return f"Model({name}, {count:,} parameters, {self.dtype}, trained at {H}x{W}, from {self.source})"


def network_dtype(dtype: jnp.dtype | str) -> jnp.dtype:
    """The dtype that is meant by a name of `DTYPES`, or by a dtype of JAX or NumPy.

    Raises:
      InputError: Networks do not compute in it.
    """
    name = DTYPES.get(dtype) if isinstance(dtype, str) else jnp.dtype(dtype).name
    if name not in DTYPES.values():
        raise InputError(f"expected one of the dtypes {', '.join(DTYPES)}, found {dtype!r}")
    return jnp.dtype(name)


def abstract_model(config: AnimatorConfig, dtype: jnp.dtype | str, schedule: Schedule | None = None) -> Model:
    """A model whose parameters are `jax.ShapeDtypeStruct`s: enough to compile for."""
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), parameter_shapes(config))
    tokenizer = Tokenizer.without_vocabulary(config.text.vocabulary, config.text.positions)
    return Model(config, params, tokenizer, schedule or Schedule(), source="shapes")


def random_model(size: str | AnimatorConfig, seed: int = 0, dtype: jnp.dtype | str = jnp.float32) -> Model:
    """A model of random tensors, also where training starts from zero: every path matters.

    Kernels are normal with standard deviation 1/sqrt(fan-in) and norms are near the identity, so that activations stay
    in range at any depth. This model is for tests and measurements, not for training.

    Args:
      size: A key of `mafx.models.animator.SIZES`, or sizes.
      seed: Of the random numbers.
      dtype: Of the parameters.
    """
    config = SIZES[size] if isinstance(size, str) else size
    block = np.tile(np.random.default_rng(seed).standard_normal(RANDOM_NUMBERS, np.float32), 2)

    def draw(name: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray | jax.Array:
        kind = name.rpartition("/")[-1]
        if kind == "pe":
            return host_array(frame_sinusoid(*leaf.shape), dtype)
        start = zlib.crc32(name.encode()) % RANDOM_NUMBERS  # each tensor begins elsewhere in the block
        values = np.resize(block[start : start + RANDOM_NUMBERS], leaf.shape)
        values = values * np.float32(np.prod(leaf.shape[:-1]) ** -0.5 if kind == "kernel" else 0.1)
        return host_array(values + np.float32(kind == "scale"), dtype)

    shapes = flatten(parameter_shapes(config))
    params = unflatten({name: draw(name, leaf) for name, leaf in shapes.items()})
    tokenizer = Tokenizer.without_vocabulary(config.text.vocabulary, config.text.positions)
    return Model(config, params, tokenizer, source=f"random numbers, seed {seed}")
