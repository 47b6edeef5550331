import logging

import numpy as np
import pytest
from micro import example

from mafx import inputs, media
from mafx.densepose import draw_labels, read_labels
from mafx.densepose.align import Box, Fit, cut_labels, cut_picture
from mafx.densepose.people import Person
from mafx.errors import InputError
from mafx.inputs import FileRequest, read_inputs

SIZE = 64, 64


@pytest.fixture(scope="module")
def clip():
    return example((96, 96), 6)


class Finder:
    """Finds whoever was announced for pictures of a mean brightness."""

    warm_up = 0

    def __init__(self, known):
        self.known = known

    def find(self, frames):
        for frame in frames:
            nearest = min(self.known, key=lambda known: abs(known[0] - frame.mean()) + 1e3 * (known[2] != frame.shape))
            labels = nearest[1].astype(np.uint8)
            yield [Person((0, 0, *labels.shape[::-1]), labels, 0.9)] if labels.any() else []


def moved(labels, scale, shift, size):
    return cut_labels(labels, Fit(scale, np.array(shift, float)), Box(0, 0, size[1], size[0]), size)


@pytest.fixture
def files(tmp_path, clip, monkeypatch):
    """A video of a driver, and a larger picture of a person of twice the size, elsewhere; both are found."""
    media.write_video(tmp_path / "dance", clip.video, 10)
    shown = Box(-30, -10, 66, 86)  # the same person at half the size of a picture of 192x192
    reference = cut_picture(clip.reference, Box(shown.left, shown.top, shown.right, shown.bottom), (192, 192))
    labels = moved(clip.labels[0], 2.0, (60, 20), (192, 192))
    media.write_video(tmp_path / "person.png", [reference], 1)
    known = [(frame.mean(), labels, frame.shape) for frame, labels in zip(clip.video, clip.labels, strict=True)]
    known.append((reference.mean(), labels, reference.shape))
    monkeypatch.setattr(inputs, "make_finder", lambda *_, **__: (Finder(known), {"finder": "a test"}))
    return tmp_path


def request(folder, **changes):
    values = {"reference": str(folder / "person.png"), "video": str(folder / "dance"), "size": SIZE}
    return FileRequest(outs=[folder / "out.mp4"], **values | changes)


def test_a_video_is_drawn_and_its_body_brought_to_the_reference(files, clip):
    reference, motion, fps = read_inputs(request(files), SIZE, seed=0)
    assert reference.shape == (*SIZE, 3) and motion.shape == (6, *SIZE, 3) and fps == media.DEFAULT_FPS
    labels, distances = read_labels(motion)
    assert not distances.any()
    drawn, _ = media.read_video(files / "out_motion.mkv")
    np.testing.assert_array_equal(drawn[0], draw_labels(clip.labels[0]))
    # Twice the size in a picture that is shown at a third: the driver's body is smaller than plain cropping makes it.
    body, plain = (np.count_nonzero(x) for x in (labels[0], read_labels(media.fit(drawn[0], SIZE))[0]))
    assert 0.6 < body / plain < 1.3
    picture = media.read_image(files / "out_alignment.png")
    assert picture.shape == (SIZE[0], 4 * SIZE[1], 3)
    np.testing.assert_array_equal(picture[:, 2 * SIZE[1] : 3 * SIZE[1]], reference)


def test_the_drawn_motion_serves_again(files):
    first = read_inputs(request(files, align="body"), SIZE, seed=0)
    again = request(files, video=None, motion=str(files / "out_motion.mkv"), align="body")
    for a, b in zip(first, read_inputs(again, SIZE, seed=0), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_driver_stays_as_it_is_where_nobody_is_in_the_reference(files, caplog):
    media.write_video(files / "person.png", [np.zeros((50, 50, 3), np.uint8)], 1)

    class Nobody(Finder):
        def find(self, frames):
            for frame in frames:
                yield [] if frame.shape == (50, 50, 3) else next(super().find([frame]))

    known = inputs.make_finder()[0].known
    inputs.make_finder = lambda *_, **__: (Nobody(known), {"finder": "a test"})
    with caplog.at_level(logging.WARNING):
        _, motion, _ = read_inputs(request(files), SIZE, seed=0)
    assert "expected a person in the reference" in caplog.text and motion.any()
    with pytest.raises(InputError, match="expected a person in the reference, found none; --align none does without"):
        read_inputs(request(files, align="body"), SIZE, seed=0)


def test_a_video_without_people_is_refused(files):
    inputs.make_finder = lambda *_, **__: (Finder([(0.0, np.zeros((96, 96)), (96, 96, 3))]), {"finder": "a test"})
    with pytest.raises(InputError, match="expected a person in .*dance, found nobody in any of its frames"):
        read_inputs(request(files), SIZE, seed=0)


def test_requests_are_checked_first(tmp_path):
    for changes, message in (
        ({"motion": "a", "video": "b"}, "expected one of --motion and --video"),
        ({"align": "legs"}, "expected none, place, body for --align, found 'legs'"),
        ({"person": "0"}, "number of a person"),
    ):
        with pytest.raises(InputError, match=message):
            FileRequest(outs=[tmp_path / "a.mp4"], **changes)


def test_what_lies_beside_the_output_is_named_after_it(tmp_path):
    assert request(tmp_path).drawn == tmp_path / "out_motion.mkv"
    assert request(tmp_path).alignment == tmp_path / "out_alignment.png"
    for changes in ({"align": "none"}, {"video": None}, {"reference": None}):
        assert request(tmp_path, **changes).alignment is None
