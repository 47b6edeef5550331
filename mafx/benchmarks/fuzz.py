"""Change real files at random, read them, and count what happens. Every reader of files is tried.

    python -m mafx.benchmarks.fuzz --cases 1000
    python -m mafx.benchmarks.fuzz --readers pictures --seed 3 --case 17 --out FOLDER

The second line runs one case alone, and keeps its files. A case is right where what was read could be used, and refused
where there was an InputError of one line. All else is a defect: another exception (raw), a crash, no answer within 20
seconds of a core or two minutes (hang), or more than 1.5 GB (memory). Cases run in a child, which is replaced when it
has crashed, hangs or has grown. Libraries for property tests, such as Hypothesis, run cases in their own process, which
such files end. The exit status is 1 where there was a defect. It needs Linux, which says what a process takes.
"""

import argparse
import collections
import dataclasses
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mafx.benchmarks.fuzz_readers import READERS
from mafx.benchmarks.mutations import copy_tree, mutate
from mafx.commands import Parser, run_command
from mafx.errors import InputError
from mafx.tables import markdown_table

NAME = "python -m mafx.benchmarks.fuzz"
SECONDS = 20  # of a core that a case may take
LONGEST = 120  # seconds that it may take where a core has other work, or it waits for something
MEMORY = 1.5e9  # bytes that a child may have
START_SECONDS = 120  # until a child has imported everything
POLL_SECONDS = 0.05
OUTCOMES = ("right", "refused", "raw", "crash", "hang", "memory")
DEFECTS = OUTCOMES[2:]


@dataclasses.dataclass(frozen=True)
class Case:
    """A change of the files of a reader."""

    reader: str
    seed: int
    number: int


@dataclasses.dataclass(frozen=True)
class Result:
    """One of OUTCOMES, and what was raised and where."""

    outcome: str
    detail: str = ""


# -- In the child


def serve(pipe: Connection, inputs: Path, work: Path) -> None:
    """Answer cases until the pipe is closed. The libraries that read files print into nothing."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    pipe.send("ready")
    while True:
        try:
            case = pipe.recv()
        except EOFError:
            return
        pipe.send(run_case(case, inputs / case.reader, work))


def run_case(case: Case, inputs: Path, work: Path) -> Result:
    """Change a copy of a reader's files, and read it."""
    copy_tree(inputs, work)
    rng = np.random.default_rng([case.seed, list(READERS).index(case.reader), case.number])
    result = read_files(case.reader, work, mutate(work, rng))
    if peak_bytes() > MEMORY:
        return Result("memory", f"and {result.outcome}")
    return result


def read_files(reader: str, folder: Path, changed: Path) -> Result:
    """Let a reader read a folder in which a file was changed."""
    try:
        READERS[reader].read(folder, changed)
    except InputError as error:
        message = str(error)
        return Result("refused") if "\n" not in message else Result("raw", f"several lines: {message[:200]}")
    except BaseException as error:  # whatever comes out of a reader is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Result("raw", f"{type(error).__name__} at {Path(last.filename).name} {last.lineno}: {error}"[:200])
    return Result("right")


# -- In the parent


class Child:
    """A process that answers cases, by the function `answers`."""

    def __init__(self, inputs: Path, work: Path, answers: Callable[[Connection, Path, Path], None] = serve):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self.process = context.Process(target=answers, args=(other, inputs, work), daemon=True)
        self.process.start()
        other.close()
        if not self._pipe.poll(START_SECONDS):
            raise InputError(f"the child of {NAME} did not start within {START_SECONDS} s")
        self._pipe.recv()

    def answer(self, case: Case) -> Result:
        """The result of a case. After a crash, a hang or too much memory the child is of no use."""
        self._pipe.send(case)
        try:
            began, used = time.monotonic(), core_seconds(self.process.pid)
            while time.monotonic() - began < LONGEST and core_seconds(self.process.pid) - used < SECONDS:
                if self._pipe.poll(POLL_SECONDS):
                    return self._pipe.recv()
                if resident_bytes(self.process.pid) > MEMORY:
                    return Result("memory", "while it was read")
        except (EOFError, OSError):
            self.process.join()
            return Result("crash", f"exit status {self.process.exitcode}")
        return Result("hang")

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def peak_bytes() -> int:
    """The most memory that this process has had. `getrusage` would count that of the process that started it, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def resident_bytes(process: int | None) -> int:
    """The memory that a process takes now. Raises OSError where there is none."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def core_seconds(process: int | None) -> float:
    """The time that a process has computed. Raises OSError where there is none."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(args: argparse.Namespace) -> None:
    """Run all cases that the flags ask for, and print their table and their defects."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, work = Path(folder) / "inputs", Path(folder) / "work" / "files"
        work.parent.mkdir()
        for name in args.readers:
            READERS[name].write(inputs / name)
        counts, defects = run_cases(args, inputs, work)
    total = sum(counts.values(), collections.Counter())
    rows = [[name, x.total(), *(x[outcome] for outcome in OUTCOMES)] for name, x in [*counts.items(), ("all", total)]]
    print(markdown_table(["reader", "cases", *OUTCOMES], rows))
    for (name, outcome, detail), numbers in defects.items():
        print(f"{name}: {outcome} {detail} in {len(numbers)} cases: {', '.join(map(str, numbers[:5]))}")
    if defects:
        raise FloatingPointError(f"{len(defects)} kinds of defects")


def run_cases(args: argparse.Namespace, inputs: Path, work: Path) -> tuple[dict[str, collections.Counter], dict]:
    """Outcomes by readers, and the numbers of cases by reader, defect and detail."""
    counts: dict[str, collections.Counter] = {}
    defects: dict[tuple[str, str, str], list[int]] = collections.defaultdict(list)
    child = Child(inputs, work)
    for name in args.readers:
        counts[name] = collections.Counter()
        numbers = range(max(1, args.cases // READERS[name].slowness)) if args.case is None else [args.case]
        for number in numbers:
            result = child.answer(Case(name, args.seed, number))
            counts[name][result.outcome] += 1
            if result.outcome in DEFECTS:
                defects[name, result.outcome, result.detail.partition(":")[0]].append(number)
                log_defect(Case(name, args.seed, number), result)
            if result.outcome in DEFECTS[1:]:
                child.end()
                child = Child(inputs, work)
            if args.case is not None and args.out:
                shutil.copytree(work, args.out, symlinks=True)
        print(f"{name}: {dict(counts[name])}", file=sys.stderr, flush=True)
    child.end()
    return counts, defects


def log_defect(case: Case, result: Result) -> None:
    """A line for each defect as soon as it is found."""
    facts: dict[str, Any] = dataclasses.asdict(case) | dataclasses.asdict(result)
    print(json.dumps(facts), file=sys.stderr, flush=True)


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add: Callable = parser.add_argument
    add("--readers", nargs="+", default=list(READERS), choices=READERS, metavar="READER", help=", ".join(READERS))
    add("--cases", type=int, default=100, help="Of each reader; of slow ones a part (default %(default)s).")
    add("--seed", type=int, default=0, help="Other seeds make other changes (default %(default)s).")
    add("--case", type=int, help="Only the case of this number.")
    add("--out", type=Path, help="With --case: a new folder for its files.")
    return parser


def main(arguments: list[str] | None = None) -> None:
    fuzz(make_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
