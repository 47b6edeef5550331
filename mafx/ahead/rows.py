"""What is known of a program ahead of time: one row per program, one per animation, and the tables of them."""

import dataclasses
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mafx.ahead.categories import Sum, add_up, category, group, network_part
from mafx.ahead.compiling import Compiled, CompilerError, compile_apart
from mafx.ahead.costs import Kernel, kernels_of, rate_of
from mafx.ahead.hlo import read_module
from mafx.ahead.programs import SAMPLING, Job
from mafx.ahead.reports import COLLECTIVES, Memory, read_collectives, read_memory, read_weights
from mafx.ahead.targets import Nvidia, Tpu
from mafx.budget import GIB
from mafx.tables import markdown_table

ANIMATION = "animation"
HEADER = (
    *("program", "result", "runs", "arguments", "temporaries", "total", "with all weights"),
    *("TFLOP", "ms", "of them once", "TFLOP/s", "kernels", "minutes"),
)
WORDS = 2  # columns that hold words
SHOWN_KERNELS = 20


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of a program.

    Attributes:
      job: What was compiled.
      minutes: That this took.
      failure: Why it does not compile, None where it does.
      machine_code: Whether machine code was waited for.
      runs: How often an animation runs the program.
      memory: Of one device.
      unused_weights: Bytes of the weights that the program does not use, but that lie on the device all the same.
      flops: Floating-point operations of one example, or of one run of an animation's part, by JAX's trace.
      kernels: Of one device.
      collectives: Bytes that one device exchanges, see `reports.read_collectives`.
    """

    job: Job
    minutes: float
    failure: str | None = None
    machine_code: bool = False
    runs: int = 0
    memory: Memory = Memory(0, 0, 0, 0)
    unused_weights: int = 0
    flops: int = 0
    kernels: tuple[Kernel, ...] = ()
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Bytes that a device needs: of the program, and of weights that it does not use."""
        return self.memory.total + self.unused_weights

    @property
    def fits(self) -> bool:
        """Whether the card has them."""
        return self.failure is None and self.needed <= self.job.card.usable

    @property
    def repeated(self) -> tuple[Kernel, ...]:
        """The kernels in loops of unknown length; all where there is no such loop."""
        return tuple(k for k in self.kernels if k.repeated) or self.kernels

    @property
    def time(self) -> Sum:
        """What one run takes: once through loops of unknown length, and what stands outside of them."""
        return add_up(self.kernels)

    @property
    def once(self) -> Sum:
        """What of it stands outside of loops of unknown length."""
        kernels = self.kernels if any(k.repeated for k in self.kernels) else ()
        return add_up(k for k in kernels if not k.repeated)

    @property
    def title(self) -> str:
        """The program, and what else tells it from others in a table."""
        job = self.job
        mesh = f", {job.topology}, fsdp {job.fsdp}" if job.topology else ""
        return f"{job.program} stage, remat {job.policy}{mesh}" if job.trains else job.program


