import re

import numpy as np
import pytest
from conftest import SHARED
from micro import example

from mafx import media
from mafx.densepose import (
    BACKGROUND,
    FLIPPED,
    PALETTE,
    PARTS,
    TOLERANCE,
    EvenSample,
    check_motion,
    draw_labels,
    read_labels,
)


@pytest.fixture(scope="module")
def motion():
    return example((64, 64), 6).motion


def test_palette_is_viridis_and_its_colours_are_apart():
    assert PALETTE.shape == (PARTS, 3)
    assert BACKGROUND == (68, 1, 84) and tuple(PALETTE[24]) == (253, 231, 37) and tuple(PALETTE[12]) == (33, 144, 141)
    labels, distances = read_labels(PALETTE)
    np.testing.assert_array_equal(labels, np.arange(PARTS))
    assert (distances == 0).all()
    assert tuple(PALETTE[0]) == BACKGROUND


def test_labels_survive_drawing(rng):
    labels = rng.integers(0, PARTS, (3, 5, 7))
    np.testing.assert_array_equal(read_labels(draw_labels(labels))[0], labels)


def test_the_nearest_label_is_read_with_its_distance(rng):
    labels = rng.integers(0, PARTS, (4, 6))
    colours = draw_labels(labels)
    colours[..., 1] += np.uint8(3)
    nearest, distances = read_labels(colours)
    np.testing.assert_array_equal(nearest, labels)
    assert (distances == 3).all()


def test_flipping_swaps_sides_and_twice_is_nothing():
    np.testing.assert_array_equal(FLIPPED[FLIPPED], np.arange(PARTS))
    assert FLIPPED[[0, 1, 2]].tolist() == [0, 1, 2], "background and torso have no side"
    assert FLIPPED[[3, 5, 23]].tolist() == [4, 6, 24], "hands, feet and halves of the head have"


def test_brightness_tells_labels_apart_where_colours_are_mixed(tmp_path, motion):
    labels = read_labels(motion)[0]
    media.write_video(tmp_path / "v.mp4", motion, 10, quality=6)
    video = media.read_video(tmp_path / "v.mp4")[0]
    differences = np.abs(video[..., None, :].astype(int) - PALETTE).max(-1)
    found, distances = read_labels(video)
    np.testing.assert_array_equal(distances, differences.min(-1))
    mixed = distances > TOLERANCE
    np.testing.assert_array_equal(found[~mixed], differences.argmin(-1)[~mixed])
    wrong, wrong_by_colour = ((x != labels)[mixed].mean() for x in (found, differences.argmin(-1)))
    assert 0.005 < mixed.mean() < 0.1 and wrong < 0.8 * wrong_by_colour


def test_good_motion_has_no_complaint(motion):
    report = check_motion(motion)
    assert report.complaint is None
    assert report.fitting == 1 and 0.03 < report.person < 0.5


def test_complaints_name_the_cause(motion, rng):
    labels, _ = read_labels(motion)
    black = np.where(labels[..., None] == 0, 0, motion).astype(np.uint8)
    grey = np.repeat((labels * 10)[..., None], 3, axis=-1).astype(np.uint8)
    jet = np.stack([labels * 10, 255 - labels * 10, 128 + 0 * labels], -1).astype(np.uint8)
    photo = rng.integers(0, 256, motion.shape).astype(np.uint8)
    empty = np.broadcast_to(np.array(BACKGROUND, np.uint8), motion.shape)
    night = np.zeros_like(motion)
    for wrong, message in (
        (
            black,
            "a black background where RGB \\(68, 1, 84\\) is expected.*python -m mafx.densepose 'my motion.mp4' --out",
        ),
        (motion[..., ::-1], "red and blue swapped.*python -m mafx.densepose 'my motion.mp4' --out"),
        (grey, "another colour map.*python -m mafx.densepose 'my motion.mp4' --out"),
        (night, "another colour map"),
        (jet, "another colour map"),
        (photo, "does not look like DensePose.*sample.py --video 'my motion.mp4'"),
        (empty, "only background"),
    ):
        complaint = check_motion(wrong, "my motion.mp4").complaint
        assert complaint is not None
        assert re.search(message, complaint), complaint


def test_real_driving_videos_and_real_pictures():
    folder = SHARED / "data" / "applications"
    if not folder.is_dir():
        pytest.skip("the published driving videos (../shared/data) are not here")
    for path in sorted((folder / "densepose").iterdir()):
        report = check_motion(media.read_video(path)[0])
        assert report.complaint is None, f"{path.name}: {report}"
        assert report.fitting > 0.85
    for path in sorted((folder / "source_image").iterdir()):
        assert check_motion(media.read_image(path)[None]).complaint is not None, path.name


def test_real_renders_of_a_dithered_clip():
    folder = SHARED / "data" / "clips" / "teaser" / "densepose"
    if not folder.is_dir():
        pytest.skip("the clip with DensePose renders (../shared/data/clips) is not here")
    assert check_motion(media.read_video(folder)[0]).complaint is None


def test_frames_are_sampled_evenly_however_many_come():
    for count in (1, 20, 32, 33, 1000):
        sample = EvenSample()
        for i in range(count):
            sample.add(np.full((1, 1, 3), i % 256, np.uint8))
        assert min(count, 16) <= len(sample.frames) <= 32
        assert sample.frames[0, 0, 0, 0] == 0
    steps = np.diff(sample.frames[:, 0, 0, 0].astype(int)) % 256
    assert (steps == steps[0]).all()
