"""The server: Gradio behind the guard, without anything that leaves the machine."""

import os

from starlette.middleware import Middleware

from mafx.web.guard import LOCAL_HOSTS, Guard
from mafx.web.page import CSS, build, theme
from mafx.web.service import Service
from mafx.web.turns import MOST_WAITING
from mafx.web.uploads import BYTES

LOCAL = "127.0.0.1"
# Settings of Gradio that it reads from the environment.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


FOLDER = "GRADIO_TEMP_DIR"
SESSIONS = 500  # whose state Gradio keeps in memory
SPARE = 20  # of Gradio's places, for what is not an animation


class Server:
    """A page that is served until `close`. There is one of them at a time in a process, as Gradio has one folder.

    Attributes:
      url: Where it is.
    """

    def __init__(self, service: Service, host: str = LOCAL, port: int | None = None, password: str | None = None):
        """Serve the page.

        Args:
          service: What it is for.
          host: Name or address that it listens at.
          port: Its port; None takes a free one from 7860 on.
          password: What everybody must know; None where nobody needs one.
        """
        self._before = {name: os.environ.get(name) for name in (*QUIET, FOLDER)}
        os.environ.update(QUIET | {FOLDER: str(service.folder.path)})
        self._service = service
        self._page, routes = build(service)
        paths = tuple(str(getattr(route, "path", "")).partition("{")[0] for route in routes)
        options = {"password": password, "any_host": host not in LOCAL_HOSTS, "routes": paths}
        self._page.queue(status_update_rate="auto", api_open=False)
        _, self.url, _ = self._page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            max_threads=MOST_WAITING + SPARE,  # Gradio lets no more people wait at once
            quiet=True,
            state_session_capacity=SESSIONS,
            share=False,
            show_error=True,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=BYTES.value,
            theme=theme(),
            css=CSS,
            app_kwargs={"middleware": [Middleware(Guard, folder=service.folder, **options)], "routes": routes},
        )

    def wait(self) -> None:
        """Wait until the server ends."""
        self._page.block_thread()

    def close(self) -> None:
        """End the server, and the service's jobs."""
        self._page.close(verbose=False)
        self._service.close()
        for name, value in self._before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
