"""Who imitates does as the person does, wherever that person is."""

import numpy as np
import pytest
from test_bodies import puppet_pose

from mafx.densepose.landmarks import BODY, PoseTracker
from mafx.densepose.pose_networks import PoseNetworks
from mafx.puppets import STANDING, Identity, Movement, draw_puppet, stance_of
from mafx.web.imitation import AT_EASE, PersonImitator, PuppetImitator, imitate

WIDE = 240, 320


def landmarks(identity, pose, size=WIDE):
    return puppet_pose(pose, identity, size)[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [WIDE, (600, 400)])
def test_a_puppet_does_what_another_one_does(seed, size):
    """Whoever is in front of the camera, and whatever camera that is."""
    driver, puppet = Identity.from_seed(seed), Identity.from_seed(100 + seed)
    pose = Movement.from_seed(seed).pose_at(0.4 * seed) | {"sway": 0.1, "nod": 0.0}
    truth = draw_puppet(puppet, pose, (64, 64))[1] > 0
    found = PuppetImitator(puppet, (64, 64))(landmarks(driver, pose, size)) > 0
    assert (truth & found).sum() > 0.85 * (truth | found).sum()


def test_directions_are_those_of_the_person():
    pose = STANDING | {"arm_r": 0.5, "raise_l": 1.2, "elbow_l": 0.8, "leg_r": 0.4, "yaw": 0.7, "lean": 0.1}
    stance, truth = imitate(landmarks(Identity.from_seed(0), pose)), stance_of(pose)
    assert stance.yaw == pytest.approx(truth.yaw, abs=0.1)
    for found, expected in ((stance.arms, truth.arms), (stance.legs, truth.legs)):
        for side in "rl":
            assert found[side].upper @ expected[side].upper > 0.97
            assert found[side].lower @ expected[side].lower > 0.95
    assert stance.up @ truth.up > 0.99


def test_what_is_not_seen_hangs_down():
    pose = STANDING | {"raise_r": 1.4, "raise_l": 1.4}
    stance = imitate(landmarks(Identity.from_seed(0), pose)._replace(visibility=np.full(BODY, 0.1)))
    for side in "rl":
        np.testing.assert_allclose(stance.arms[side], AT_EASE.arms[side])
        np.testing.assert_allclose(stance.legs[side], AT_EASE.legs[side])


def test_a_puppet_stands_where_the_person_stands_and_never_leaves():
    identity = Identity.from_seed(0)
    left, right = (imitate(landmarks(identity, STANDING | {"sway": sway})).sway for sway in (-0.3, 0.3))
    assert left == pytest.approx(-0.3, abs=0.05) and right == pytest.approx(0.3, abs=0.05)
    assert imitate(landmarks(identity, STANDING | {"sway": 3.0})).sway == 0.5


def centre(labels):
    """Middle and height of a body, in pixels."""
    rows, columns = np.nonzero(labels)
    return columns.mean(), rows.mean(), np.ptp(rows)


def test_the_person_of_a_picture_stays_in_its_place_whatever_the_distance(pose_files):
    size, networks = (256, 256), PoseNetworks(pose_files)
    picture, labels = draw_puppet(Identity.from_seed(2), STANDING | {"spread": 0.2, "raise_r": 0.5}, size)
    person = PersonImitator(labels)
    far = np.full((512, 512, 3), picture[0, 0], np.uint8)
    far[256:, :256] = picture
    (pose,) = PoseTracker(networks, tracking=False)(far)
    x, y, high = centre(person(pose))
    expected = centre(labels)
    assert abs(x - expected[0]) < 12 and abs(y - expected[1]) < 20 and 0.8 < high / expected[2] < 1.2


def test_without_a_person_in_the_picture_the_cameras_view_fills_it(pose_files):
    frame, truth = draw_puppet(Identity.from_seed(2), STANDING, (256, 512))
    (pose,) = PoseTracker(PoseNetworks(pose_files), tracking=False)(frame)
    x, _, high = centre(PersonImitator(np.zeros((128, 128), np.uint8))(pose))
    assert abs(x - 64) < 5 and 0.8 < high / (np.ptp(np.nonzero(truth)[0]) / 2) < 1.2
