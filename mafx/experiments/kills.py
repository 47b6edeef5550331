"""Kill a small training (-9) at random moments, start it again until it ends, and compare it with one left alone.

    python -m mafx.experiments.kills --out FOLDER [--kills 20] [--seed 1] [--processes 2]

The training draws puppets, encodes them once as latents, and writes a checkpoint every few steps, so that kills hit all
of these. Where it ends before it has been killed often enough, another one is begun. A table says where each kill hit
and how many steps were lost. At the end of each training, every array of its last checkpoint and every loss of its
metrics.jsonl must be those of the training that was left alone, bit for bit. With several processes one of them is
killed, and the others must end by themselves.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mafx.commands import Parser, expand_home, run_command
from mafx.errors import InputError
from mafx.tables import markdown_table
from mafx.training.checkpoints import FOLDER, last_arrays
from mafx.training.config import CONFIGS

NAME = "python -m mafx.experiments.kills"
STEPS, SAVE_EVERY = 24, 4
CLIPS = 6  # that are drawn and encoded
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SHOWN = "step/s"  # in the bar of a training that steps
STEP_SHARE = 2 / 3
PATIENCE = 600  # seconds that a training may take
WITHIN = 60  # seconds in which the others end once one process is gone
CONFIG = f"""
from configs import puppets

def get_config(stage):
    config = puppets.get_config(stage)
    config.train_only = (("^unet/decoder/(up_blocks_2|conv_out)", True), (".*", False))  # little to compile and to save
    config.batch, config.steps, config.save_every, config.log_every = 2, {STEPS}, {SAVE_EVERY}, 1
    config.cpu_devices, config.warmup, config.show_clips, config.decay = 1, 0, 0, "constant"
    config.data.size, config.data.train_clips, config.data.test_clips = (16, 16), {CLIPS}, 1
    return config
