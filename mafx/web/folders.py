"""Temporary files of people: each belongs to whoever brought it or had it made, and goes after an hour."""

import contextlib
import logging
import secrets
import shutil
import threading
import time
from pathlib import Path

from mafx.errors import InputError

MAX_AGE = 3600.0  # seconds
SWEEP_SECONDS = 60.0
PUBLIC = "public"  # the one folder that everybody may read, and that stays
log = logging.getLogger("mafx")


class TemporaryFolder:
    """A folder whose sub-folders belong to people.

    Whoever uploads a file, or has one made, owns the sub-folder that it lies in. Two people who upload the same bytes
    share one, since it is named after them.

    Attributes:
      path: Where it is.
    """

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.public = self.path / PUBLIC
        self.public.mkdir(parents=True, exist_ok=True)
        self._owners: dict[str, set[str]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def new(self, owner: str) -> Path:
        """A new sub-folder that belongs to somebody."""
        folder = self.path / secrets.token_hex(16)
        folder.mkdir()
        self.claim(folder, owner)
        return folder

    def claim(self, path: Path, owner: str) -> None:
        """Let somebody own what a path is in."""
        with self._lock:
            self._owners.setdefault(self._part(path), set()).add(owner)

    def is_open(self, path: str | Path, owner: str) -> bool:
        """Whether somebody may read a path. Links and `..` are followed first."""
        try:
            part = self._part(Path(path))
        except InputError:
            return False
        if Path(path).resolve().parent == self.path:  # a sub-folder is not a file
            return False
        with self._lock:
            return part == PUBLIC or owner in self._owners.get(part, ())

    def check(self, path: str | Path, owner: str) -> Path:
        """The path, if somebody may read it, and will for another hour. Raises InputError where not."""
        path = Path(path)
        if not self.is_open(path, owner) or not path.is_file():
            raise InputError(f"expected a file that you have uploaded, found {path.name!r}; upload it again")
        if self._part(path) != PUBLIC:
            path.parent.touch()
        return path

    def _part(self, path: Path) -> str:
        """The name of the sub-folder that a path is in."""
        try:
            inside = path.resolve().relative_to(self.path)
        except (OSError, ValueError, RuntimeError) as error:  # elsewhere, no name of a file, or links in a circle
            raise InputError(f"{path} is not in the folder of the page") from error
        if not inside.parts:
            raise InputError("expected a file, found the folder of the page")
        return inside.parts[0]

    def sweep(self, now: float | None = None) -> int:
        """Remove what nobody has touched for an hour, and return how many things went."""
        oldest = (time.time() if now is None else now) - MAX_AGE
        removed = 0
        for path in self.path.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name != PUBLIC and _last_change(path) < oldest:
                    with self._lock:
                        self._owners.pop(path.name, None)
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed += 1
        return removed

    def sweep_always(self) -> None:
        """Sweep every minute, in a thread of its own, until `close`."""
        threading.Thread(target=self._sweep_always, name="sweep", daemon=True).start()

    def _sweep_always(self) -> None:
        while not self._closed.wait(SWEEP_SECONDS):
            try:
                self.sweep()
            except OSError as error:
                log.warning("Temporary files cannot be removed: %s", error)

    def close(self) -> None:
        """Remove everything."""
        self._closed.set()
        shutil.rmtree(self.path, ignore_errors=True)


def _last_change(path: Path) -> float:
    """When a folder, or something in it, was changed last."""
    inside = path.rglob("*") if path.is_dir() else ()
    return max(x.lstat().st_mtime for x in (path, *inside))
