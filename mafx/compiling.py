"""How programs are compiled: with which options, and kept for the next start."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax

# XLA's newer library of kernels for CPUs (YNNPACK) is slower than what it replaces: matrix products of 320 to 1280 channels run at 125 to 200 instead
# of 205 to 215 GFLOP/s on two Zen 4 cores, convolutions at 100 to 160 instead of 150 to 200.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


class jit:  # noqa: N801
    """`jax.jit` with the options that suit the platform, which is not asked before the first call: processes may have to meet first."""

    def __init__(self, function: Callable, **settings):
        functools.update_wrapper(self, function)
        self._function, self._settings = function, settings

    @functools.cached_property
    def _jitted(self):
        return jax.jit(self._function, compiler_options=compiler_options(), **self._settings)

    def __call__(self, *args):
        return self._jitted(*args)

    def __getattr__(self, name: str):
        """`lower`, `trace`, ..."""
        return getattr(self._jitted, name)


@functools.cache
def compiler_options() -> dict[str, str]:
    """Of the default backend; none where this version of XLA does not know them."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return CPU_OPTIONS


def keep_programs(folder: Path) -> None:
    """Compiled programs are written to `folder`, and read from there the next time."""
    jax.config.update("jax_compilation_cache_dir", str(folder.expanduser()))
