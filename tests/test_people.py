import numpy as np

from mafx.densepose.people import Person, paint, whole_box


def person(x, y, labels):
    labels = np.array(labels, np.uint8)
    return Person((x, y, labels.shape[1], labels.shape[0]), labels, 0.5)


def test_later_people_cover_earlier_ones_where_they_have_a_part():
    got = paint([person(0, 0, [[1, 2], [3, 4]]), person(1, 1, [[5, 0], [0, 6]])], (3, 4))
    assert got.tolist() == [[1, 2, 0, 0], [3, 5, 0, 0], [0, 0, 6, 0]]
    assert got.dtype == np.uint8
    swapped = paint([person(1, 1, [[5, 0], [0, 6]]), person(0, 0, [[1, 2], [3, 4]])], (3, 4))
    assert swapped[1, 1] == 4


def test_what_lies_outside_of_the_frame_is_left_out():
    got = paint([person(-1, -1, [[1, 2], [3, 4]]), person(2, 1, [[5, 6], [7, 8]]), person(9, 9, [[9]])], (2, 3))
    assert got.tolist() == [[4, 0, 0], [0, 0, 5]]
    assert not paint([person(-2, 0, [[1, 2]]), Person((0, 0, 0, 1), np.zeros((1, 0), np.uint8), 1.0)], (1, 1)).any()


def test_boxes_lose_their_fractions():
    assert whole_box(np.float32([1.9, 2.0, 4.8, 2.9])) == (1, 2, 2, 0)
