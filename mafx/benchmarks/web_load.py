"""Many people on the page at once.

    python -m mafx.benchmarks.web_load --clients 50 --seconds 600

It starts the page in a process of its own, on this machine only. Each client uploads a picture, asks for an animation,
waits for it, fetches it, tries to fetch somebody else's, and begins again. Some leave while they wait. It ends by
itself, and says how many jobs were lost or overtaken, and what memory the page took.
"""

import argparse
import asyncio
import dataclasses
import io
import json
import logging
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from mafx.commands import DEFAULT_CACHE, Parser, parse_count, run_command
from mafx.errors import InputError

NAME = "python -m mafx.benchmarks.web_load"
LEAVING = 0.2  # share of the jobs whose client leaves before they are done
APART = 1.0  # seconds between two jobs from which on the later one must not be done first
START_SECONDS, LONGEST_JOB = 120.0, 300.0
API = "/gradio_api"
log = logging.getLogger("mafx")


@dataclasses.dataclass
class Figures:
    """What was seen.

    Attributes:
      asked: Jobs that were asked for.
      left: Those whose client has left.
      done: Those whose video was fetched.
      lost: Those that gave no video, though their client waited.
      overtaken: Those that were done behind one that was asked for later.
      seen: Files of others that could be fetched.
      tried: How often that was tried.
      waits: Seconds from asking to the video.
      memory: MiB of the page, every second.
    """

    asked: int = 0
    left: int = 0
    done: int = 0
    lost: int = 0
    overtaken: int = 0
    seen: int = 0
    tried: int = 0
    waits: list[float] = dataclasses.field(default_factory=list)
    memory: list[float] = dataclasses.field(default_factory=list)
    _orders: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    _files: list[str] = dataclasses.field(default_factory=list)

    def note_done(self, asked: float, done: float, file: str) -> None:
        self.done += 1
        self.waits.append(done - asked)
        self.overtaken += any(done > earlier and asked < later - APART for later, earlier in self._orders[-200:])
        self._orders.append((asked, done))
        self._files = [*self._files[-20:], file]

    def file_of_another(self, own: str) -> str | None:
        return next((file for file in random.sample(self._files, len(self._files)) if file != own), None)

    def __str__(self) -> str:
        tenth = max(1, len(self.memory) // 10)
        early, late = (
            float(np.median(x)) for x in (self.memory[tenth : 2 * tenth] or [0], self.memory[-tenth:] or [0])
        )
        return (
            f"{self.asked} jobs: {self.done} done, {self.left} left by their clients, {self.lost} lost, "
            f"{self.overtaken} overtaken; {self.seen} of {self.tried} files of others were visible; "
            f"waited {np.median(self.waits or [0]):.1f} s (median), {max(self.waits or [0]):.1f} s (longest); "
            f"memory {early:.0f} MiB early, {late:.0f} MiB late, {max(self.memory or [0]):.0f} MiB at most"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(NAME, __doc__)
    parser.add_argument("--clients", type=parse_count, default=50, help="How many at once (default 50).")
    parser.add_argument("--seconds", type=parse_count, default=600, help="How long (default 600).")
    parser.add_argument("--cache", default=DEFAULT_CACHE, help="Folder of compiled programs.")
    args = parser.parse_args(arguments)
    log.info("%s", measure(args))


def measure(args: argparse.Namespace) -> Figures:
    """Start the page, let clients come and go, and end it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    page = subprocess.Popen(
        [sys.executable, "-m", "mafx.web", "--port", str(port), "--cache", args.cache], stderr=subprocess.DEVNULL
    )
    try:
        return asyncio.run(_visit(f"http://127.0.0.1:{port}", page.pid, args.clients, args.seconds))
    finally:
        page.terminate()
        page.wait()


async def _visit(url: str, pid: int, clients: int, seconds: float) -> Figures:
    figures = Figures()
    await _wait_for_page(url)
    async with httpx.AsyncClient(base_url=url, timeout=LONGEST_JOB) as http:
        await _animate(http, figures, await _number(http), stays=True)  # compiles, and is not counted
    figures = Figures()
    end = time.monotonic() + seconds
    watch = asyncio.create_task(_watch_memory(pid, figures))
    await asyncio.gather(*(_client(url, figures, end) for _ in range(clients)))
    watch.cancel()
    return figures


async def _wait_for_page(url: str) -> None:
    end = time.monotonic() + START_SECONDS
    async with httpx.AsyncClient(timeout=5) as http:
        while time.monotonic() < end:
            try:
                if (await http.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.2)
    raise InputError(
        f"expected the page within {START_SECONDS:.0f} s, found none; call `python -m mafx.web` to see why"
    )


async def _watch_memory(pid: int, figures: Figures) -> None:
    while True:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        figures.memory.append(kib / 1024)
        await asyncio.sleep(1)


async def _client(url: str, figures: Figures, end: float) -> None:
    """A person who comes again and again, each time in a new browser."""
    while time.monotonic() < end:
        async with httpx.AsyncClient(base_url=url, timeout=LONGEST_JOB) as http:
            await _animate(http, figures, await _number(http), stays=random.random() > LEAVING)


async def _number(http: httpx.AsyncClient) -> int:
    """Gradio's number of the animation."""
    await http.get("/")
    config = (await http.get("/config")).json()
    return next(x["id"] for x in config["dependencies"] if x["api_name"] == "animate")


async def _animate(http: httpx.AsyncClient, figures: Figures, number: int, stays: bool) -> None:
    """Upload, ask, and wait, or leave."""
    files = {"files": ("person.png", _picture())}
    path = (await http.post(f"{API}/upload", files=files)).json()[0]
    reference = {"path": path, "meta": {"_type": "gradio.FileData"}}
    session = f"{random.getrandbits(64):x}"
    values = [reference, None, "", "", 16, None, None, None, 0]
    body = {"data": values, "fn_index": number, "session_hash": session}
    asked = time.monotonic()
    (await http.post(f"{API}/queue/join", json=body)).raise_for_status()
    figures.asked += 1
    file = await _wait(http, session, stays)
    if file is None:
        figures.lost, figures.left = figures.lost + stays, figures.left + (not stays)
    else:
        figures.note_done(asked, time.monotonic(), file)
        await _try_another(http, figures, file)


async def _wait(http: httpx.AsyncClient, session: str, stays: bool) -> str | None:
    """The path of the video, once it is there and can be fetched; None where the client leaves, or there is none."""
    async with http.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as answer:
        async for line in answer.aiter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_generating" and not stays:
                return None
            if message.get("msg") == "process_completed":
                break
        else:
            return None
    if not message.get("success"):
        return None
    path = message["output"]["data"][0]["path"]
    fetched = await http.get(f"{API}/file={path}")
    return path if fetched.status_code == 200 and fetched.content else None


async def _try_another(http: httpx.AsyncClient, figures: Figures, own: str) -> None:
    if other := figures.file_of_another(own):
        figures.tried += 1
        figures.seen += (await http.get(f"{API}/file={other}")).status_code == 200


def _picture() -> bytes:
    """A picture that nobody else has."""
    file = io.BytesIO()
    pixels = np.frombuffer(random.randbytes(32 * 32 * 3), np.uint8).reshape(32, 32, 3)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(run_command(NAME, main))
