import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from micro import example

from mafx import media
from mafx.densepose import draw_labels, read_labels
from mafx.densepose.colour_maps import known_palettes
from mafx.densepose.motions import MotionOptions, make_motion, write_motion
from mafx.densepose.people import Person
from mafx.errors import InputError

SIZE = 64, 64


@pytest.fixture(scope="module")
def clip():
    return example(SIZE, 12)


class Finder:
    """Finds who is known to be there, and loses everybody in some frames."""

    warm_up = 0

    def __init__(self, labels, lost=()):
        self.labels, self.lost = labels, lost

    def find(self, frames):
        for i, frame in enumerate(frames):
            assert frame.shape == (*SIZE, 3) and frame.dtype == np.uint8
            person = Person((0, 0, SIZE[1], SIZE[0]), self.labels[i].astype(np.uint8), 0.8)
            weak = Person((0, 0, 8, 8), np.full((8, 8), 24, np.uint8), 0.1)
            yield [] if i in self.lost else [person, weak]


def no_finder(fps, is_video):
    raise AssertionError("nobody has to be found")


def test_people_are_found_followed_and_drawn(tmp_path, clip):
    media.write_video(tmp_path / "dance.mp4", clip.video, 15)
    asked = []

    def make_finder(fps, is_video):
        asked.append((fps, is_video))
        return Finder(clip.labels, lost=(4, 5)), {"finder": "a test"}

    motion = make_motion(tmp_path / "dance.mp4", MotionOptions(), make_finder, tmp_path / "kept")
    assert (motion.fps, motion.length, asked) == (15, 12, [(Fraction(15), True)])
    write_motion(motion, tmp_path / "motion.mkv")
    drawn, fps = media.read_video(tmp_path / "motion.mkv")
    labels, distances = read_labels(drawn)
    assert fps == 15 and not distances.any() and not (labels[0] == 24)[:8, :8].all(), "the unsure person is not drawn"
    assert labels.any((1, 2)).all(), "the hole is filled"
    seen = np.delete(np.arange(12), (4, 5))
    assert (labels == clip.labels)[seen][clip.labels[seen] > 0].mean() > 0.95
    assert (motion.report.frames, motion.report.nobody) == (12, 2)
    assert "12 frames from people found by a test, 2 of them with nobody; 80% sure" in str(motion.report)
    beside = json.loads((tmp_path / "motion.mkv.json").read_text())
    assert beside["scores"] == [0.0 if i in (4, 5) else 0.8 for i in range(12)]


def test_raw_draws_everybody_in_each_frame(tmp_path, clip):
    media.write_video(tmp_path / "v", clip.video, 25)
    options = MotionOptions(raw=True, frames=3)
    finder = Finder(clip.labels, lost=(1,)), {"finder": "a test"}
    labels = list(make_motion(tmp_path / "v", options, lambda *_: finder, tmp_path / "kept"))
    assert len(labels) == 3 and not labels[1].any()
    assert (labels[0][:8, :8] == 24).all() and (labels[0][8:] == clip.labels[0][8:]).all()


def test_a_picture_becomes_a_picture(tmp_path, clip):
    media.write_video(tmp_path / "person.png", clip.video[:1], 1)
    asked = []

    def make_finder(fps, is_video):
        asked.append(is_video)
        return Finder(clip.labels), {"finder": "a test"}

    write_motion(make_motion(tmp_path / "person.png", MotionOptions(), make_finder, tmp_path / "k"), tmp_path / "r.png")
    assert asked == [False]
    np.testing.assert_array_equal(media.read_image(tmp_path / "r.png"), draw_labels(clip.labels[0]))


def test_renders_in_another_map_are_converted(tmp_path, clip):
    parula = next(palette for palette in known_palettes() if palette.name == "parula")
    media.write_video(tmp_path / "parula", parula.colours[clip.labels], 25)
    motion = make_motion(tmp_path / "parula", MotionOptions(), no_finder, tmp_path / "kept")
    np.testing.assert_array_equal(list(motion), clip.labels)
    assert motion.report.source == "labels drawn with parula" and motion.report.nobody == 0
    iuv = np.where(clip.labels[..., None] > 0, np.stack([clip.labels * 9, 255 - clip.labels, clip.labels], -1), 0)
    media.write_video(tmp_path / "iuv", iuv.astype(np.uint8), 25)
    for kind in ("auto", "iuv"):
        motion = make_motion(tmp_path / "iuv", MotionOptions(kind=kind), no_finder, tmp_path / "kept")
        np.testing.assert_array_equal(list(motion), clip.labels)


def test_what_is_no_render_is_refused_as_one(tmp_path, clip):
    media.write_video(tmp_path / "v", clip.video, 25)
    with pytest.raises(InputError, match="expected labels drawn with a colour map in"):
        make_motion(tmp_path / "v", MotionOptions(kind="renders"), no_finder, tmp_path / "kept")


def test_frames_of_other_sizes_are_refused(tmp_path, clip):
    media.write_video(tmp_path / "v", clip.video[:2], 25)
    media.write_video(tmp_path / "v" / "00002.png", clip.video[:1, :32], 25)
    motion = make_motion(
        tmp_path / "v", MotionOptions(), lambda *_: (Finder(clip.labels), {"finder": "a test"}), tmp_path / "kept"
    )
    with pytest.raises(InputError, match="differ in size: 32x64, 64x64"):
        list(motion)


def test_memory_does_not_grow_with_the_video(tmp_path, clip, monkeypatch):
    """Frames are read as they are needed: no more than a sample and a piece of them are ahead of what is written."""
    media.write_video(tmp_path / "v", np.concatenate([clip.video] * 16), 25)
    read, ahead = itertools.count(), []
    plain = media.read_image
    monkeypatch.setattr(media, "read_image", lambda path: (next(read), plain(path))[1])
    finder = Finder([clip.labels[0]] * 192), {"finder": "a test"}
    motion = make_motion(tmp_path / "v", MotionOptions(kind="people"), lambda *_: finder, tmp_path / "kept")
    for i, _ in enumerate(motion):
        ahead.append(int(repr(read)[6:-1]) - i)
    assert len(ahead) == 192 and max(ahead) < 110


def test_people_of_an_interrupted_search_serve_the_same_frames_only(tmp_path, clip):
    media.write_video(tmp_path / "v", np.concatenate([clip.video] * 8), 25)
    finder = Finder(list(clip.labels) * 8), {"finder": "a test"}

    def labels(**options):
        options = MotionOptions(kind="people", **options)
        return make_motion(tmp_path / "v", options, lambda *_: finder, tmp_path / "kept")

    list(itertools.islice(labels(), 70))  # interrupted: 64 frames are kept
    assert len(list(labels(frames=5))) == 5
    assert len(list(labels())) == 96
