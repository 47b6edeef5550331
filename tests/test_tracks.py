import numpy as np
import pytest

from mafx.densepose.people import Person
from mafx.densepose.tracks import PATIENCE, follow, parse_choice
from mafx.errors import InputError

SIZE = 100, 200


def person(x, y=20, w=20, h=40, score=0.9, label=2):
    return Person((x, y, w, h), np.full((h, w), label, np.uint8), score)


def lefts(frames, choice):
    return [[someone.box[0] for someone in people] for people in follow(iter(frames), choice, SIZE)]


def test_one_person_is_chosen():
    people = [person(10), person(90, w=10), person(150, w=40)]
    assert lefts([people], "largest") == [[150]]
    assert lefts([people], "central") == [[90]]
    assert lefts([people[::-1]], 1) == [[10]] and lefts([people], 3) == [[150]] and lefts([people], 4) == [[]]
    assert lefts([people], "all") == [[90, 10, 150]], "the smallest is behind"


def test_the_person_is_followed_past_larger_ones():
    frames = [[person(10 + 5 * i), person(100, w=10 + 5 * i)] for i in range(10)]
    assert lefts(frames, "largest") == [[10 + 5 * i] for i in range(10)]


def test_who_is_lost_for_long_is_replaced():
    other = person(150)
    frames = [[person(10)], *[[other]] * (PATIENCE + 2)]
    found = lefts(frames, "largest")
    assert found[:2] == [[10], []] and found[-1] == [150]
    assert found.count([]) == PATIENCE + 1


def test_unsure_and_empty_people_do_not_count():
    unsure, empty = person(10, w=60, score=0.3), person(60, w=60, label=0)
    assert lefts([[person(150), unsure, empty]], "largest") == [[150]]
    assert lefts([[person(150, score=0.1)]], "largest") == [[150]], "the surest one counts, however unsure"
    assert lefts([[]], "largest") == [[]]


def test_choices_are_parsed():
    assert parse_choice("central") == "central" and parse_choice("2") == 2
    for text in ("0", "-1", "biggest", "²"):
        with pytest.raises(InputError, match="expected largest, central, all or the number"):
            parse_choice(text)
