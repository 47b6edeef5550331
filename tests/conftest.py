"""For every test: no silent dtype or rank promotion, several devices even on one CPU, and quick compilation."""

import functools
import os

# Tests wait for the compiler, not for what it makes. Machine code is therefore not optimised. Compiling it in parallel
# parts would take a fifth more, and the newer generator of loops twice as much. But the older one goes through all of a
# program for each of its parts, which is too slow where a whole model is trained.
COMPILATION_OF_LARGE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
QUICK_COMPILATION = (
    f"{COMPILATION_OF_LARGE} --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK_COMPILATION}"
)

import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

from micro import MICRO

from mafx.densepose.pose_files import fetch_pose_files
from mafx.errors import InputError
from mafx.model import random_model
from mafx.models.animator import SIZES
from mafx.pretrained.layout import load_pretrained

# The files of tests that take longest, in minutes of one core from six to one. They begin first, so that no process has
# one of them left when the other is done.
LONGEST = ("parity", "train", "notebooks", "configs", "docs", "processes", "budget", "half", "animation", "evaluation")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parent.parent.parent / "shared"
PUBLISHED = SHARED / "fixtures" / "tiny"


def pytest_collection_modifyitems(items):
    order = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def shared_folder(tmp_path_factory):
    """A folder of this session, for all of its processes."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory):
    """The folder of compiled programs, for the processes of this session and those that they start; it ends with it."""
    folder = str(shared_folder(tmp_path_factory) / "compiled")
    for name, value in (("compilation_cache_dir", folder), ("persistent_cache_min_compile_time_secs", 0.2)):
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name.upper()}"] = str(value)
    return folder


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs stay in memory for one file of tests, and on disk for all: they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def micro():
    """A small random model of MICRO's sizes."""
    return random_model(MICRO, seed=1)


@pytest.fixture(scope="session")
def published():
    """The folder with the published code's small random weights and their expected outputs."""
    if not PUBLISHED.is_dir():
        pytest.skip("the published code's fixtures (../shared/fixtures/tiny) are not here")
    return PUBLISHED


@pytest.fixture(scope="session")
def published_model(published):
    return load_pretrained(published)


@pytest.fixture(scope="session")
def pose_files(tmp_path_factory):
    """The networks of BlazePose, fetched once for all tests, in whichever process they run."""
    try:
        return fetch_pose_files(shared_folder(tmp_path_factory))
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def one_device(monkeypatch):
    """What whole runs of the training loop are given, with the smallest model: more devices compile longer."""
    monkeypatch.setitem(SIZES, "micro", MICRO)
    return jax.devices()[:1]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def compiled(module, params):
    """A function (method, *args) of a Flax module. A method compiled as a whole is quicker than its operations."""

    @functools.partial(jax.jit, static_argnums=0)
    def apply(method, *args):
        return module.apply({"params": params}, *args, method=method)

    return apply


def normal(rng, *shape):
    """Random normal numbers as a float32 array of JAX."""
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def relative_error(got, expected) -> float:
    """L2 norm of the difference over that of the expected."""
    got, expected = (np.asarray(x).astype(np.float64) for x in (got, expected))
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


class Parity:
    """Compares with the published code and notes the errors for the table at the end of the run."""

    def __init__(self, notes: list[tuple[str, object]]):
        self.notes = notes

    def check(self, name: str, got, expected, limit: float, absolute: bool = False) -> None:
        error = (
            float(np.abs(np.asarray(got, np.float64) - expected).max()) if absolute else relative_error(got, expected)
        )
        self.notes.append(("parity", (name + (" (absolute)" if absolute else ""), error, limit)))
        assert error <= limit, f"{name}: error {error:.2e}, limit {limit:.0e}"


@pytest.fixture
def parity(request):
    return Parity(request.node.user_properties)  # they reach the report from whichever process ran the test


def pytest_terminal_summary(terminalreporter):
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    rows = [
        value
        for report in reports
        if report.when == "call"
        for kind, value in report.user_properties
        if kind == "parity"
    ]
    if not rows:
        return
    terminalreporter.section("error against the published code, relative L2 unless said otherwise")
    width = max(len(name) for name, _, _ in rows)
    for name, error, limit in sorted(rows):
        terminalreporter.line(f"{name:{width}}  {error:8.1e}  limit {limit:.0e}")
