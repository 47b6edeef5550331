import json

import numpy as np
import pytest

from mafx.diffusion.windows import fusion_weights, pad_frames, window_borders, window_plan


def test_closed_plan_equals_the_published_windows(published):
    cases = json.loads((published / "expected" / "windows.json").read_text())["cases"]
    assert len(cases) > 10
    for case in cases:
        got = window_plan(case["num_frames"], case["context_size"], case["context_overlap"])
        assert got.tolist() == case["windows"], case["num_frames"]


def test_borders_are_where_windows_begin_and_end():
    plan = np.array([[0, 1, 2, 3], [3, 4, 5, 6]])
    assert np.flatnonzero(window_borders(plan)).tolist() == [
        2,
        3,
    ]  # between 2 and 3 the second begins, between 3 and 4 the first ends
    assert np.flatnonzero(window_borders(window_plan(8, 4, 0))).tolist() == [3]
    assert not window_borders(window_plan(4, 4, 1)).any()


def test_closed_plan_by_hand():
    assert window_plan(6, 4, 1).tolist() == [[0, 1, 2, 3], [3, 4, 5, 0]]
    assert window_plan(3, 4, 1).tolist() == [[0, 1, 2]]


def test_open_plan_by_hand():
    assert window_plan(6, 4, 1, "open").tolist() == [[0, 1, 2, 3], [2, 3, 4, 5]]
    assert window_plan(7, 4, 1, "open").tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]


@pytest.mark.parametrize("plan", ["closed", "open"])
@pytest.mark.parametrize("kind", ["uniform", "tapered"])
@pytest.mark.parametrize("frames", [1, 5, 16, 17, 32, 100])
@pytest.mark.parametrize(("size", "overlap"), [(16, 4), (16, 0), (8, 7)])
def test_weights_of_every_frame_sum_to_one(plan, kind, frames, size, overlap):
    windows = window_plan(frames, size, overlap, plan)
    weights = fusion_weights(windows, overlap, kind)
    total = np.zeros(frames)
    np.add.at(total, windows, weights)
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    if plan == "open":
        assert (np.diff(windows, axis=1) == 1).all() or frames == 1


def test_tapered_weights_by_hand():
    windows = window_plan(7, 4, 1, "open")
    np.testing.assert_allclose(fusion_weights(windows, 1, "tapered"), [[1, 1, 1, 0.5], [0.5, 1, 1, 1]])
    windows = window_plan(6, 4, 2, "open")  # frames 2 and 3 are shared: fading out 2/3, 1/3, and in
    np.testing.assert_allclose(
        fusion_weights(windows, 2, "tapered"), [[1, 1, 2 / 3, 1 / 3], [1 / 3, 2 / 3, 1, 1]], rtol=1e-6
    )


def test_padding():
    assert [pad_frames(n, 16, "closed") for n in (1, 16, 17, 33)] == [16, 16, 32, 48]
    assert [pad_frames(n, 16, "open") for n in (1, 16, 17, 33)] == [16, 16, 17, 33]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "at least one frame"), ((5, 4, 4), "less than the window"), ((9, 4, 1, "x"), "unknown")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        window_plan(*arguments)
