"""Ctrl-C: one line and exit status 130, at once, wherever a command is.

Python raises KeyboardInterrupt in whatever runs. That may be a library's callback, which swallows it or crashes; and
while XLA compiles, for minutes, nothing is raised at all. So a thread waits for the signal, and ends the process.
"""

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130  # exit status, as shells have it: 128 and the number of the signal
GOES_ON = "what is done is kept, and the same command goes on from there"

_instead: list[Callable[[], None]] = []  # called by the next Ctrl-C, each once, the last one first
_advice: list[str] = []
_partial: set[Path] = set()


def leave_while_importing(name: str) -> None:
    """Until `leaving_at_interrupt`, Ctrl-C ends the process in the same way, from the main thread."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: _leave(name))


@contextlib.contextmanager
def leaving_at_interrupt(name: str) -> Iterator[None]:
    """Inside, Ctrl-C ends the process as the command `name`.

    Only the main thread can say what a signal does; in others, and where SIGINT is ignored (`nohup`), nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGINT, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to even while XLA compiles
    threading.Thread(target=_watch, args=(reader, name), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, before)
        os.close(writer)


@contextlib.contextmanager
def instead_of_leaving(function: Callable[[], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C calls `function`, in another thread. The next one ends the process."""
    _instead.append(function)
    try:
        yield
    finally:
        if function in _instead:
            _instead.remove(function)


@contextlib.contextmanager
def advice_at_interrupt(advice: str) -> Iterator[None]:
    """Inside, the line that an interrupted command ends with says this, too: what is kept, and what to do."""
    _advice.append(advice)
    try:
        yield
    finally:
        _advice.remove(advice)


@contextlib.contextmanager
def partial_path(path: Path) -> Iterator[None]:
    """Remove a file or folder when this ends, if it is still there: by whatever way it ends, Ctrl-C too."""
    _partial.add(path)
    try:
        yield
    finally:
        _remove(path)
        _partial.discard(path)


def ignore_interrupts(*_: object) -> None:
    """For processes that work for this one: a terminal sends Ctrl-C to all of them, and this one decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def unheard_interrupts() -> Iterator[None]:
    """Processes that are started inside do not hear Ctrl-C, whether this thread starts them or one that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


def _watch(reader: int, name: str) -> None:
    with open(reader, "rb", buffering=0) as pipe:
        while number := pipe.read(1):  # nothing, once the other end is closed
            if number[0] != signal.SIGINT:
                continue
            if _instead:
                _instead.pop()()
            else:
                _leave(name)


def _leave(name: str) -> NoReturn:
    # It is imported late, because until this module is, Ctrl-C is a traceback.
    for process in getattr(sys.modules.get("multiprocessing"), "active_children", list)():
        process.kill()
    sys.stdout.flush()
    print(f"\n{name}: {'; '.join(['interrupted', *_advice])}", file=sys.stderr, flush=True)
    for path in tuple(_partial):  # the last thing, because other threads go on until the end
        _remove(path)
    os._exit(INTERRUPTED)
