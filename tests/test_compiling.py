"""Options of the compiler."""

import os
import subprocess
import sys

import jax
import pytest

from mafx.compiling import COMPILER_OPTIONS, STEP_OPTIONS, known_options

# Each of the loops calls a function of C. The count of object files is that of their magic number.
COUNT_OBJECTS = """
import jax
from mafx.compiling import STEP_OPTIONS, known_options

LOOPS = 60
x = [jax.numpy.ones((4, 4 + i)) for i in range(LOOPS)]

def count(options):
    compiled = jax.jit(lambda x: [jax.numpy.cos(2 * x) for x in x], compiler_options=options).lower(x).compile()
    return compiled.runtime_executable().serialize().count(b"\x7fELF")

print(count({}), count(known_options(STEP_OPTIONS, "cpu")))
"""


def test_a_step_is_fewer_object_files_than_loops():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", COUNT_OBJECTS], check=False, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    usual, of_steps = map(int, run.stdout.split())
    if usual < 60:
        pytest.skip("this version of XLA does not make an object file of each loop")
    assert of_steps < 60


def test_options_are_those_of_the_platform_that_compiles():
    assert known_options(COMPILER_OPTIONS, jax.default_backend()) == COMPILER_OPTIONS[jax.default_backend()]
    assert known_options(STEP_OPTIONS, "tpu") == {}
    assert known_options({"cpu": {"xla_cpu_of_another_version": True}}, "cpu") == {}
