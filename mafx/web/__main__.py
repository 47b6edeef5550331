"""Serve a page that animates: python -m mafx.web, then open the address that it says.

The bundled model and a drawn puppet are there from the start. --models names a folder whose sub-folders are runs or
published weights. The page is for this machine only, unless --host says otherwise; then --password is demanded.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from mafx.commands import Parser, add_cache_flag, claim_card, expand_home, run_command
from mafx.errors import InputError
from mafx.limits import add_limit_flags, set_limits

NAME = "python -m mafx.web"
LOCAL = "127.0.0.1"


def make_parser() -> Parser:
    parser = Parser(NAME, __doc__)
    add = parser.add_argument
    add("--models", metavar="FOLDER", help="Folder whose sub-folders are runs of train.py, or published weights.")
    add("--host", default=LOCAL, help=f"Name or address to listen at (default {LOCAL}: this machine only).")
    add("--port", type=int, help="Port (default: the first free one from 7860 on).")
    add("--password", help="What everybody who opens the page must know. Demanded with --host.")
    add("--densepose", metavar="FILE", help="What finds people, as in sample.py.")
    add_cache_flag(parser)
    add_limit_flags(parser)
    return parser
