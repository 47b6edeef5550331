import numpy as np
import pytest

from mafx.densepose import PALETTE
from mafx.inspect import pictures
from mafx.inspect.pictures import Cell

GREY = np.full((8, 16, 3), 128, np.uint8)


def test_colours_are_viridis_from_end_to_end():
    assert pictures.viridis(np.array([-1, 0, 0.5, 1, 2])).tolist() == PALETTE[[0, 0, 12, 24, 24]].tolist()


def test_small_pictures_are_enlarged_by_whole_pixels_and_large_ones_reduced():
    drawn = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    enlarged = pictures.shown(drawn, 20)
    assert enlarged.shape == (12, 18, 3) and (enlarged[::3, ::3] == drawn).all()
    assert pictures.shown(np.zeros((300, 600, 3), np.uint8), 144).shape == (72, 144, 3)


def test_a_heat_map_is_brightest_where_the_weight_is():
    weights = np.zeros(8)
    weights[6] = 0.3  # row 1, column 2 of 2x4: rows 4 to 7, columns 8 to 11
    hot = pictures.heat_map(GREY, weights, (2, 4)).astype(int).sum(-1)
    assert hot.shape == (8, 16)
    inside = np.zeros((8, 16), bool)
    inside[4:8, 8:12] = True
    assert hot[inside].min() > hot[~inside].max()
    assert len(np.unique(hot)) == 2


def test_all_weights_of_nothing_are_no_error():
    assert np.isfinite(pictures.heat_map(GREY, np.zeros(8), (2, 4))).all()


def test_a_mark_is_where_the_place_is():
    picture = np.zeros((100, 200, 3), np.uint8)
    rows, columns = np.nonzero(pictures.mark(picture, (0.25, 0.75)).any(-1))
    assert abs(rows.mean() - 25) < 1 and abs(columns.mean() - 150) < 1
    assert np.ptp(rows) < 20 and not picture.any()


def test_differences_are_seen():
    other = GREY.copy()
    other[2, 3, 1] += 127
    seen = pictures.difference(GREY, other)
    assert (seen[0, 0] == PALETTE[0]).all() and seen[2, 3].sum() > 3 * PALETTE[0].sum()


def test_a_matrix_has_its_numbers_as_colours():
    drawn = pictures.matrix(np.array([[0.0, 1.0], [2.0, 4.0]]), ["a", "b"], ["c", "d"], side=20)
    left = drawn.shape[1] - 40 - pictures.GAP
    squares = drawn[[[10], [30]], [[left + 10, left + 30]]]
    assert (squares == pictures.viridis(np.array([[0, 0.25], [0.5, 1]]))).all()
    assert (drawn[:40, :left] < 100).any(), "names of rows"
    numbered = pictures.matrix(np.array([[0.0, 1.0]]), ["a"], ["c", "d"], side=40, numbers=True)
    assert (numbered != pictures.matrix(np.array([[0.0, 1.0]]), ["a"], ["c", "d"], side=40)).any()


def test_frames_are_numbered_at_both_axes():
    drawn = pictures.frame_matrix(np.eye(12), range(4, 16), 120)
    left = drawn.shape[1] - 120 - pictures.GAP
    assert (drawn[5:120:10, left + 5 : left + 120 : 10].astype(int).sum(-1) > 400).tolist() == np.eye(
        12, dtype=bool
    ).tolist()
    dark = (drawn < 100).all(-1)
    assert dark[:10, :left].any() and dark[110:120, :left].any() and not dark[12:50, :left].any()
    assert dark[120:, left:].any()


@pytest.mark.parametrize("columns", [("one", "two"), ()])
def test_a_sheet_holds_all_its_pictures(columns):
    cells = [Cell(np.full((20, 30, 3), (value, 0, 200), np.uint8), "caption") for value in (10, 20, 30)]
    drawn = pictures.sheet("title", columns, {"first": cells[:2], "second\nrow": cells[2:]})
    for value in (10, 20, 30):
        rows, found = np.nonzero((drawn == (value, 0, 200)).all(-1))
        inside = (drawn[rows.min() : rows.min() + 20, found.min() : found.min() + 30] == (value, 0, 200)).all()
        assert inside, value
    assert drawn.dtype == np.uint8 and (drawn[-1] == 255).all() and (drawn[:, -1] == 255).all()


def test_sheets_are_stacked_on_white():
    drawn = pictures.stack([np.zeros((5, 10, 3), np.uint8), np.zeros((5, 20, 3), np.uint8)])
    assert drawn.shape == (10 + 4 * pictures.GAP, 20, 3)
    assert (drawn[:5, 10:] == 255).all() and not drawn[:5, :10].any()
