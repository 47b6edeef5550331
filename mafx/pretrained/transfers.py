"""Bytes over HTTP: a file comes piece by piece, goes on where it was interrupted, and is compared with its checksum.

Requests go through the session of huggingface_hub. It knows proxies (HTTPS_PROXY), certificates, and redirections, to
which it does not pass on the user's token. Its own `hf_hub_download` is not used: since version 2 it forgets what came
before an interruption.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mafx.errors import InputError

T = TypeVar("T")

ATTEMPTS = 4  # in a row that bring nothing
WAIT_SECONDS = 1.0  # after the first of them, doubled after each
TIMEOUT_SECONDS = 30.0  # of a server that says nothing
BLOCK_BYTES = 2**20  # that are hashed at once
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # statuses of HTTP after which the same request may succeed
REFUSED, NOT_FOUND = (401, 403, 407), (404, 410)
CONTINUED, NO_SUCH_RANGE = 206, 416


class Checksum(NamedTuple):
    """What a file must have: the first digits of its SHA-256, or git's name of it (`git hash-object`)."""

    kind: str  # "sha256" or "git"
    digits: str

    def of(self, path: Path) -> str:
        """All digits of a file's checksum of this kind."""
        state = hashlib.sha256()
        if self.kind == "git":
            state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                state.update(block)
        return state.hexdigest()


@dataclasses.dataclass(frozen=True)
class Source:
    """Where bytes come from, and what they must be.

    Attributes:
      url: Their address.
      headers: What the server must be told.
      size: Their number, None where nobody knows it.
      checksum: None where none is published.
      advice: What to do where the server does not give them.
    """

    url: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    size: int | None = None
    checksum: Checksum | None = None
    advice: str = "put the file there by hand, or leave out its group"

    def complaint(self, path: Path) -> str:
        """What is wrong with a file that should have these bytes, empty where nothing is."""
        size = path.stat().st_size
        if self.size not in (None, size):
            return f"expected {self.size} bytes, found {size}"
        if self.checksum is None:
            return ""
        found = self.checksum.of(path)
        if found.startswith(self.checksum.digits):
            return ""
        return f"expected the {self.checksum.kind} checksum {self.checksum.digits}, found {found}"


def host_of(url: str) -> str:
    """The server that an address names, for messages."""
    return urlsplit(url).netloc or url


# -- Transfers


def transfer(source: Source, path: Path, what: str, came: Callable[[int], object]) -> None:
    """Fetch a file, behind what is there of it. Broken connections are mended.

    Args:
      source: Where it comes from.
      path: Where it goes; the bytes that are there must be its first ones.
      what: Its name in messages.
      came: Called with the number of bytes that came, which is negative where some must come again.

    Raises:
      InputError: The server refuses the file, or does not have it.
      OSError: It cannot be reached, or there is no room. What came is kept.
    """

    def attempt() -> None:
        if _size(path) != source.size:
            _receive(source, path, came)
        if source.size is not None and _size(path) < source.size:
            raise ConnectionError(f"the connection ended after {_size(path)} of {source.size} bytes")

    persistently(attempt, what, source, lambda: _size(path))


def _receive(source: Source, path: Path, came: Callable[[int], object]) -> None:
    """Add what one connection brings."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # noqa: PLC0415 (slow to import)

    begin = _size(path)
    headers = {**source.headers, "Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    with get_session().stream("GET", source.url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
        continued = response.headers.get("Content-Range", "").startswith(f"bytes {begin}-")
        if begin and not (response.status_code == CONTINUED and continued):
            if response.status_code == NO_SUCH_RANGE:
                _forget(path, came)
                raise ConnectionError("the server has another file by now")
            hf_raise_for_status(response)
            _forget(path, came)  # the server sends all of it
        hf_raise_for_status(response)
        with path.open("ab") as file:
            for block in response.iter_bytes():
                file.write(block)
                came(len(block))
                if source.size is not None and file.tell() > source.size:
                    return  # it may never end


def _forget(path: Path, came: Callable[[int], object]) -> None:
    came(-_size(path))
    path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def ask_size(source: Source) -> int | None:
    """The number of bytes that a server has, None where it does not say. Raises what `transfer` does."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # noqa: PLC0415 (slow to import)

    def attempt() -> int | None:
        headers = {"Accept-Encoding": "identity"}
        with get_session().stream("GET", source.url, headers=headers, timeout=TIMEOUT_SECONDS) as response:
            hf_raise_for_status(response)
            length = response.headers.get("Content-Length", "")
            return int(length) if length.isdecimal() else None

    return persistently(attempt, source.url, source)


# -- Failures


def persistently(attempt: Callable[[], T], what: str, source: Source, progress: Callable[[], int] = lambda: 0) -> T:
    """Do something over a connection, again after failures that may pass.

    Args:
      attempt: What to do. It raises whatever the HTTP library does.
      what: The thing that is asked for, for messages.
      source: The server, for messages.
      progress: What grows when a failed attempt was not in vain. Such attempts are not counted.

    Raises:
      InputError: The server refuses it, or does not have it.
      OSError: The server cannot be reached or is out of order; or the disk is full.
    """
    failures, best = 0, progress()
    while True:
        try:
            return attempt()
        except Exception as error:  # of another library, in three generations of it
            failures = failures + 1 if progress() <= best else 1
            best = max(best, progress())
            if failures == ATTEMPTS or not _may_pass(error):
                raise _explained(error, what, source) from error
            time.sleep(WAIT_SECONDS * 2 ** (failures - 1))


def _status(error: Exception) -> int | None:
    response: Any = getattr(error, "response", None)
    return None if response is None else response.status_code


def _is_local(error: Exception) -> bool:
    """Whether the disk failed, not the connection, of which the HTTP library has errors of its own."""
    return isinstance(error, OSError) and error.errno is not None


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    return not _is_local(error) if status is None else status in TRANSIENT


def _explained(error: Exception, what: str, source: Source) -> Exception:
    """One sentence for a failure."""
    status, host = _status(error), host_of(source.url)
    if status in REFUSED:
        return InputError(
            f"{host} refuses {what} (HTTP {status}); if its page asks to accept a licence, do so and set HF_TOKEN to a "
            f"token of that account; else {source.advice}"
        )
    if status in NOT_FOUND:
        return InputError(f"{host} does not have {what} (HTTP {status}); {source.advice}")
    if status is not None:
        return OSError(f"{host} does not give {what} (HTTP {status}); give the same command again later, it goes on")
    reason = " ".join(str(error).split()) or type(error).__name__
    if _is_local(error):
        return OSError(f"cannot write {what}: {reason}; make room and give the same command again, it goes on")
    return OSError(
        f"the connection to {host} failed at {what} ({reason}); give the same command again, it goes on, and check the "
        "network, HTTPS_PROXY and HF_ENDPOINT if it fails again"
    )
