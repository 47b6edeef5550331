"""Which of the people in a video is animated: one is chosen, and followed from frame to frame."""

from collections.abc import Iterable, Iterator

import numpy as np

from mafx.densepose.people import Person
from mafx.errors import InputError
from mafx.media import Size

CHOICES = "largest", "central", "all"  # besides the number of a person, counted from the left
SURE = 0.5  # of the surest person's score, below which a person does not count
OVERLAP = 0.2  # least intersection over union of one person's boxes in frames that follow each other
PATIENCE = 25  # frames after which a person who was lost is no longer waited for


def parse_choice(text: str) -> str | int:
    """One of `CHOICES`, or the number of a person from 1 on. Raises InputError for anything else."""
    if text in CHOICES:
        return text
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError(
        f"expected {', '.join(CHOICES)} or the number of a person from the left, 1 or more, found {text!r}"
    )


def follow(found: Iterable[list[Person]], choice: str | int, size: Size) -> Iterator[list[Person]]:
    """Choose a person, and follow that one.

    Whoever overlaps most with where the person was last is that person. Where nobody does for a second, somebody is
    chosen anew.

    Args:
      found: The people of each frame.
      choice: "largest", "central", the number of a person from the left, or "all".
      size: Rows and columns of the frames.

    Yields:
      For each frame the people to draw, those behind first: one or none, or with "all", all of them.
    """
    last, lost = None, 0
    for people in map(_sure, found):
        if choice == "all":
            yield sorted(people, key=_area)  # who is nearer is larger, as a rule
            continue
        person = _choose(people, choice, size) if last is None else max(people, key=_overlap_with(last), default=None)
        if person is not None and last is not None and _overlap(person, last) < OVERLAP:
            person = None
        lost = 0 if person is not None else lost + 1
        last = person or (last if lost <= PATIENCE else None)
        yield [] if person is None else [person]


def _sure(people: list[Person]) -> list[Person]:
    """People with a body part who are about as sure as the surest."""
    shown = [person for person in people if person.labels.any()]
    best = max((person.score for person in shown), default=0.0)
    return [person for person in shown if person.score >= SURE * best]


def _choose(people: list[Person], choice: str | int, size: Size) -> Person | None:
    if isinstance(choice, int):
        in_order = sorted(people, key=lambda person: _middle(person)[0])
        return in_order[choice - 1] if choice <= len(in_order) else None
    if choice == "central":
        centre = np.array(size[::-1]) / 2
        return min(people, key=lambda person: np.hypot(*(_middle(person) - centre)), default=None)
    return max(people, key=_area, default=None)


def _area(person: Person) -> int:
    return int(np.count_nonzero(person.labels))


def _middle(person: Person) -> np.ndarray:
    x, y, w, h = person.box
    return np.array([x + w / 2, y + h / 2])


def _overlap_with(other: Person):
    return lambda person: _overlap(person, other)


def _overlap(a: Person, b: Person) -> float:
    """Intersection over union of two people's boxes."""
    (x, y, w, h), (other_x, other_y, other_w, other_h) = a.box, b.box
    wide = max(0, min(x + w, other_x + other_w) - max(x, other_x))
    high = max(0, min(y + h, other_y + other_h) - max(y, other_y))
    union = w * h + other_w * other_h - wide * high
    return wide * high / union if union else 0.0
