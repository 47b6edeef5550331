"""The averages (EMA) of the trained parameters: on the device, a part of the step, or in main memory between steps.

In main memory they take nothing of the device's. They are brought there and back by a program of their own, which runs
every few steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mafx.training.sharding import MAIN_MEMORY, MIN_ELEMENTS, parameter_sharding, replicated
from mafx.trees import Flat

Average = Callable[[Flat, Flat, jax.Array, np.ndarray], Flat]

EMA_WARMUP = 10  # the average follows closely for about so many steps: its first values are arbitrary


def average(ema: Flat, trainable: Flat, steps: jax.Array, decay: float, every: int = 1) -> Flat:
    """The exponential moving average after one more step, or after `every` of them. It follows closely at first.

    Args:
      ema: The averages until now; they may be fewer than the parameters.
      trainable: The parameters.
      steps: Number of steps, a scalar, that were done before the last one.
      decay: Of a step.
      every: Steps since the averages were last updated.
    """
    done = steps.astype(jnp.float32) + 1
    kept = jnp.minimum(decay, done / (done + EMA_WARMUP)) ** every
    return {name: x + (1 - kept) * (trainable[name] - x) for name, x in ema.items()}


def in_main_memory(sharding: dict[str, NamedSharding]) -> dict[str, NamedSharding]:
    """The same parts of the same arrays, in the main memory beside each device."""
    return {name: x.with_memory_kind(MAIN_MEMORY) for name, x in sharding.items()}


def jit_average(
    config: ml_collections.ConfigDict, mesh: Mesh, trainable: Flat, min_elements: int = MIN_ELEMENTS
) -> Average:
    """The jitted update of averages in main memory.

    Args:
      config: Of the run.
      mesh: Where the run's arrays live.
      trainable: The parameters, or their shapes.
      min_elements: Of arrays that are split over devices, see `parameter_sharding`.

    Returns: A function of the averages, the parameters, the number of steps behind them, and the number of the step
      that was just taken. It gives the new averages, in the memory of the old ones. They stay as they were where the
      two numbers differ, which means that the step was refused.
    """
    on_device, whole = parameter_sharding(mesh, trainable, min_elements), replicated(mesh)
    in_host = in_main_memory(on_device)

    def update(ema: Flat, trainable: Flat, done: jax.Array, number: jax.Array) -> Flat:
        before = jax.device_put(ema, on_device)
        after = average(before, trainable, done - 1, config.ema, config.ema_every)
        return {name: jnp.where(done == number, after[name], x) for name, x in before.items()}

    return jax.jit(update, in_shardings=(in_host, on_device, whole, whole), out_shardings=in_host, donate_argnums=0)
