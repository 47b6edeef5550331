"""A server on loopback that speaks what is needed of the Hugging Face hub's API, and that fails as it is told to."""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".ckpt")  # kept outside of git, and served by another host


class Hub(ThreadingHTTPServer):
    """Serves repositories, and plain files under /plain/.

    Attributes:
      repositories: Contents by repository and name.
      plain: Contents by name.
      statuses: Names that are answered with an error of HTTP; "" is the list of files.
      breaks: Names, and after how many bytes of each answer the connection ends. Each break happens once.
      instead: Names, and the bytes that are sent although others are announced.
      stalls: Names, and after how many bytes nothing more comes.
      ignores_ranges: Whether all of a file is sent whatever was asked for.
      requests: Method, path, Range and Authorization of each request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.plain = {}, {}
        self.statuses, self.breaks, self.instead, self.stalls, self.ignores_ranges = {}, {}, {}, {}, False
        self.requests = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self):
        return self.server_address[1]

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def contents(self):
        """Names of the files whose contents were asked for."""
        return [path for _, path, *_ in self.requests if path.startswith(("/cdn/", "/plain/")) or "/resolve/" in path]

    def ranges(self):
        return [asked for _, _, asked, _ in self.requests if asked]

    def handle_error(self, *_):
        """Clients that go away are no errors."""


def listing(files):
    """What the API says about files."""
    siblings = []
    for name, content in files.items():
        sibling = {"rfilename": name, "size": len(content), "blobId": git_name(content)}
        if name.endswith(LARGE):
            sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        siblings.append(sibling)
    return siblings


def git_name(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub = self.server
        asked = self.headers.get("Range")
        hub.requests.append((self.command, self.path, asked, self.headers.get("Authorization")))
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/(\w[^/]*/[^/]+)", path):
            self._list(hub, match[1])
        elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", path):
            self._resolve(hub, match[1], match[2])
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._send(hub, match[2], hub.repositories[match[1]][match[2]], asked)
        elif path.startswith("/plain/"):
            name = path.removeprefix("/plain/")
            self._send(hub, name, hub.plain.get(name), asked)
        else:
            self._fail(404)

    do_HEAD = do_GET  # noqa: N815

    def _list(self, hub, repository):
        if repository not in hub.repositories or "" in hub.statuses:
            self._fail(hub.statuses.get("", 404))
            return
        files = hub.repositories[repository]
        body = json.dumps({"id": repository, "sha": COMMIT, "siblings": listing(files)}).encode()
        self._answer(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, hub, repository, name):
        content = hub.repositories.get(repository, {}).get(name)
        if content is not None and name not in hub.statuses and name.endswith(LARGE):
            facts = {"X-Linked-Size": len(content), "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"'}
            place = f"http://localhost:{hub.port}/cdn/{repository}/{name}"
            self._answer(302, facts | {"X-Repo-Commit": COMMIT, "Location": place}, b"")
        else:
            self._send(hub, name, content, self.headers.get("Range"))

    def _send(self, hub, name, content, asked):
        if content is None or name in hub.statuses:
            self._fail(hub.statuses.get(name, 404))
            return
        content, begin, facts = hub.instead.get(name, content), 0, {"ETag": f'"{git_name(content)}"'}
        if asked and not hub.ignores_ranges:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if begin >= len(content):
                self._fail(416)
                return
            facts["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        body = content[begin:]
        self._answer(
            206 if "Content-Range" in facts else 200, facts, body, hub.breaks.pop(name, None), hub.stalls.get(name)
        )

    def _answer(self, status, facts, body, end=None, stall=None):
        self.send_response(status)
        for name, value in facts.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: end or stall])
        if stall is not None:
            self.wfile.flush()
            time.sleep(60)
        if end is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)

    def _fail(self, status):
        self._answer(status, {}, b"")