"""


class Kill(NamedTuple):
    """A row of the table: seconds after the start, what it hit, the steps that were done and that were lost.

    `waited` are the seconds until the other processes had ended, and `said` the last line of one of them.
    """

    seconds: float
    hit: str
    done: int
    lost: int
    waited: float | None
    said: str


# -- Starting and killing


def start(out: Path, name: str, processes: int) -> list[subprocess.Popen]:
    """Start the training `name`, in as many processes, which write what they say to files."""
    flags = {"config.data.latent_cache": out / name / "latents", "workdir": out / name, "cache": out / "programs"}
    command = [sys.executable, str(CONFIGS.parent / "train.py"), "--config", f"{out / 'small.py'}:appearance"]
    command += [f"--{flag}={value}" for flag, value in flags.items()]
    started = []
    environment = os.environ | {"XLA_FLAGS": QUICK_COMPILATION}
    address = f"localhost:{_free_port()}"
    for i in range(processes):
        among = ["--distributed", "--coordinator", address, "--processes", str(processes), "--process", str(i)]
        with (out / f"{name}_{i}.log").open("w") as log:
            started.append(
                subprocess.Popen([*command, *(among if processes > 1 else [])], stdout=log, stderr=log, env=environment)
            )
    return started


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def finish(out: Path, name: str, started: Sequence[subprocess.Popen], seconds: float) -> bool:
    """Wait so many seconds for the processes. Whether they have ended; raises RuntimeError where one has failed."""
    until = time.monotonic() + seconds
    try:
        statuses = [process.wait(max(0.0, until - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        return False
    if any(statuses):
        raise RuntimeError(f"{name} ended by itself with {statuses}: {said(out, name, len(started))}")
    return True


def wait_for_steps(out: Path, name: str, started: Sequence[subprocess.Popen]) -> None:
    """Wait until the first process shows its first step, or one of them has ended."""
    while all(process.poll() is None for process in started) and SHOWN not in (out / f"{name}_0.log").read_text():
        time.sleep(0.05)


def said(out: Path, name: str, processes: int) -> str:
    """The last line of the last process that said something."""
    lines = [line for i in range(processes) for line in (out / f"{name}_{i}.log").read_text().splitlines() if line]
    return lines[-1] if lines else ""


def kill(out: Path, name: str, started: Sequence[subprocess.Popen], moment: float, one: int) -> Kill:
    """Kill one process, wait until the others have ended, and say what was hit."""
    started[one].kill()
    began = time.monotonic()
    others = [process for i, process in enumerate(started) if i != one]
    for process in others:
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
    started[one].wait()
    waited = time.monotonic() - began if others else None
    workdir = out / name
    done = max(losses(workdir), default=0)
    newest = max(checkpoint_steps(workdir), default=0)
    return Kill(moment, hit(workdir), done, max(0, done - newest), waited, said(out, name, len(started)))


def hit(workdir: Path) -> str:
    """What a training was doing when it was killed, by what it left behind."""
    if any("tmp" in path.name for path in [*workdir.glob("checkpoints/*"), *workdir.glob("frozen*")]):
        return "writing a checkpoint"
    latents = len(list(workdir.glob("latents/puppets/[!.]*.npy")))
    if latents < CLIPS or list(workdir.glob("latents/puppets/*.part.npy")):
        return "encoding latents" if latents else "starting"
    return "training, or starting again" if losses(workdir) else "compiling"


# -- Comparing


def checkpoint_steps(workdir: Path) -> list[int]:
    return [int(path.name) for path in workdir.glob(f"{FOLDER}/*") if path.name.isdigit()]


def losses(workdir: Path) -> dict[int, float]:
    """The losses in metrics.jsonl by their steps. A line that a kill has cut is none."""
    path, found = workdir / "metrics.jsonl", {}
    for line in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if line.endswith("}\n"):
            values = json.loads(line)
            found[values["step"]] = values["loss"]
    return found


def differences(one: Path, other: Path) -> list[str]:
    """Names of what differs between two trainings that have ended."""
    found = [] if losses(one) == losses(other) else ["losses"]
    lines = (other / "metrics.jsonl").read_text().splitlines()
    found += [] if len(lines) == STEPS else [f"{len(lines)} lines of metrics.jsonl"]
    first, second = last_arrays(one), last_arrays(other)
    found += sorted(first.keys() ^ second.keys())
    return found + [name for name in first.keys() & second.keys() if not _equal_bits(first[name], second[name])]


def _equal_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


# -- The command


def torment(
    out: Path, kills: int, seed: int, processes: int, start_seconds: float, step_seconds: float
) -> tuple[list[Kill], list[str]]:
    """Kill trainings at random moments until there were so many kills.

    Args:
      out: The folder, which has the training "alone".
      kills: Their number.
      seed: Of the moments.
      processes: Number of processes of a training.
      start_seconds: That a training takes to its first step. A third of the kills are within these.
      step_seconds: That its steps take. The others are within these, behind the first step.

    Returns: The kills, and what differed at the end of any training.
    """
    rng, round_number, under_way = random.Random(seed), 0, False
    rows: list[Kill] = []
    odd: list[str] = []
    while len(rows) < kills or under_way:
        name = f"round{round_number}"
        started = start(out, name, processes)
        began, moment = time.monotonic(), rng.uniform(0, start_seconds)
        if rng.random() < STEP_SHARE:
            wait_for_steps(out, name, started)
            moment = rng.uniform(0, step_seconds)
        if finish(out, name, started, moment if len(rows) < kills else PATIENCE):
            odd += [f"{name}: {x}" for x in differences(out / "alone", out / name)]
            print(f"{name} has ended, with {len(odd)} differences", flush=True)
            shutil.rmtree(out / name)
            round_number, under_way = round_number + 1, False
            continue
        under_way = True
        rows.append(kill(out, name, started, time.monotonic() - began, rng.randrange(processes)))
        print(f"{len(rows)}: {rows[-1]}", flush=True)
    return rows, odd


def main(args: argparse.Namespace) -> None:
    out = expand_home(args.out).resolve()
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out: expected a new or empty folder, found files in {out}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "small.py").write_text(CONFIG)
    for name in ("compiling", "alone"):  # the first also fills the cache of programs
        began = time.monotonic()
        started = start(out, name, args.processes)
        wait_for_steps(out, name, started)
        first = time.monotonic()
        if not finish(out, name, started, PATIENCE):
            raise InputError(f"expected {STEPS} steps in {PATIENCE} s, found {len(losses(out / name))}")
    span = time.monotonic() - began
    rows, odd = torment(out, args.kills, args.seed, args.processes, first - began, began + span - first)
    header = ("hit", "said by the others", "after s", "done", "lost", "others ended after s")
    cells = [(x.hit, x.said[:80] if x.waited else "", round(x.seconds, 1), x.done, x.lost, x.waited) for x in rows]
    table = markdown_table(header, cells, words=2)
    (out / "kills.md").write_text(table)
    print(f"\nA training of {STEPS} steps takes {span:.0f} s and saves every {SAVE_EVERY}.\n\n{table}")
    late = [row for row in rows if row.waited and row.waited > WITHIN]
    if odd or late:
        raise InputError(f"expected equal trainings, and others that end in {WITHIN} s; found {odd[:5]} and {late[:5]}")
    print(f"{len(rows)} kills; all that ended equals what was left alone, bit for bit.")


if __name__ == "__main__":
    parser = Parser(NAME, __doc__)
    parser.add_argument("--out", required=True, help="New folder for the trainings and the table.")
    parser.add_argument("--kills", type=int, default=20, help="Number of kills (default %(default)s).")
    parser.add_argument("--seed", type=int, default=1, help="Of the moments (default %(default)s).")
    parser.add_argument("--processes", type=int, default=1, help="Of each training (default %(default)s).")
    sys.exit(run_command(NAME, main, parser.parse_args()))
