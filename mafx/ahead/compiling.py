"""Compiling in a process of its own: memory is given back, and a crash of the compiler is a result like others.

`python -m mafx.ahead.compiling FOLDER` is that process. It reads a job from the folder, and leaves there what it traced
and what the compiler reports.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax

from mafx.ahead.pallas import PallasCall, pallas_calls
from mafx.ahead.programs import Job, answer_for_card, trace
from mafx.ahead.targets import Nvidia
from mafx.compiling import COMPILER_OPTIONS
from mafx.errors import InputError, is_out_of_memory
from mafx.files import read_json
from mafx.flops import count_flops

MODULE = "mafx.ahead.compiling"
JOB, TRACED, FAILURE, LOG = "job.json", "traced.json", "failure.txt", "log.txt"
REPORTS = "reports"  # the compiler's folder
BUFFERS_REPORT = "*after_optimizations-buffer-assignment.txt"
HLO_REPORT = "*after_optimizations.txt"
NEXT_REPORT = "*after_optimizations-memory-usage-report.txt"  # written after these two
REASON_LENGTH = 300  # characters

# Cards are only compiled for: there is nothing to ask about, and nothing to lock.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Tuning runs kernels. Without it, matrix products stay with cuBLAS; Triton's would be tuned.
NVIDIA_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# These differ from what the compiler does by itself. Nothing is moved to the cores' own memory, so that all arrays are
# counted. Matrix products are not cut into rings of smaller ones, so that what is gathered appears as such.
TPU_OPTIONS = {
    "xla_vf_vmem_memory_space_assignment": "false",
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}


class Compiled(NamedTuple):
    """What is known of a program once it is compiled.

    Attributes:
      runs: See `programs.Traced`; so the next three.
      examples: Likewise.
      weights: Likewise.
      flops: Floating-point operations of its matrix products and convolutions, on all devices.
      calls: Its Pallas kernels.
      buffers: The compiler's report of what it allocates.
      hlo: The optimised program.
      machine_code: Whether machine code was waited for.
    """

    runs: int
    examples: int
    weights: int
    flops: int
    calls: list[PallasCall]
    buffers: str
    hlo: str
    machine_code: bool


class CompilerError(Exception):
    """A program does not compile; the message is the reason, on one line."""


# -- Here


def compile_apart(job: Job, folder: Path, quick: bool = False) -> Compiled:
    """Compile a job in a new process.

    Args:
      job: What to compile.
      folder: An empty folder for the compiler's reports.
      quick: Stop the compiler once it has reported, before it makes machine code.

    Raises:
      CompilerError: Where it does not compile.
    """
    (folder / JOB).write_text(json.dumps(dataclasses.asdict(job)))
    with open(folder / LOG, "w") as log:
        command = [sys.executable, "-m", MODULE, str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
        try:
            while process.poll() is None and not (quick and list((folder / REPORTS).glob(NEXT_REPORT))):
                time.sleep(0.2)
            stopped = process.poll() is None
        finally:
            process.kill()
            process.wait()
    if process.returncode and not stopped:
        raise CompilerError(_reason(folder, process.returncode))
    traced = read_json(folder / TRACED)
    calls = [PallasCall(name, _shapes(a), _shapes(b), flops) for name, a, b, flops in traced.pop("calls")]
    buffers, hlo = (next((folder / REPORTS).glob(pattern)).read_text() for pattern in (BUFFERS_REPORT, HLO_REPORT))
    return Compiled(**traced, calls=calls, buffers=buffers, hlo=hlo, machine_code=not stopped)


def _shapes(lists: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, lists))


def _reason(folder: Path, status: int) -> str:
    """Why a process failed: what it wrote down, or the last line of its messages."""
    if (folder / FAILURE).is_file():
        return (folder / FAILURE).read_text()
    lines = [line.strip() for line in (folder / LOG).read_text(errors="replace").splitlines() if line.strip()]
    ended = f"the compiler was killed by signal {-status}" if status < 0 else f"the compiler ended with status {status}"
    return _one_line(f"{ended}; {lines[-1]}" if lines else ended)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:REASON_LENGTH]


# -- In the process of its own


def main(folder: Path) -> int:
    """Compile the job of a folder; returns the exit status."""
    values = read_json(folder / JOB)
    job = Job(**values | {"size": tuple(values["size"])})
    jax.config.update("jax_enable_compilation_cache", False)  # what is read from a cache is not reported
    try:
        _compile(job, folder)
    except Exception as error:  # whatever stops a program is a result
        message = _one_line(str(error))
        if is_out_of_memory(error):
            message = f"out of memory: {message}"
        elif not isinstance(error, InputError):
            message = f"{type(error).__name__}: {message}"
        (folder / FAILURE).write_text(message)
        raise
    return 0


def _compile(job: Job, folder: Path) -> None:
    options: dict = TPU_OPTIONS
    if isinstance(job.card, Nvidia):
        answer_for_card(job.card)
        options = NVIDIA_OPTIONS if job.trains else NVIDIA_OPTIONS | COMPILER_OPTIONS["gpu"]
    traced = trace(job)
    notes = {
        "runs": traced.runs,
        "examples": traced.examples,
        "weights": traced.weights,
        "flops": count_flops(traced.stage.jaxpr.jaxpr),
        "calls": sorted(pallas_calls(traced.stage.jaxpr.jaxpr)),
    }
    (folder / TRACED).write_text(json.dumps(notes))
    reporting = {"xla_dump_to": str(folder / REPORTS), "xla_dump_hlo_as_text": True}
    traced.stage.lower(lowering_platforms=(job.card.platform,)).compile(compiler_options=options | reporting)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
