"""A hall of mirrors: the newest frames of many cameras, and one thread that shows them in turn.

A frame that comes before the one before it was begun takes its place: nothing queues, so that what a mirror shows is
never older than a frame at work and one that waits, of each person in the hall.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

from mafx.errors import InputError

MOST_PEOPLE = 8
IDLE_SECONDS = 20.0  # after which somebody has left
log = logging.getLogger("mafx")


class DroppedError(Exception):
    """A newer frame came before this one was begun."""


class EndedError(Exception):
    """There is no such mirror, or no more."""


class Waiting(NamedTuple):
    """A frame that waits, and where what is shown of it goes."""

    frame: Any
    answer: Future


class Place:
    """Where one person looks into a mirror.

    Attributes:
      person: Who.
      show: Takes a frame and returns what is shown.
      waiting: The newest frame, None where it is at work or done.
      dropped: Number of frames that newer ones have replaced.
      seen: When the last frame came.
    """

    def __init__(self, person: str, show: Callable[[Any], Any]):
        self.person, self.show = person, show
        self.waiting: Waiting | None = None
        self.dropped = 0
        self.seen = time.monotonic()

    def leave(self, error: Exception) -> None:
        """Answer the frame that waits, if there is one, by an error."""
        if self.waiting is not None:
            _answer(self.waiting.answer, error=error)
            self.waiting = None


class Hall:
    """Mirrors by their names, which only those know who have opened them."""

    def __init__(self, most: int = MOST_PEOPLE, idle: float = IDLE_SECONDS):
        """There are `most` people at most. Whoever sends no frame for `idle` seconds has left."""
        self._most, self._idle = most, idle
        self._places: dict[str, Place] = {}  # those who were served last are the last
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mirrors", daemon=True)
        self._thread.start()

    def open(self, person: str, show: Callable[[Any], Any]) -> str:
        """Let a person look into a mirror, and no more into the one before.

        Args:
          person: Who.
          show: Takes a frame and returns what is shown, in the thread of the hall.

        Returns: The name of the mirror.

        Raises:
          InputError: Too many people are here.
        """
        with self._changed:
            self._forget(lambda place: place.person == person or self._has_left(place))
            if len(self._places) >= self._most:
                raise InputError(f"expected at most {self._most} people at mirrors, found as many; try again later")
            name = secrets.token_urlsafe(16)
            self._places[name] = Place(person, show)
            self._changed.notify_all()
        return name

    def offer(self, name: str, frame: Any) -> Future:
        """Bring the newest frame. The one that waits is dropped.

        Args:
          name: Of the mirror.
          frame: For its `show`.

        Returns: What is shown, in the future. Or that raises DroppedError, EndedError, or what `show` raises.

        Raises:
          EndedError: There is no mirror of this name.
        """
        with self._changed:
            place = self._place(name)
            place.dropped += place.waiting is not None
            place.leave(DroppedError("a newer frame came"))
            place.waiting, place.seen = Waiting(frame, Future()), time.monotonic()
            self._changed.notify_all()
            return place.waiting.answer

    def dropped(self, name: str) -> int:
        """How many frames newer ones have replaced. Raises EndedError where there is no mirror of this name."""
        with self._changed:
            return self._place(name).dropped

    def end(self, name: str) -> None:
        """End a mirror, if it is there."""
        with self._changed:
            gone = self._places.get(name)
            self._forget(lambda place: place is gone)

    def close(self) -> None:
        """End all mirrors, and the thread."""
        with self._changed:
            self._closed = True
            self._forget(lambda place: True)
            self._changed.notify_all()
        self._thread.join()

    def _place(self, name: str) -> Place:
        self._forget(self._has_left)
        if name not in self._places:
            raise EndedError("the mirror has ended")
        return self._places[name]

    def _has_left(self, place: Place) -> bool:
        return time.monotonic() - place.seen > self._idle

    def _forget(self, is_gone: Callable[[Place], bool]) -> None:
        for name, place in list(self._places.items()):
            if is_gone(place):
                place.leave(EndedError("the mirror has ended"))
                del self._places[name]

    def _run(self) -> None:
        while (next_frame := self._next()) is not None:
            show, (frame, answer) = next_frame
            if not answer.set_running_or_notify_cancel():
                continue  # whoever sent it has left
            try:
                _answer(answer, show(frame))
            except BaseException as error:  # told to whoever sent the frame
                if not isinstance(error, InputError):
                    log.exception("A mirror failed.")
                _answer(answer, error=error)
            del next_frame, show, frame, answer  # not held while nobody is there

    def _next(self) -> tuple[Callable[[Any], Any], Waiting] | None:
        """The frame of whoever has waited longest, None at the end."""
        with self._changed:
            while not self._closed:
                self._forget(self._has_left)
                for name, place in self._places.items():
                    if place.waiting is not None:
                        waiting, place.waiting = place.waiting, None
                        self._places[name] = self._places.pop(name)  # behind all others
                        return place.show, waiting
                self._changed.wait(self._idle if self._places else None)
        return None


def _answer(future: Future, result: Any = None, error: BaseException | None = None) -> None:
    """Fulfil a future, unless nobody waits for it any more."""
    if future.running() or future.set_running_or_notify_cancel():
        future.set_result(result) if error is None else future.set_exception(error)
