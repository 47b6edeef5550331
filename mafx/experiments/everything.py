"""All that the documentation shows of puppets, from nothing: the bundled model, and every experiment with it.

    python -m mafx.experiments.everything --runs RUNS [--list] [--only PART ...]

It runs in the root of the repository. Every command is shown as it runs. A part whose result is in RUNS is not done
again, and a part that was stopped goes on. `--list` shows the parts, their commands, and how long they take on two CPU
cores.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

from mafx.bundled import SUITABLE
from mafx.commands import Parser, expand_home, run_command
from mafx.experiments.runs import run_python

NAME = "python -m mafx.experiments.everything"


@dataclasses.dataclass(frozen=True)
class Part:
    """One result, and the commands that make it.

    Attributes:
      title: What it is.
      hours: How long it takes on two CPU cores; measured beside other work, so that it is less on cores of their own.
      commands: What is run, without "python".
      result: The last file that the commands write.
    """

    title: str
    hours: float
    commands: tuple[tuple[str, ...], ...]
    result: Path


def train(config: str, workdir: Path, start: Path | None = None) -> tuple[str, ...]:
    """The command of a training, perhaps from another run."""
    init_from = () if start is None else ("--config.init_from", str(start))
    return ("train.py", "--config", config, "--workdir", str(workdir), *init_from)


def run(module: str, *flags: object) -> tuple[str, ...]:
    """The command of a module of mafx."""
    return ("-m", f"mafx.{module}", *map(str, flags))


def parts_in(runs: Path) -> dict[str, Part]:
    """All parts by their names, in the order in which they need one another."""
    appearance, temporal, few_steps = (runs / name for name in ("appearance", "temporal", "few_steps"))
    evaluation = temporal / "evaluation"
    measured = ("--split", "test", "--clips", "64", "--frames", "16", "--out", str(evaluation))
    return {
        "model": Part(
            "the bundled model, trained and evaluated",
            1.4,
            (
                train("puppets:appearance", appearance),
                train("puppets:temporal", temporal, appearance),
                ("sample.py", "--workdir", str(temporal), *measured, "--steps", str(SUITABLE["steps"])),
            ),
            evaluation / "metrics.json",
        ),
        "few_steps": Part(
            "quality over the number of steps, before and after tuning",
            1.4,
            (
                train("few_steps:puppets", few_steps, temporal),
                run("experiments.few_steps", "--before", temporal, "--after", few_steps, "--out", runs / "curves"),
            ),
            runs / "curves.json",
        ),
        "ablations": Part(
            "all claims, with three seeds",
            5.0,
            (run("experiments.ablations", "--runs", runs / "ablations", "--jobs", 2),),
            runs / "ablations" / "ablations.md",
        ),
        "personal": Part(
            "updates for one person",
            0.5,
            (run("experiments.personal", "--runs", runs / "personal"),),
            runs / "personal" / "personal.json",
        ),
        "speed_quality": Part(
            "what saving time costs in quality",
            0.3,
            (run("benchmarks.quality", "--out", runs / "speed_quality"),),
            runs / "speed_quality.json",
        ),
        "mirror": Part(
            "how well a mirror imitates, and what it would gain from the last frames",
            0.3,
            (run("experiments.mirror", "--out", runs / "mirror"),),
            runs / "mirror.json",
        ),
    }


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add, names = parser.add_argument, list(parts_in(Path()))
    add("--runs", type=Path, required=True, help="Folder for all work folders and results.")
    add("--only", nargs="+", choices=names, default=names, metavar="PART", help=f"Some of: {', '.join(names)}.")
    add("--list", action="store_true", help="Show the parts and their commands, and run nothing.")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    runs = expand_home(args.runs).resolve()
    parts = parts_in(runs)
    chosen = [parts[name] for name in parts if name in args.only]
    if not args.list:
        runs.mkdir(parents=True, exist_ok=True)
    for part in chosen:
        if args.list:
            print(f"\n{part.title} ({part.hours:g} h on two CPU cores)")
            print("".join(f"$ {shlex.join(['python', *command])}\n" for command in part.commands), end="")
        elif part.result.exists():
            print(f"{part.title}: {part.result} is there")
        else:
            for command in part.commands:
                run_python(*command)


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
