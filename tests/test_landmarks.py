import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from mafx.densepose.landmarks import BODY, Crop, OneEuro, PoseFinder
from mafx.densepose.pose_networks import LANDMARKS, CropLandmarks, Detection, PoseNetworks

POSE, CLIP = SHARED / "fixtures" / "pose", SHARED / "data" / "clips" / "teaser" / "images"


# -- Crops


def test_a_crop_goes_to_the_picture_and_back():
    crop = Crop.around(np.array([50.0, 60.0]), np.array([50.0, 20.0]))
    assert crop.side == pytest.approx(2 * 1.25 * 40) and crop.angle == 0
    np.testing.assert_allclose(crop.to_picture(np.array([(0.5, 0.5), (0, 0)])), [(50, 60), (0, 10)])
    turned = Crop.around(np.array([50.0, 60.0]), np.array([90.0, 60.0]))  # the head is at the right
    np.testing.assert_allclose(turned.to_picture(np.array([(0.5, 0.1)])), [(90, 60)])
    points = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(turned.from_picture(turned.to_picture(points)), points)


def test_a_crop_shows_its_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    same = Crop(np.array([20.0, 15.0]), 16.0, 0.0).cut(picture, 16, repeat=False)
    np.testing.assert_array_equal(same, picture[7:23, 12:28].astype(np.float32) / 255)
    upside_down = Crop(np.array([20.0, 15.0]), 16.0, np.pi).cut(picture, 16, repeat=False)
    np.testing.assert_allclose(upside_down, picture[8:24, 13:29][::-1, ::-1] / 255, atol=1 / 255)


def test_beyond_the_picture_is_black_or_its_border():
    picture = np.full((10, 10, 3), 100, np.uint8)
    picture[:, -1] = 200
    crop = Crop(np.array([9.0, 5.0]), 8.0, 0.0)
    black, border = (crop.cut(picture, 8, repeat) * 255 for repeat in (False, True))
    np.testing.assert_array_equal(black[4, :, 0], [100, 100, 100, 100, 200, 0, 0, 0])
    np.testing.assert_array_equal(border[4, :, 0], [100, 100, 100, 100, 200, 200, 200, 200])
    far = Crop(np.array([900.0, 5.0]), 8.0, 0.0)
    assert (far.cut(picture, 8, repeat=True) * 255 == 200).all()


def test_masks_go_back_to_where_they_were_cut():
    y, x = np.mgrid[:60, :80]
    picture = np.repeat(((x - 40) ** 2 + 4 * (y - 30) ** 2 < 400)[..., None], 3, -1).astype(np.uint8) * 255
    crop = Crop(np.array([41.0, 28.0]), 60.0, 0.4)
    mask = crop.cut(picture, 128, repeat=False)[..., 0]
    back = crop.paste(mask, (10, 5, 60, 50), 1)
    assert np.mean((back > 0.5) != (picture[5:55, 10:70, 0] > 0)) < 0.01
    assert np.mean((crop.paste(mask, (10, 5, 60, 50), 2) > 0.5) != (picture[5:55:2, 10:70:2, 0] > 0)) < 0.03


# -- Smoothing


def test_a_still_point_is_smoothed_and_a_fast_one_is_not():
    def settle(noise, speed):
        rng = np.random.default_rng(0)
        smooth = OneEuro(least_cutoff=0.05, beta=80)
        truth = speed * np.arange(60) / 25
        return np.array([smooth(x, 25) for x in (truth + rng.normal(size=60) * noise)[:, None]])[:, 0] - truth

    assert settle(1e-4, 0)[20:].std() < 0.3e-4
    assert np.abs(settle(0, 1.0)[20:]).max() < 0.1 * 1.0 / 25  # it lags by less than a tenth of a frame


def test_the_filter_by_hand():
    smooth = OneEuro(least_cutoff=1, beta=0.5)
    assert smooth(np.array([2.0]), 10)[0] == 2
    speed = 10 * 10 / (1 + 10 / (2 * np.pi))  # a step of 10 in a tenth of a second, smoothed with 1 Hz
    weight = 1 / (1 + 10 / (2 * np.pi * (1 + 0.5 * speed)))
    assert smooth(np.array([12.0]), 10)[0] == pytest.approx(2 + weight * 10)


# -- People, with networks that see points of light


