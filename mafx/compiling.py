"""How programs are compiled: with which options, where they are kept, and what people see meanwhile."""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from mafx.commands import expand_home

Options = dict[str, str | bool]
# By platform. XLA's newer library of kernels for CPUs (YNNPACK) is slower than what it replaces: matrix products of 320
# to 1280 channels run at 125 to 200 instead of 205 to 215 GFLOP/s on two Zen 4 cores, convolutions at 100 to 160
# instead of 150 to 200. On GPUs, XLA would join the weights of queries, keys and values again at every step.
COMPILER_OPTIONS: dict[str, Options] = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "gpu": {"xla_gpu_dot_merger_threshold_mb": "0"},
}
# Of training steps. XLA's newer generator of loops for CPUs makes an object file of each. To load a kept program is a
# recursion over the files that call a function of C, such as the cosine of the learning rate. The puppets' step had
# 1693 of them, more than the stack of the loading thread holds; as the older generator makes them it has 80. It takes
# about a minute more to compile.
STEP_OPTIONS: dict[str, Options] = {"cpu": {"xla_cpu_use_fusion_emitters": False}}

# What JAX reports before and after XLA compiles a program, with the seconds that it took.
LOWERED_EVENT = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILED_EVENT = "/jax/core/compile/backend_compile_duration"
QUIET_SECONDS = 2.0  # compilations that are over sooner are not mentioned


class jit:  # noqa: N801 (it is used like jax.jit)
    """`jax.jit` with the compiler options that suit the platform.

    The platform is not asked before the first call, since several processes may have to meet before that.
    """

    def __init__(self, function: Callable, **settings):
        functools.update_wrapper(self, function)
        self._function, self._settings = function, settings

    @functools.cached_property
    def _jitted(self):
        options = known_options(COMPILER_OPTIONS, jax.default_backend())
        return jax.jit(self._function, compiler_options=options, **self._settings)

    def __call__(self, *args):
        return self._jitted(*args)

    def __getattr__(self, name: str):
        """`lower`, `trace`, `eval_shape` and so on."""
        return getattr(self._jitted, name)


def known_options(by_platform: dict[str, Options], platform: str) -> Options:
    """The options for a platform; none where this version of XLA does not know them, or another platform compiles."""
    options = by_platform.get(platform, {})
    is_here = platform == jax.default_backend()
    return options if options and is_here and _are_known(tuple(options.items())) else {}


@functools.cache
def _are_known(options: tuple[tuple[str, str | bool], ...]) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def keep_programs(folder: str | Path) -> None:
    """Keep compiled programs in `folder`, so that the next start reads them; `~` is expanded, empty keeps none."""
    if folder:
        jax.config.update("jax_compilation_cache_dir", str(expand_home(folder)))


class _Clock:
    """Since when XLA has been compiling."""

    def __init__(self):
        self._since: float | None = None
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event == LOWERED_EVENT:
            self._since = time.monotonic()
        elif event == COMPILED_EVENT:
            self._since = None

    @property
    def seconds(self) -> float:
        """Seconds since the compilation under way began, 0 if there is none."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


_clock = functools.cache(_Clock)


@contextlib.contextmanager
def announce_compilation(enabled: bool = True) -> Iterator[None]:
    """Say on stderr that XLA compiles, while it does.

    A terminal shows the seconds that pass; elsewhere one line is written per long compilation.
    """
    if not enabled:
        yield
        return
    finished = threading.Event()
    thread = threading.Thread(target=_show_compilation, args=(_clock(), finished), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _show_compilation(clock: _Clock, finished: threading.Event) -> None:
    folder = jax.config.values.get("jax_compilation_cache_dir")
    kept = f"once; kept in {folder.replace(str(Path.home()), '~')}" if folder else "not kept: there is no cache"
    shown, terminal = 0.0, sys.stderr.isatty()
    while not finished.wait(0.2):
        seconds = clock.seconds
        if seconds >= QUIET_SECONDS and (terminal or not shown):
            ending = f" {seconds:.0f} s\r" if terminal else "\n"
            print(f"compiling ({kept}){ending}", end="", file=sys.stderr, flush=True)
        elif terminal and shown and not seconds:
            print("\x1b[2K\r", end="", file=sys.stderr, flush=True)  # clear the line
        shown = seconds if seconds >= QUIET_SECONDS else 0.0
