"""What all commands share: how flags are read, how several processes meet, what is logged, and how errors end."""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mafx.errors import InputError
from mafx.interrupts import INTERRUPTED, leaving_at_interrupt

log = logging.getLogger("mafx")
DEFAULT_CACHE = "~/.cache/mafx"
MEMORY_VARIABLES = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")  # JAX takes one of them, not both
CARD_SHARE = 0.9  # of a card's memory that JAX may manage; the rest is for CUDA and the screen
HEARTBEAT_SECONDS = 30  # after which a process counts as gone
BAD_INPUT = 2  # exit status, as argparse has it
STATUSES: dict[type[BaseException], int] = {  # exit statuses
    InputError: BAD_INPUT,
    FloatingPointError: 1,
    OSError: 1,
    KeyboardInterrupt: INTERRUPTED,
}
# From which level on other libraries may speak. What orbax logs as an error (by absl or asyncio), it raises as well.
LIBRARIES = {
    "absl": logging.CRITICAL,
    "asyncio": logging.CRITICAL,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,
    "jax": logging.WARNING,
    "orbax": logging.WARNING,
    "tensorflow_datasets": logging.WARNING,
}


def expand_home(path: str | Path) -> Path:
    """The path with a leading `~` replaced by the home folder; an unknown user's `~` stays as it is."""
    return Path(os.path.expanduser(path))


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations whose complaints are one sentence."""

    def __init__(self, name: str, description: str | None):
        """`description` is the docstring of the command's module."""
        super().__init__(
            prog=name,
            usage=f"{name if name.startswith('python') else f'python {name}'} [FLAGS]",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message}; --help lists the flags\n")


def parse_count(text: str) -> int:
    """The value of a flag that is a number of things."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """The value of a flag that is rows and columns in pixels: "512" or "768x512"."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected one number or HxW, found {text!r}")
    return int(sides[0]), int(sides[-1])


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that names a config. What `parse_known_args` leaves over are changes of its fields."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="NAME:STAGE",
        help="A config by its name or file, and the stage: tiktok:appearance, or configs/tiktok.py:temporal. "
        "--config.FIELD VALUE changes a field; mafx/training/config.py lists them.",
    )


def add_source_flags(add: Callable[..., object]) -> None:
    """The flags that say which model to load, see `mafx.sources.find_source`. `add` is `add_argument` of a parser."""
    add("--pretrained", metavar="FOLDER", help="Folder of published weights.")
    add("--workdir", metavar="RUN", help="Work folder of a training run.")
    add("--checkpoint", default="latest", help="Of --workdir: a step, latest, or best (default latest).")
    add("--lora", metavar="FILE", help="Low-rank update that is added to the model's weights.")


def add_input_flags(add: Callable[..., object]) -> None:
    """The flags that say what to animate, fields of `mafx.inputs.FileRequest`. `add` is `add_argument` of a parser."""
    add("--reference", help="Picture of the person (default: a puppet).")
    add("--motion", help="DensePose video, or a folder of renders (default: a puppet's).")
    add("--size", type=parse_size, help="One number or HxW, in pixels (default: as the model was trained).")
    add("--frames", type=parse_count, help="Take at most so many frames of the motion (default: all).")
    add("--stride", type=parse_count, default=1, help="Take every so many-th frame of the motion (default 1).")


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    """The flag that says where compiled programs are kept."""
    parser.add_argument(
        "--cache",
        default=DEFAULT_CACHE,
        metavar="FOLDER",
        help=f"Folder of compiled programs, so that only the first start compiles (default {DEFAULT_CACHE}; '' keeps "
        "none).",
    )


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """The flags by which one program runs as several processes, each with devices of its own."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="This is one of several processes. SLURM, Kubernetes and TPU pods need no more flags.",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="Address of process 0 (elsewhere).")
    group.add_argument("--processes", type=int, metavar="N", help="Number of processes (elsewhere).")
    group.add_argument("--process", type=int, metavar="I", help="Index of this process (elsewhere).")


def join_processes(args: argparse.Namespace) -> None:
    """Meet the other processes, if the flags say that there are any. Must be called before JAX is used."""
    if args.distributed:
        import jax  # noqa: PLC0415 (slow to import, and --help imports this module)

        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for devices that are CPU cores
        jax.distributed.initialize(
            args.coordinator, args.processes, args.process, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )


def claim_card() -> None:
    """Let JAX manage most of an NVIDIA card's memory, by default 75 %. Must be called before JAX is used.

    What the user set in the environment stays.
    """
    if not any(name in os.environ for name in MEMORY_VARIABLES):
        os.environ[MEMORY_VARIABLES[0]] = str(CARD_SHARE)


def _told_once(show: Callable[[Any], object]) -> Callable[[Any], None]:
    """A hook that leaves out what a full disk refuses to threads of libraries: mafx tells it.

    Behind the first array that cannot be written, orbax closes its event loop, of which tensorstore complains for each
    other array. And tensorboardX tries again to write when Python ends.
    """

    def hook(raised: Any) -> None:
        if not isinstance(raised.exc_value, OSError) and str(raised.exc_value) != "Event loop is closed":
            show(raised)

    return hook


def run_command(name: str, main: Callable[..., object], *args: object) -> int:
    """Run `main(*args)` as the command `name`, and return its exit status.

    mafx's own messages go to stderr as they are; other libraries report warnings only. An InputError becomes one line
    and status 2. A FloatingPointError (a diverged training, a video of no numbers) and an OSError (a full disk) become
    one line and status 1, Ctrl-C one line and status 130.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    for library, level in LIBRARIES.items():
        logging.getLogger(library).setLevel(level)
    sys.unraisablehook, threading.excepthook = _told_once(sys.unraisablehook), _told_once(threading.excepthook)
    try:
        with leaving_at_interrupt(name):
            main(*args)
    except tuple(STATUSES) as error:
        print(f"{name}: {error or 'interrupted'}", file=sys.stderr)
        status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
        if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
            sys.stderr.flush()
            os._exit(status)  # an ordinary exit would wait for the other processes, which may be gone
        return status
    return 0