class Eyes:
    """In place of both networks: a person is a bright pixel, whose hips are there and whose reach is 20 pixels up."""

    SIDE = 100  # of pictures

    def __init__(self):
        self.looks = 0

    def detect(self, picture):
        self.looks += 1
        rows, columns = np.nonzero(picture[..., 0] > 0.4 * picture.max() + 0.01)
        people = {(round(x / 224 * self.SIDE), round(y / 224 * self.SIDE)) for x, y in zip(columns, rows, strict=True)}
        hips = [np.array(person) / self.SIDE for person in sorted(people)]
        return [Detection(np.zeros(4), hip, hip - (0, 0.2), 0.9) for hip in hips]

    def find_landmarks(self, picture):
        brightest = np.array(np.unravel_index(picture[..., 0].argmax(), picture.shape[:2]))[::-1]
        points = np.full((LANDMARKS, 3), 0.5)
        points[:, :2] = brightest / len(picture)
        points[BODY + 1, 1] -= 0.4  # 20 of the crop's 50 pixels
        presence = float(picture.max() > 0.1)
        return CropLandmarks(points, np.ones(LANDMARKS), np.ones((LANDMARKS, 3)), np.zeros((256, 256)), presence)


def frame_with(*people):
    frame = np.zeros((100, 100, 3), np.uint8)
    for x, y in people:
        frame[y - 1 : y + 2, x - 1 : x + 2] = 255
    return frame


def hips(poses):
    return [tuple(pose.points[BODY, :2].round().astype(int).tolist()) for pose in poses]


def test_a_person_is_looked_for_once_and_followed():
    eyes = Eyes()
    frames = [frame_with((20 + 2 * i, 50)) for i in range(20)]
    found = list(PoseFinder(eyes).find(frames))
    assert [len(poses) for poses in found] == [1] * 20
    assert eyes.looks == 1
    assert abs(hips(found[-1])[0][0] - 58) <= 3


def test_single_pictures_are_looked_at_one_by_one():
    eyes = Eyes()
    frames = [frame_with((20, 50)), frame_with((80, 50)), frame_with()]
    found = list(PoseFinder(eyes, tracking=False).find(frames))
    assert eyes.looks == 3 and [len(poses) for poses in found] == [1, 1, 0]
    assert abs(hips(found[1])[0][0] - 80) <= 1


def test_who_is_lost_is_looked_for_again():
    eyes = Eyes()
    frames = [frame_with((20, 50)), frame_with(), frame_with(), frame_with((70, 40)), frame_with((71, 40))]
    found = list(PoseFinder(eyes).find(frames))
    assert [len(poses) for poses in found] == [1, 0, 0, 1, 1]
    assert abs(hips(found[3])[0][0] - 70) <= 1  # not smoothed with where somebody was before


def test_as_many_people_as_asked_for():
    frames = [frame_with((15, 50), (50, 50), (85, 50))]
    for people in (1, 2, 3):
        assert len(next(PoseFinder(Eyes(), people=people).find(frames))) == people


def test_people_who_meet_are_not_found_twice():
    apart, together = frame_with((20, 50), (80, 50)), frame_with((50, 50))
    walk = [frame_with((20 + 3 * i, 50), (80 - 3 * i, 50)) for i in range(10)]
    counts = [len(poses) for poses in PoseFinder(Eyes(), people=2).find([apart, *walk, together, together])]
    assert counts[:6] == [2] * 6 and counts[-1] == 1


def test_frames_are_taken_one_by_one():
    taken = []

    def frames():
        for i in range(5):
            taken.append(i)
            yield frame_with((20, 50))

    found = PoseFinder(Eyes()).find(frames())
    next(found)
    assert taken == [0]
    next(found)
    assert taken == [0, 1]


# -- The networks themselves


def test_landmarks_are_those_of_mediapipe(pose_files):
    if not POSE.is_dir() or not CLIP.is_dir():
        pytest.skip("the clip and its published landmarks (../shared/fixtures/pose) are not here")
    published = np.load(POSE / "mediapipe_teaser.npz")
    finder = PoseFinder(PoseNetworks(pose_files), tracking=False)
    frames = [Image.open(CLIP / f"{i + 1:04d}.png").convert("RGB").resize((480, 480), 3) for i in range(0, 153, 8)]
    for i, poses in zip(range(0, 153, 8), finder.find(map(np.array, frames)), strict=True):
        expected = published["landmarks"][i, :, :2] * 480
        shoulders = np.linalg.norm(expected[11] - expected[12])
        errors = np.linalg.norm(poses[0].points[:BODY, :2] - expected, axis=1) / shoulders
        inside = (poses[0].points[:BODY, :2] < 480).all(1)
        assert errors[inside].mean() < 0.05 and errors.mean() < 0.1, i
        mask = poses[0].crop.paste(poses[0].mask, (0, 0, 480, 480), 4)
        assert ((mask > 0.5) == (published["mask"][i] > 127)).mean() > 0.98
