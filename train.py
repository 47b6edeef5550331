"""Train one stage of a model.

    python train.py --config puppets:appearance --workdir RUN [--config.lr 3e-4 ...]

On several machines the same line runs on each of them with --distributed. SLURM, Kubernetes and TPU pods are
recognised. Elsewhere, say who is who: --distributed --coordinator HOST:PORT --processes N --process I.
"""

import argparse
import sys

from mafx.commands import (
    Parser,
    add_cache_flag,
    add_config_flag,
    add_process_flags,
    expand_home,
    join_processes,
    run_command,
)
from mafx.errors import memory_advice
from mafx.limits import add_limit_flags, set_limits

NAME = "train.py"


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(NAME, __doc__)
    add_config_flag(parser)
    parser.add_argument(
        "--workdir", type=expand_home, required=True, help="Folder for checkpoints, metrics and videos."
    )
    add_cache_flag(parser)
    add_process_flags(parser)
    add_limit_flags(parser)
    train_run(*parser.parse_known_args(arguments))


def train_run(args: argparse.Namespace, config_arguments: list[str]) -> None:
    set_limits(args)
    # Imported here, so that --help is quick.
    import jax  # noqa: PLC0415

    from mafx.compiling import keep_programs  # noqa: PLC0415
    from mafx.training.config import parse_config  # noqa: PLC0415
    from mafx.training.fit import advise  # noqa: PLC0415
    from mafx.training.loop import train  # noqa: PLC0415

    config = parse_config(args.config, config_arguments)
    jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    join_processes(args)
    keep_programs(args.cache)
    with memory_advice(lambda: advise(config)):
        train(config, args.workdir)


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