def look_ahead(job: Job, quick: bool) -> Row:
    """Compile a job in a process of its own, and read what is known of it then."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = compile_apart(job, Path(folder), quick)
        except CompilerError as error:
            return Row(job, (time.monotonic() - began) / 60, failure=str(error))
    return read_row(job, compiled, (time.monotonic() - began) / 60)


def read_row(job: Job, compiled: Compiled, minutes: float) -> Row:
    """The row of a compiled job."""
    module = read_module(compiled.hlo)
    return Row(
        job,
        minutes,
        machine_code=compiled.machine_code,
        runs=compiled.runs,
        memory=read_memory(compiled.buffers),
        unused_weights=max(0, compiled.weights - read_weights(module)),
        flops=compiled.flops // compiled.examples,
        kernels=tuple(kernels_of(module, job.card, compiled.calls)),
        collectives=read_collectives(module),
    )


# -- A whole animation


@dataclasses.dataclass(frozen=True)
class Animation:
    """What a whole animation takes.

    Attributes:
      needed: Bytes: those of the part that needs most.
      flops: Of all runs of all parts.
      seconds: Likewise, by the model.
      fits: Whether every part fits the card.
    """

    needed: int
    flops: int
    seconds: float
    fits: bool


def whole_animation(rows: Iterable[Row]) -> Animation | None:
    """What all parts of one card together take, None where one is missing or does not compile."""
    parts = [row for row in rows if not row.job.trains and row.failure is None]
    if {row.job.program for row in parts} != set(SAMPLING):
        return None
    return Animation(
        needed=max(row.needed for row in parts),
        flops=sum(row.runs * row.flops for row in parts),
        seconds=sum(row.runs * row.time.seconds for row in parts),
        fits=all(row.fits for row in parts),
    )


# -- Tables


def card_line(card: Nvidia | Tpu) -> str:
    """What a table is about."""
    peaks = f"{card.peak / 1e12:.0f} TFLOP/s and {card.peak_bandwidth / 1e9:.0f} GB/s at its peak"
    return f"{card.title}: {card.memory / GIB:.1f} GiB, {card.kept / GIB:.1f} of them kept by the runtime; {peaks}"


def verdict(fits: bool) -> str:
    return "fits" if fits else "too large"


def row_cells(row: Row) -> list[object]:
    """The cells of a program, by HEADER."""
    if row.failure is not None:
        return [row.title, f"fails: {row.failure}", *[None] * (len(HEADER) - 3), f"{row.minutes:.1f}"]
    time_of_run, memory = row.time, row.memory
    gib = [f"{x / GIB:.2f}" for x in (memory.arguments, memory.temporaries, memory.total, row.needed)]
    seconds = time_of_run.seconds
    per_device = time_of_run.flops / seconds if seconds else 0.0
    return [
        row.title,
        verdict(row.fits) + ("" if row.machine_code else ", machine code not made"),
        row.runs,
        *gib,
        f"{row.flops / 1e12:.2f}",
        f"{1e3 * seconds:.1f}",
        f"{1e3 * row.once.seconds:.1f}",
        f"{per_device / 1e12:.0f}",
        time_of_run.launches,
        f"{row.minutes:.1f}",
    ]


def animation_cells(animation: Animation) -> list[object]:
    """The cells of an animation, by HEADER."""
    rate = animation.flops / animation.seconds / 1e12
    figures = [f"{animation.flops / 1e12:.0f}", f"{1e3 * animation.seconds:.0f}", None, f"{rate:.0f}"]
    needed = f"{animation.needed / GIB:.2f}"
    return [ANIMATION, verdict(animation.fits), 1, None, None, None, needed, *figures, None, None]


def exchange_cells(row: Row) -> list[object]:
    """The cells of what devices exchange, in GiB by COLLECTIVES."""
    return [f"{row.collectives[kind] / GIB:.2f}" if row.collectives else None for kind in COLLECTIVES]


def detail(row: Row) -> str:
    """Tables of a program's kernels: by part of the networks, by kind of work, and those that take longest."""
    kernels, total = row.repeated, add_up(row.repeated)
    card = row.job.card
    arithmetic = sum(k.work.flops / rate_of(k, card) * k.count for k in kernels)
    padded = sum(k.work.padded / rate_of(k, card) * k.count for k in kernels)
    launches = card.rates.launch * total.launches
    shares = {
        "arithmetic": arithmetic,
        "padding": padded - arithmetic,
        "waiting for memory": total.seconds - padded - launches,
        "launches": launches,
    }
    words = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in shares.items())
    tables = [f"{row.title}, {card.title}: {1e3 * total.seconds:.1f} ms, of them {words}\n"]
    keys = {"part": network_part, "kind of work": category, "kernels that take longest": _kernel_title}
    for title, key in keys.items():
        sums = list(group(kernels, key).items())[:SHOWN_KERNELS]
        rows = [(name, *_sum_cells(own, total)) for name, own in sums]
        tables.append(markdown_table((title, "ms", "share", "TFLOP", "GB", "runs"), rows))
    return "\n".join(tables)


def _sum_cells(own: Sum, total: Sum) -> Sequence[object]:
    figures = (f"{1e3 * own.seconds:.2f}", f"{own.seconds / total.seconds:.1%}", f"{own.flops / 1e12:.2f}")
    return *figures, f"{own.size / 1e9:.2f}", own.launches


def _kernel_title(kernel: Kernel) -> str:
    """Kernels of one kind with the same result, work and bytes are one line of a table."""
    work = f"{kernel.work.flops / 1e9:.1f} GFLOP, {kernel.size / 1e6:.1f} MB"
    return f"{category(kernel)} | {network_part(kernel)} | {kernel.result} | {work}".replace("|", "·")


# -- JSON


def row_record(row: Row) -> dict[str, Any]:
    """A row as a value of JSON. Bytes, FLOPs and seconds; those of kernels are of one run on one device."""
    record: dict[str, Any] = dataclasses.asdict(row.job)
    record |= {"remat": row.job.policy, "failure": row.failure, "minutes": round(row.minutes, 2)}
    if row.failure is not None:
        return record
    by = {"parts": network_part, "categories": category}
    record |= {"fits": row.fits, "machine_code": row.machine_code, "runs": row.runs, **row.memory._asdict()}
    record |= {"total": row.memory.total, "needed": row.needed, "usable": row.job.card.usable}
    record |= {"flops": row.flops, "kernels": row.time._asdict(), "once": row.once._asdict()}
    for name, key in by.items():
        record[name] = {title: own._asdict() for title, own in group(row.repeated, key).items()}
    return record | {"collectives": row.collectives}


def animation_record(animation: Animation, target: str) -> dict[str, Any]:
    """An animation as a value of JSON."""
    return {"target": target, "program": ANIMATION, **dataclasses.asdict(animation)}
