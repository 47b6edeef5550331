"""How speed is measured: clocks, arithmetic, profiles, processes of their own, and the tables of the results."""

import argparse
import collections
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mafx.compiling import jit
from mafx.flops import count_flops
from mafx.tables import markdown_table

Row = dict[str, Any]  # "name", and figures by the titles of their columns

CHILD = "--child"  # PART FLAGS: how a benchmark starts a process for one of its parts
# Lines of a profile that sum up what other lines have.
SUMMARIES = ("XLA Modules", "Steps", "Framework Ops", "Framework Name Scope", "Source code")


# -- Clocks and arithmetic


def median_seconds(call: Callable[[], object], runs: int) -> float:
    """The median of some runs, after one that is not counted."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def measure_function(name: str, function: Callable, inputs: tuple, runs: int) -> Row:
    """Compile and run a function of arrays: its seconds, its arithmetic, its memory."""
    began = time.perf_counter()
    compiled = jit(function).lower(*inputs).compile()
    compiling = time.perf_counter() - began
    seconds = median_seconds(lambda: compiled(*inputs), runs)
    flops, memory = definition_flops(function, inputs), compiled.memory_analysis()
    return {
        "name": name,
        **rate_columns(seconds, flops),
        "compiling": compiling,
        "temporaries GiB": memory.temp_size_in_bytes / 2**30 if memory else math.nan,
    }


def rate_columns(seconds: float, flops: float) -> Row:
    """The columns of something that takes some seconds and does some floating-point operations."""
    return {"seconds": seconds, "TFLOP": flops / 1e12, "TFLOP/s": flops / seconds / 1e12}


def definition_flops(function: Callable, inputs: tuple) -> int:
    """Floating-point operations of a function by its definition, also where fewer multiplications do."""

    def halve(x: jax.Array) -> jax.ShapeDtypeStruct:
        """In 16 bits every convolution is computed by its definition."""
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(x.shape, jnp.bfloat16 if is_float else x.dtype)

    return count_flops(jax.make_jaxpr(function)(*jax.tree.map(halve, inputs)).jaxpr)


# -- Profiles


class Kernel(NamedTuple):
    """What a profile says of one kernel: the seconds of all its runs together, and their number."""

    name: str
    seconds: float
    runs: int


def read_profile(folder: Path) -> list[Kernel]:
    """The kernels of a profile that `jax.profiler.trace` wrote, those that take longest first."""
    (path,) = folder.glob("**/*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if "/device:" in plane.name]
    seconds: collections.Counter[str] = collections.Counter()
    runs: collections.Counter[str] = collections.Counter()
    for plane in devices or planes:  # a CPU has no plane of its own: the host's has its kernels
        for line in plane.lines:
            if devices and line.name in SUMMARIES:
                continue
            for event in line.events:
                if event.name.startswith("$"):  # a line of Python
                    continue
                name = re.sub(r"[.\d]+$", "", event.name)  # without the number that makes it unique
                seconds[name] += event.duration_ns / 1e9
                runs[name] += 1
    return [Kernel(name, spent, runs[name]) for name, spent in seconds.most_common()]


# -- Processes


def run_apart(module: str, part: str, args: argparse.Namespace) -> list[Row] | None:
    """The rows of one part, measured in a process of its own with memory and compilation of its own.

    Args:
      module: A module that is a command. Behind CHILD it is given the part and its flags as JSON, and prints rows as
        JSON in its last line.
      part: Name of the part.
      args: The part's flags.

    Returns: The rows, or None where the process failed; its messages stand above then.
    """
    command = [sys.executable, "-m", module, CHILD, part, json.dumps(vars(args))]
    # A part may start other processes that use the same device.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        print(f"{args.model}, {part}: exit status {done.returncode}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


# -- Tables


def set_beside(rows: Iterable[Row], measured: Mapping[str, Sequence[Row] | None]) -> list[Row]:
    """The rows with their ratios to the matrix product and to the reference, where these were measured.

    Args:
      rows: Of any part.
      measured: Rows by the part that they come from.
    """
    rate = next((row["TFLOP/s"] for row in measured.get("machine") or () if "TFLOP/s" in row), None)
    reference_seconds = {row["name"]: row["seconds"] for row in measured.get("reference") or () if "seconds" in row}

    def ratios(row: Row) -> Row:
        columns = {}
        if rate and "TFLOP/s" in row:
            columns["of the matrix product"] = row["TFLOP/s"] / rate
        if row["name"] in reference_seconds:
            columns["reference"] = reference_seconds[row["name"]]
            columns["times faster"] = columns["reference"] / row["seconds"]
        return columns

    return [row | ratios(row) for row in rows]


def rows_table(rows: Sequence[Row], title: str) -> str:
    """A Markdown table with a column for every figure that some row has."""
    _, *columns = dict.fromkeys(name for row in rows for name in row)
    return markdown_table((title, *columns), ([row["name"], *map(row.get, columns)] for row in rows))
