"""The door of the server: what may be asked for, by whom, and what browsers are told to refuse.

It stands in front of Gradio, which has more routes than the page needs: some fetch from other hosts, and some show
files of other people.
"""

import base64
import binascii
import hmac
import http.cookies
import json
import secrets
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mafx.web.folders import TemporaryFolder

COOKIE = "mafx_person"
LONGEST_BODY = 2**20  # bytes of a request that is not an upload
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})  # names of this machine for itself
API = "/gradio_api"
# Beginnings of what the page and Gradio's client ask for. All else is not there.
PATHS = (
    "/assets/", "/static/", "/theme.css", "/config", "/favicon.ico", "/manifest.json", "/robots.txt",
    f"{API}/info", f"{API}/app_id", f"{API}/startup-events", f"{API}/heartbeat/", f"{API}/queue/", f"{API}/call/",
    f"{API}/upload", f"{API}/file=", f"{API}/cancel", f"{API}/reset", f"{API}/user", f"{API}/login_check",
    f"{API}/stream/", f"{API}/run/",
)  # fmt: skip
STARTED = f"{API}/startup-events"  # which Gradio asks itself, without a password; it tells nothing
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'",  # Gradio's page has scripts in it, and makes functions
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)

Scope = dict[str, Any]


class Guard:
    """ASGI middleware. It answers what must not reach Gradio, and notes who has uploaded what."""

    def __init__(
        self,
        app: Callable,
        folder: TemporaryFolder,
        *,
        password: str | None = None,
        any_host: bool = False,
        routes: tuple[str, ...] = (),
    ):
        """Args:
        app: What stands behind it.
        folder: Where temporary files are.
        password: What everybody must know; None where nobody needs one.
        any_host: Whether the server answers to other names than those of this machine for itself.
        routes: Beginnings of paths that are there beside `PATHS`.
        """
        self._app, self._folder, self._password = app, folder, password
        self._any_host, self._paths = any_host, (*PATHS, *routes)

    async def __call__(self, scope: Scope, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        cookie = _cookie(headers)
        person = person_of(cookie, (scope.get("client") or ("",))[0])
        send = _with_headers(send, None if cookie else scope)
        if refusal := self._refusal(scope, headers, person):
            await _answer(send, *refusal)
            return
        path = scope["path"]
        if path == f"{API}/upload":
            await self._app(scope, receive, self._claiming(send, person))
        elif scope["method"] == "POST":
            body = await _read(receive)
            if body is None or not self._may_use(body, person):
                await _answer(send, 403, "a file that is not yours, or too long a request")
                return
            await self._app(scope, _replay(body, receive), send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[str, str], person: str) -> tuple[int, str] | None:
        """The status and the reason by which a request is refused; None lets it in."""
        host, path = headers.get("host", ""), scope["path"]
        if not self._any_host and host.rsplit(":", 1)[0] not in LOCAL_HOSTS:
            return 421, "another host"
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin and urllib.parse.urlsplit(origin).netloc != host:
            return 403, "another site"
        if self._password is not None and path != STARTED and not _knows(headers, self._password):
            return 401, "the password is needed"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "no such method"
        if path != "/" and not path.startswith(self._paths):
            return 404, "not there"
        file = path.removeprefix(f"{API}/file=")
        if file != path and not self._folder.is_open(file, person):
            return 403, "not yours"
        return None

    def _may_use(self, body: bytes, person: str) -> bool:
        """Whether all files that a request names are the person's."""
        try:
            content = json.loads(body) if body else None
        except (ValueError, RecursionError):
            return False
        return all(self._folder.is_open(path, person) for path in _paths(content))

    def _claiming(self, send: Callable, person: str) -> Callable:
        """Sends the answer to an upload, and lets the person own the files that it names."""
        parts: list[bytes] = []

        async def claim(message: dict) -> None:
            if message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    for path in _uploaded(b"".join(parts)):
                        self._folder.claim(Path(path), person)
            await send(message)

        return claim


def person_of(cookie: str, address: str) -> str:
    """Whose files are meant: those of a browser, by its cookie, or of all clients without one at an address."""
    return cookie or f"clients at {address}"


def _cookie(headers: dict[str, str]) -> str:
    jar: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
    except http.cookies.CookieError:
        return ""
    return jar[COOKIE].value if COOKIE in jar else ""


def _knows(headers: dict[str, str], password: str) -> bool:
    """Whether a request has the password, under any name."""
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    try:
        _, _, given = base64.b64decode(encoded).partition(b":")
    except binascii.Error:
        return False
    return scheme.lower() == "basic" and hmac.compare_digest(given, password.encode())


def _paths(content: Any) -> Iterator[str]:
    """Every file that a request names, wherever it does."""
    if isinstance(content, dict):
        if isinstance(content.get("path"), str):
            yield content["path"]
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from _paths(item)


def _uploaded(body: bytes) -> list[str]:
    try:
        content = json.loads(body)
    except ValueError:
        return []
    return [path for path in content if isinstance(path, str)] if isinstance(content, list) else []


async def _read(receive: Callable) -> bytes | None:
    """The body of a request, None where it is too long or does not end."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > LONGEST_BODY:
            return None
        if not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Callable) -> Callable:
    """Receives a body that was read already."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> dict:
        return pending.pop() if pending else await receive()

    return replay


def _with_headers(send: Callable, newcomer: Scope | None) -> Callable:
    """Sends an answer with `HEADERS`; a newcomer who asks for the page gets a cookie."""

    async def add(message: dict) -> None:
        if message["type"] == "http.response.start":
            added = list(HEADERS)
            if newcomer is not None and newcomer["path"] == "/":
                cookie = f"{COOKIE}={secrets.token_urlsafe(24)}; Path=/; HttpOnly; SameSite=Strict"
                added.append((b"set-cookie", cookie.encode()))
            message = message | {"headers": [*message.get("headers", ()), *added]}
        await send(message)

    return add


async def _answer(send: Callable, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="mafx", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
