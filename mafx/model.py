"""A model: the networks' sizes and parameters together with what it takes to use them."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np

from mafx.diffusion.schedule import Schedule
from mafx.models.animator import SIZES, Animator, AnimatorConfig, parameter_shapes
from mafx.models.temporal import frame_sinusoid
from mafx.models.text import Tokenizer


@dataclasses.dataclass
class Model:
    """What is loaded, animated and saved.

    Attributes:
      config: sizes of the networks.
      params: nested dict of arrays, one leaf per published tensor, all of one dtype, in which the networks compute.
      tokenizer: text to ids.
      schedule: the noise schedule it was trained on.
    """

    config: AnimatorConfig
    params: dict
    tokenizer: Tokenizer = Tokenizer()
    schedule: Schedule = Schedule()

    @property
    def networks(self) -> Animator:
        return Animator(self.config)

    @property
    def dtype(self) -> jnp.dtype:
        return jax.tree.leaves(self.params)[0].dtype


def abstract_model(config: AnimatorConfig, dtype: jnp.dtype | str, schedule: Schedule | None = None) -> Model:
    """A model of shapes instead of parameters: enough to compile for."""
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), parameter_shapes(config))
    return Model(config, params, Tokenizer.without_vocabulary(config.text.vocabulary, config.text.positions), schedule or Schedule())


def random_model(size: str | AnimatorConfig, seed: int = 0, dtype: jnp.dtype = jnp.float32) -> Model:
    """A model whose every path matters: all tensors random, also those that training starts at zero. For tests and measurements, not for training.

    Kernels are normal with standard deviation 1/sqrt(fan-in), norms near the identity, so that activations stay in range at any depth.
    """
    config = SIZES[size] if isinstance(size, str) else size
    rng = np.random.default_rng(seed)

    def draw(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1] == "pe":
            return jnp.asarray(frame_sinusoid(*leaf.shape), dtype)
        values = rng.standard_normal(leaf.shape, np.float32)
        values *= np.float32(np.prod(leaf.shape[:-1]) ** -0.5 if path[-1] == "kernel" else 0.1)
        return jnp.asarray(values + np.float32(path[-1] == "scale"), dtype)

    shapes = flax.traverse_util.flatten_dict(parameter_shapes(config))
    return Model(config, flax.traverse_util.unflatten_dict({path: draw(path, leaf) for path, leaf in shapes.items()}))
