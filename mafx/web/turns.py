"""Whose turn it is: the jobs of many people, one after the other, each of whom may have one that waits."""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mafx.errors import InputError

MOST_WAITING = 100  # jobs
log = logging.getLogger("mafx")


class CancelledError(Exception):
    """The job was cancelled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """How far a job is.

    Attributes:
      part: What goes on, in a word: "waiting", "reading", "poses", "loading", "starting", "steps", "decoding",
        "writing".
      done: How much of it is done; while the job waits, how many jobs are before it.
      total: Of how much; 0 where that has no number.
      seconds_left: Seconds that this part still takes, None where that is not known yet.
      preview: Of what the job makes, uint8 `H W 3`, None where there is nothing to see yet.
    """

    part: str
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    preview: np.ndarray | None = None


class Job:
    """Something that a person wants done.

    Attributes:
      person: Whose job it is.
      update: The newest update. Older ones are forgotten.
      result: What `work` has returned.
      error: What it has raised instead.
    """

    def __init__(self, person: str, work: Callable[["Job"], Any]):
        self.person, self._work = person, work
        self.update = Update(part="waiting")
        self.result: Any = None
        self.error: BaseException | None = None
        self._cancelled, self._finished = threading.Event(), threading.Event()

    def cancel(self) -> None:
        """End it at its next report."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def is_finished(self) -> bool:
        """Whether there is a result, or an error."""
        return self._finished.is_set()

    def report(self, update: Update) -> None:
        """Tell how far the job is. `work` calls it often. Raises CancelledError where nobody wants the job any more."""
        if self.is_cancelled:
            raise CancelledError("cancelled")
        self.update = update

    def wait(self, seconds: float | None = None) -> Any:
        """The result, once it is there. Raises what the job raised, or TimeoutError."""
        if not self._finished.wait(seconds):
            raise TimeoutError(f"the job is not done after {seconds} s")
        if self.error is not None:
            raise self.error
        return self.result

    def run(self) -> None:
        """Do the work, in this thread."""
        try:
            self.report(self.update)
            self.result = self._work(self)
        except BaseException as error:  # told to whoever waits for the job
            self.error = error
            if not isinstance(error, InputError | CancelledError):
                log.exception("A job failed.")
        finally:
            self._work = lambda job: None  # lets go of what it holds
            self._finished.set()


class Turns:
    """A thread that runs jobs in the order in which they came."""

    def __init__(self, most_waiting: int = MOST_WAITING):
        self._most = most_waiting
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="turns", daemon=True)
        self._thread.start()

    def submit(self, person: str, work: Callable[[Job], Any]) -> Job:
        """Put a job at the end.

        Args:
          person: Whose it is.
          work: Takes the job, to report to it, and returns the result.

        Raises:
          InputError: The person has one waiting already, or too many are waiting.
        """
        job = Job(person, work)
        with self._changed:
            self._forget_cancelled()
            if any(other.person == person for other in self._waiting):
                raise InputError("expected one waiting animation a person, found another of yours; cancel it first")
            if len(self._waiting) >= self._most:
                raise InputError(f"expected at most {self._most} waiting animations, found as many; try again later")
            self._waiting.append(job)
            self._note_places()
            self._changed.notify_all()
        return job

    @property
    def running(self) -> Job | None:
        """The job whose turn it is."""
        return self._running

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def cancel(self, person: str) -> int:
        """Cancel all jobs of a person, and return their number."""
        with self._changed:
            jobs = [job for job in (self._running, *self._waiting) if job and job.person == person]
            self._cancel(jobs)
        return len(jobs)

    def withdraw(self, job: Job) -> None:
        """Cancel one job; nothing happens where it is finished."""
        with self._changed:
            self._cancel([job])

    def close(self) -> None:
        """Cancel everything, and end the thread."""
        with self._changed:
            self._closed = True
            self._cancel([job for job in (self._running, *self._waiting) if job])
            self._changed.notify_all()
        self._thread.join()

    def _cancel(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.cancel()
        self._forget_cancelled()

    def _forget_cancelled(self) -> None:
        for job in [job for job in self._waiting if job.is_cancelled]:
            self._waiting.remove(job)
            job.run()  # which ends at its first report
        self._note_places()

    def _note_places(self) -> None:
        busy = int(self._running is not None)
        for place, job in enumerate(self._waiting):
            job.update = Update(part="waiting", done=place + busy)

    def _run(self) -> None:
        while job := self._next():
            began = time.perf_counter()
            job.run()
            log.debug("A job took %.1f s.", time.perf_counter() - began)

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._running = self._waiting.pop(0)
            self._running.update = Update(part="starting")
            self._note_places()
            return self._running
