"""Serve a page that animates: python -m mafx.web, then open the address that it says.

The bundled model and a drawn puppet are there from the start. --models names a folder whose sub-folders are runs or
published weights. MODEL.PERSON.safetensors beside them is a low-rank update of one of them. The page is for this
machine only, unless --host says otherwise; then --password is demanded.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from mafx.commands import Parser, add_cache_flag, claim_card, run_command
from mafx.errors import InputError, refusals
from mafx.limits import add_limit_flags, set_limits
from mafx.web.guard import LOCAL_HOSTS

NAME = "python -m mafx.web"
LOCAL = "127.0.0.1"
log = logging.getLogger("mafx")


def make_parser() -> Parser:
    from mafx.web.uploads import LIMITS  # noqa: PLC0415 (slow; at the top, Ctrl-C would end in a traceback)

    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--models", metavar="FOLDER", help="Folder whose sub-folders are runs of train.py, or published weights.")
    add("--host", default=LOCAL, help=f"Name or address to listen at (default {LOCAL}: this machine only).")
    add("--port", type=int, help="Port (default: the first free one from 7860 on).")
    add("--password", help="What everybody who opens the page must know. Demanded with --host.")
    add("--densepose", metavar="FILE", help="What finds people in ordinary videos, as in sample.py.")
    add("--fetch_networks", action="store_true", help="Fetch landmark networks that do so, once, by pip.")
    add("--dtype", help="What the networks compute in (default by card; float32 on a CPU).")
    add("--memory", type=float, metavar="GIB", help="Memory of the card, as in sample.py.")
    add_cache_flag(parser)
    add_limit_flags(parser, LIMITS)
    return parser


def choose_finder(args: argparse.Namespace, dtype: str):
    """What finds people: nothing is fetched unless that is asked for."""
    from mafx.densepose.finders import FinderOptions  # noqa: PLC0415 (slow)
    from mafx.densepose.pose_files import fetch_pose_files, kept_networks  # noqa: PLC0415

    if args.fetch_networks:
        fetch_pose_files(args.cache)
    weights = args.densepose or kept_networks(args.cache)
    return FinderOptions(weights=weights, dtype=dtype, cache=args.cache) if weights else None


def main(arguments: list[str] | None = None) -> None:
    args = make_parser().parse_args(arguments)
    from mafx.web.uploads import LIMITS  # noqa: PLC0415 (slow, and --help does without)

    set_limits(args, LIMITS)
    if args.host not in LOCAL_HOSTS and not args.password:
        raise InputError(f"expected a --password, since others reach the page at {args.host}; found none")
    if args.memory is not None:
        claim_card()
    with refusals('expected Gradio; install it by `pip install -e ".[web]"`'):
        from mafx.web.server import Server  # noqa: PLC0415 (slow, and --help does without)
    from mafx.compiling import keep_programs  # noqa: PLC0415
    from mafx.model import network_dtype  # noqa: PLC0415
    from mafx.sources import default_dtype, find_sources  # noqa: PLC0415
    from mafx.web.folders import TemporaryFolder  # noqa: PLC0415
    from mafx.web.service import Service  # noqa: PLC0415

    keep_programs(args.cache)
    dtype = network_dtype(args.dtype or default_dtype()).name
    with tempfile.TemporaryDirectory(prefix="mafx-") as folder:
        files = TemporaryFolder(Path(folder))
        finder = choose_finder(args, dtype)
        service = Service(find_sources(args.models), files, dtype=dtype, finder=finder, memory=args.memory)
        service.folder.sweep_always()
        server = Server(service, args.host, args.port, args.password)
        service.warm_up()
        log.info("The page is at %s. Ctrl-C ends it.", server.url)
        server.wait()


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
