"""A page for tests: served from this process, on a free port."""

import contextlib
import socket

from mafx.sources import find_sources
from mafx.web.folders import TemporaryFolder
from mafx.web.server import Server
from mafx.web.service import Service


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(folder, **options):
    """A service, and its server."""
    service = Service(find_sources(None), TemporaryFolder(folder))
    server = Server(service, port=free_port(), **options)
    try:
        yield service, server
    finally:
        server.close()
