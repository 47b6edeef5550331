import itertools

import numpy as np

from mafx.densepose import kept
from mafx.densepose.kept import FRAMES, find_and_keep
from mafx.densepose.people import Person


class Finder:
    """Finds a person whose label is the brightness of the frame, and notes what it has seen."""

    def __init__(self, warm_up=0):
        self.warm_up, self.seen = warm_up, []

    def find(self, frames):
        for frame in frames:
            value = int(frame[0, 0, 0])
            self.seen.append(value)
            yield [Person((1, 2, 3, 2), np.full((2, 3), value % 25, np.uint8), 0.5)] * (value % 3)


def frames(count):
    return (np.full((4, 5, 3), i, np.uint8) for i in range(count))


def same(a, b):
    assert len(a) == len(b)
    for people, others in zip(a, b, strict=True):
        assert [p.box for p in people] == [p.box for p in others] and [p.score for p in people] == [0.5] * len(others)
        for one, other in zip(people, others, strict=True):
            np.testing.assert_array_equal(one.labels, other.labels)


def test_an_interrupted_search_goes_on(tmp_path):
    count = 2 * FRAMES + 10
    whole = list(Finder().find(frames(count)))
    first = Finder()
    search = find_and_keep(frames(count), first, tmp_path / "kept", {"video": 1})
    list(itertools.islice(search, FRAMES + 3))  # interrupted within the second piece
    second = Finder(warm_up=4)
    found = list(find_and_keep(frames(count), second, tmp_path / "kept", {"video": 1}))
    same(found, whole)
    assert second.seen[0] == 2 * FRAMES - 4 and len(second.seen) == count - 2 * FRAMES + 4
    third = Finder()
    same(list(find_and_keep(frames(count), third, tmp_path / "kept", {"video": 1})), whole)
    assert not third.seen


def test_what_belongs_to_another_video_is_thrown_away(tmp_path):
    list(find_and_keep(frames(5), Finder(), tmp_path / "kept", {"video": 1}))
    other = Finder()
    list(find_and_keep(frames(5), other, tmp_path / "kept", {"video": 2}))
    assert len(other.seen) == 5


def test_a_damaged_piece_is_searched_again(tmp_path, caplog):
    whole = list(find_and_keep(frames(FRAMES + 5), Finder(), tmp_path / "kept", {"video": 1}))
    path = sorted((tmp_path / "kept").glob("*.npz"))[1]
    path.write_bytes(path.read_bytes()[:-30])
    finder = Finder()
    same(list(find_and_keep(frames(FRAMES + 5), finder, tmp_path / "kept", {"video": 1})), whole)
    assert len(finder.seen) == 5
    assert kept.FRAMES == FRAMES
