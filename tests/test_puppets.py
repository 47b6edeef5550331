import time

import numpy as np
import pytest
from micro import example

from mafx.data.puppets import STANDING, Identity, Movement, render
from mafx.densepose import FLIPPED, read_labels


def test_clips_repeat_and_seeds_differ():
    a, b = example((48, 48), 4, 3, 5), example((48, 48), 4, 3, 5)
    for name in ("reference", "motion", "video", "labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (example((48, 48), 1, 4, 5).labels != a.labels[:1]).mean() < 0.2  # another body in the same pose
    assert np.abs(example((48, 48), 1, 4, 5).video.astype(int) - a.video[:1]).mean() > 20  # that looks different
    assert (example((48, 48), 1, 3, 6).labels != a.labels[:1]).any()


@pytest.mark.parametrize("seed", range(4))
def test_renders_are_exact(seed):
    clip = example((64, 96), 8, seed, seed)
    labels, distance = read_labels(clip.motion)
    assert (distance == 0).all()
    np.testing.assert_array_equal(labels, clip.labels)
    assert 0.02 < (labels > 0).mean() < 0.4
    assert clip.video.shape == (8, 64, 96, 3) and clip.reference.shape == (64, 96, 3)
    border = np.concatenate([labels[:, 0].ravel(), labels[:, :, 0].ravel(), labels[:, :, -1].ravel()])
    assert (border == 0).all()  # nobody leaves the picture


def test_all_parts_occur():
    seen = set()
    for seed in range(8):
        seen |= set(np.unique(example((96, 96), 12, seed, seed).labels))
    assert seen == set(range(25))


def test_sides():
    """The puppet that faces the viewer has its right (22 right forearm, 23 right half of the head) at the left; turned around, at the right."""
    who = Identity.draw(0)
    for yaw, sign in ((0.0, -1), (np.pi, 1)):
        _, labels = render(who, STANDING | {"yaw": yaw}, (128, 128))
        for right, left in ((3, 4), (6, 5), (23, 24)):
            assert np.sign(np.nonzero(labels == right)[1].mean() - np.nonzero(labels == left)[1].mean()) == sign
        assert (2 in labels) == (yaw == 0) and (1 in labels) == (yaw != 0)  # front and back of the torso


def test_mirrored_pose_is_the_flipped_picture_of_labels():
    who = Identity.draw(2)
    pose = STANDING | {"arm_r": 0.7, "raise_r": 0.9, "leg_l": 0.4, "knee_l": 0.3}
    mirrored = STANDING | {"arm_l": 0.7, "raise_l": 0.9, "raise_r": STANDING["raise_l"], "leg_r": 0.4, "knee_r": 0.3}
    labels, other = (render(who, p, (96, 96))[1] for p in (pose, mirrored))
    assert (FLIPPED[labels[:, ::-1]] == other).mean() > 0.995  # but for ties on the seam of the head


def test_back_is_not_foretold_by_the_front():
    """People who look alike from the front may differ from behind: a quarter of the clothes have another colour there, drawn apart."""
    shirts = [Identity.draw(seed).shirt for seed in range(400)]
    fronts, backs = zip(
        *((shirt.front, shirt.back) for shirt in shirts if (shirt.front != shirt.back).any()), strict=True
    )
    assert 0.15 < len(fronts) / len(shirts) < 0.35
    correlation = np.corrcoef(np.array(fronts).ravel(), np.array(backs).ravel())[0, 1]
    assert abs(correlation) < 0.15


def test_two_hundred_frames_a_second():
    who, how = Identity.draw(1), Movement.draw(1)
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        for i in range(40):
            render(who, how.at(i / 12), (64, 64))
        rates.append(40 / (time.perf_counter() - start))
    assert max(rates) > 200
