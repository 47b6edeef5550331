"""Look ahead: what sampling and training would take on a card that is not here. Everything is compiled, nothing runs.

    pip install "jax[cuda12]"       # compiles for NVIDIA cards, and needs none
    python -m mafx.ahead --target h100 4090
    python -m mafx.ahead --target t4 --size 256 256 --programs steps decoding --detail
    python -m mafx.ahead --target a100 --programs temporal --remat products blocks --quick

    pip install "jax[tpu]"          # compiles for TPUs
    python -m mafx.ahead --target v5e --quick
    python -m mafx.ahead --target v5p --topology 2x2x2 4x4x4 --fsdp 1 8 --quick

Programs are the parts of an animation, a training step of each stage, and "densepose", which finds people in four
frames. A row says whether a program compiles and fits, and its memory in GiB on one device: arguments, temporaries, all
of it, and all of it with the weights that it does not use but that lie on the device all the same. What the runtime
keeps is left free. JAX takes three quarters of an NVIDIA card unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.

Times are modelled. No card was measured to check them. A kernel takes the larger of arithmetic / rate and bytes /
bandwidth, and its launch; rates are assumptions, see mafx/ahead/targets.py. "ms" is one run: of `steps` one guided step
of one window, with what each call does once ("of them once"). An animation is all parts times their runs. Training
steps of many devices exchange arrays besides; the bytes stand in the table, their time does not. TFLOP are those of an
example, as JAX traced it: what is computed again counts again.

The compiler differs from that on a machine with the card in three ways. It tunes nothing: matrix products stay with
cuBLAS, and are never Triton's. It does not ask cuDNN for plans, whose workspace counts as nothing. On TPUs nothing is
moved to the cores' own memory. The compiler's version matters: jax 0.10.2 belongs to libtpu 0.0.42. --quick stops it
before it makes machine code, which takes half of the time or more.

The exit status is 1 where a program does not compile.
"""

import argparse
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mafx.ahead.programs import PROGRAMS, SAMPLING, Job
from mafx.ahead.reports import COLLECTIVES
from mafx.ahead.rows import (
    HEADER,
    WORDS,
    Row,
    animation_cells,
    animation_record,
    card_line,
    detail,
    exchange_cells,
    look_ahead,
    row_cells,
    row_record,
    whole_animation,
)
from mafx.ahead.targets import TARGETS
from mafx.commands import Parser, run_command
from mafx.errors import InputError
from mafx.models.animator import SIZES
from mafx.models.attention import KERNELS
from mafx.models.unet import REMAT
from mafx.tables import markdown_table
from mafx.training.config import STAGES, parse_config

NAME = "python -m mafx.ahead"
FAILED = 1  # exit status
# By platform: modules of which one is needed, what they are, and how they are installed.
COMPILERS = {
    "cuda": (("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"), "JAX's CUDA plug-in", 'pip install "jax[cuda12]"'),
    "tpu": (("libtpu",), "the package libtpu", 'pip install "jax[tpu]"'),
}


def check_compiler(target: str) -> None:
    """Raise InputError where the compiler for a target is missing."""
    modules, package, install = COMPILERS[TARGETS[target].platform]
    if not any(map(_is_installed, modules)):
        raise InputError(f"expected {package}, which compiles for {target}, found none; {install}")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # nor what it is in
        return False


def make_jobs(target: str, args: argparse.Namespace) -> list[Job]:
    """Everything that is asked for of one target. A topology is for training alone."""
    programs = args.programs or (STAGES if args.topology else (*SAMPLING, *STAGES))
    dtype = args.dtype or TARGETS[target].dtype
    shared = {"target": target, "model": args.model, "dtype": dtype, "size": tuple(args.size), "frames": args.frames}
    jobs = []
    for program in programs:
        if program not in STAGES:
            jobs.append(Job(program=program, attention=args.kernel, **shared))
            continue
        for topology, fsdp, remat in itertools.product(args.topology or [None], args.fsdp, args.remat):
            mesh = {"topology": topology, "fsdp": fsdp, "remat": remat, "batch": args.batch, "config": args.config}
            jobs.append(Job(program=program, attention=args.kernel, **shared, **mesh))
    return jobs


