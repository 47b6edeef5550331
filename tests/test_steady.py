import numpy as np
import pytest

from mafx.densepose import FLIPPED
from mafx.densepose.steady import KINDS, fill_holes, without_flicker


def body(arm=19, at=10):
    """A torso with a head, and an arm of 16x4 pixels at some row."""
    labels = np.zeros((40, 40), np.uint8)
    labels[10:30, 15:25] = 2
    labels[2:10, 17:23] = 23
    labels[at : at + 4, 25:39] = arm
    return labels


def steadied(*frames):
    return np.stack(list(without_flicker(iter(frames))))


def test_kinds_do_not_depend_on_the_side():
    np.testing.assert_array_equal(KINDS[FLIPPED], KINDS)
    assert len(np.unique(KINDS)) == 9


@pytest.mark.parametrize("wrong", [20, 0, 7], ids=["other side", "missing", "a part of one frame"])
def test_what_one_frame_shows_otherwise_is_undone(wrong):
    got = steadied(body(), body(arm=wrong), body())
    np.testing.assert_array_equal(got, [body()] * 3)


def test_spots_are_undone():
    spotted = body()
    spotted[15:17, 17:19] = 19
    np.testing.assert_array_equal(steadied(body(), spotted, body())[1], body())


def test_a_limb_that_passes_stays():
    frames = [body(at=4), body(at=16), body(at=30)]
    np.testing.assert_array_equal(steadied(*frames), frames)
    across = body(at=10)
    across[:, 15:25] = np.where(body(at=10)[:, 25:35] > 0, 19, across[:, 15:25])  # in front of the torso
    np.testing.assert_array_equal(steadied(body(at=4), across, body(at=32))[1], across)


def test_videos_of_any_length_keep_it():
    for length in range(4):
        assert len(list(without_flicker(iter([body()] * length)))) == length


def test_short_holes_show_the_nearest_frame_and_long_ones_stay():
    empty, a, b = np.zeros((40, 40), np.uint8), body(at=4), body(at=30)
    filled = list(fill_holes([empty, a, empty, empty, empty, b, empty], longest=3))
    np.testing.assert_array_equal(filled, [empty, a, a, a, b, b, empty])
    long = [a, *[empty] * 4, b]
    np.testing.assert_array_equal(list(fill_holes(long, longest=3)), long)
    np.testing.assert_array_equal(list(fill_holes([a, empty, empty], longest=3)), [a, empty, empty])
    assert list(fill_holes([])) == []


def test_little_is_held_back():
    taken = []

    def frames():
        for i in range(100):
            taken.append(i)
            yield body() if i % 10 else np.zeros((40, 40), np.uint8)

    for i, _ in enumerate(without_flicker(fill_holes(frames(), longest=3))):
        assert len(taken) - i <= 6
