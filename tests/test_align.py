import numpy as np
import pytest
from micro import example

from mafx.densepose import read_labels
from mafx.densepose.align import Box, Fit, common_crop, cut_labels, cut_picture, fit_body, measure
from mafx.errors import InputError


@pytest.fixture(scope="module")
def labels():
    return read_labels(example((96, 96), 4).motion)[0]


def moved(labels, scale, shift, size=(200, 240)):
    """Labels enlarged `scale` times and moved by x, y."""
    return cut_labels(labels, Fit(scale, np.array(shift, float)), Box(0, 0, size[1], size[0]), size)


def test_a_body_is_measured(labels):
    body = measure(labels[0])
    rows, columns = np.nonzero(labels[0])
    assert body.box == Box(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    head = labels[0] >= 23
    assert body.sizes[14] == pytest.approx(np.sqrt(head.sum()))
    np.testing.assert_allclose(body.places[14], [axis.mean() for axis in np.nonzero(head)[::-1]])
    assert measure(np.zeros((4, 4), np.uint8)) is None


@pytest.mark.parametrize(("scale", "shift"), [(1.0, (30, 12)), (1.6, (20, 5)), (0.7, (80, 90))])
def test_a_moved_and_scaled_body_is_brought_back(labels, scale, shift):
    reference = moved(labels[0], scale, shift)
    fit, box = fit_body(reference, [labels[0]], "body")
    assert fit.scale == pytest.approx(scale, rel=0.04)
    np.testing.assert_allclose(fit.shift, shift, atol=4)
    brought = moved(labels[0], *fit)
    person = (reference > 0) | (brought > 0)
    assert (reference == brought)[person].mean() > 0.85
    assert box.left <= measure(reference).box.left and box.bottom >= measure(reference).box.bottom


def test_place_changes_no_size(labels):
    fit, _ = fit_body(moved(labels[0], 1.6, (20, 5)), labels, "place")
    assert fit.scale == 1


def test_bodies_without_a_part_in_common_do_not_fit():
    arm, leg = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    arm[10:30, 10:20], leg[10:30, 10:20] = 15, 7
    with pytest.raises(InputError, match="part of the body that both"):
        fit_body(arm, [leg], "body")
    with pytest.raises(InputError, match="expected a person in the reference"):
        fit_body(0 * arm, [leg], "body")
    with pytest.raises(InputError, match="expected a person in the driver"):
        fit_body(arm, [0 * leg], "body")


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (48, 96)])
def test_the_crop_holds_everybody_undistorted(size):
    box = Box(100, 40, 160, 190)
    crop = common_crop(box, (200, 300), size)
    width, height = crop.right - crop.left, crop.bottom - crop.top
    assert width / height == pytest.approx(size[1] / size[0])
    assert crop.left <= box.left and crop.top <= box.top and crop.right >= box.right and crop.bottom >= box.bottom


def test_the_crop_stays_inside_where_it_can_and_reaches_beyond_where_it_must():
    inside = common_crop(Box(10, 20, 60, 120), (200, 300), (64, 64))
    assert inside == Box(0, 0, 200, 200)
    beyond = common_crop(Box(-40, 20, 60, 260), (200, 300), (64, 64))
    assert beyond.left <= -40 and beyond.bottom >= 260


def test_a_picture_is_cut_and_its_border_goes_on():
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :30] = 200
    same = cut_picture(picture, Box(0, 0, 60, 40), (40, 60))
    np.testing.assert_array_equal(same, picture)
    wider = cut_picture(picture, Box(-20, -10, 60, 40), (50, 80))
    assert (wider[5, 5] == 200).all() and (wider[45, 75] == 0).all() and wider.shape == (50, 80, 3)


def test_labels_and_picture_are_cut_alike(labels):
    clip = example((96, 96), 4)
    crop, size = Box(10.0, 20.0, 74.0, 84.0), (64, 64)
    cut = cut_labels(labels[0], Fit(1.0, np.zeros(2)), crop, size)
    np.testing.assert_array_equal(cut, labels[0][20:84, 10:74])
    np.testing.assert_array_equal(cut_picture(clip.video[0], crop, size), clip.video[0][20:84, 10:74])