def print_rows(target: str, rows: Iterable[Row], args: argparse.Namespace) -> Iterator[Row]:
    """Print the table of one target row by row, and pass the rows on."""
    H, W = args.size
    header: tuple[str, ...] = (*HEADER, *COLLECTIVES) if args.topology else HEADER

    def show(cells: list[object]) -> None:
        print(markdown_table(header, [cells], WORDS).splitlines()[-1], flush=True)

    dtype = args.dtype or TARGETS[target].dtype
    print(f"{card_line(TARGETS[target])}\n{args.model}, {H}x{W}, {args.frames} frames, {dtype}; times are modelled\n")
    print(markdown_table(header, [], WORDS), end="", flush=True)
    shown = []
    for row in rows:
        show(row_cells(row) + (exchange_cells(row) if args.topology else []))
        shown.append(row)
        yield row
    if animation := whole_animation(shown):
        show(animation_cells(animation) + ([None] * len(COLLECTIVES) if args.topology else []))
    print(flush=True)
    if args.detail:
        for row in shown:
            if row.failure is None:
                print(detail(row), flush=True)


def compile_jobs(jobs: list[Job], args: argparse.Namespace) -> Iterator[Row]:
    """The rows of jobs, in their order. Where nobody waits for them any more, no further job begins."""
    pool = ThreadPoolExecutor(args.jobs)
    try:
        yield from pool.map(partial(look_ahead, quick=args.quick), jobs)
    finally:
        pool.shutdown(cancel_futures=True)


def look(args: argparse.Namespace) -> bool:
    """Print all tables and write all rows; returns whether everything compiles."""
    for target in args.target:
        check_compiler(target)
    records, compiles = [], True
    for target in args.target:
        rows = []
        for row in print_rows(target, compile_jobs(make_jobs(target, args), args), args):
            rows.append(row)
            records.append(row_record(row))
            write_records(records, args.json)
        if animation := whole_animation(rows):
            records.append(animation_record(animation, target))
            write_records(records, args.json)
        compiles = compiles and all(row.failure is None for row in rows)
    return compiles


def write_records(records: list[dict], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(records, indent=1) + "\n")


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--target", nargs="+", required=True, choices=TARGETS, help="Cards to compile for.")
    add("--programs", nargs="+", choices=PROGRAMS, help="What is compiled (default: all but densepose).")
    add("--model", default="sd15", choices=SIZES, help="Sizes of the networks (default sd15).")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="Default bfloat16; float16 on a T4.")
    add("--size", nargs=2, type=int, default=(512, 512), metavar=("H", "W"), help="In pixels (default 512 512).")
    add("--frames", type=int, default=16, help="Of the video, or of an example of the temporal stage (default 16).")
    add("--kernel", default="auto", choices=("auto", *KERNELS), help="Kernel of all attention (default auto).")
    add("--quick", action="store_true", help="Do not wait for machine code.")
    add("--jobs", type=int, default=1, help="Programs that are compiled at once (default 1); each takes 3 to 10 GB.")
    add("--detail", action="store_true", help="Also print where the time goes.")
    add("--json", type=Path, metavar="FILE", help="File for all rows.")
    group = parser.add_argument_group("training steps")
    add = group.add_argument
    add("--remat", nargs="+", default=[None], choices=REMAT, help="What is computed again (default: the stage's own).")
    add("--batch", type=int, default=1, help="Examples per device (default 1).")
    add("--config", metavar="NAME:STAGE", help="The step of this config, instead of --programs, --size and so on.")
    add(
        "--topology",
        nargs="+",
        help="Several devices: shapes of TPU slices as libtpu has them (2x2x2), or slices x hosts x cards (1x1x8).",
    )
    add("--fsdp", nargs="+", type=int, default=[1], help="Devices that share the parameters (default 1).")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a program that does not compile ends it with status 1."""
    args = make_parser().parse_args(arguments)
    if args.config:
        take_config(args)
    if not look(args):
        raise SystemExit(FAILED)


def take_config(args: argparse.Namespace) -> None:
    """Let a config say what is compiled."""
    config = parse_config(args.config, [])
    args.programs, args.model, args.remat, args.batch = [config.stage], config.model, [config.remat], config.batch
    args.size, args.frames, args.dtype = config.data.size, config.data.frames, args.dtype or config.dtype


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
