import dataclasses

import numpy as np
import pytest
from micro import example

from mafx.densepose import FLIPPED, read_labels
from mafx.densepose.capsules import HEAD
from mafx.puppets import STANDING, Identity, Movement, draw_puppet, label_puppet, skeleton


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
    """Right hand, foot and half of the head are at the left of a puppet that faces the viewer; else at the right."""
    identity = Identity.from_seed(0)
    for yaw, sign in ((0.0, -1), (np.pi, 1)):
        _, labels = draw_puppet(identity, STANDING | {"yaw": yaw}, (128, 128))
        for right, left in ((3, 4), (6, 5), (23, 24)):
            assert np.sign(np.nonzero(labels == right)[1].mean() - np.nonzero(labels == left)[1].mean()) == sign
        assert (2 in labels) == (yaw == 0) and (1 in labels) == (yaw != 0)  # front and back of the torso


@pytest.mark.parametrize("size", [(64, 64), (37, 51)])
def test_labels_alone_are_those_of_the_picture(size):
    for seed in range(4):
        identity, pose = Identity.from_seed(seed), Movement.from_seed(seed).pose_at(2.0 * seed)
        np.testing.assert_array_equal(label_puppet(identity, pose, size), draw_puppet(identity, pose, size)[1])


def test_mirrored_pose_is_the_flipped_picture_of_labels():
    identity = Identity.from_seed(2)
    pose = STANDING | {"arm_r": 0.7, "raise_r": 0.9, "leg_l": 0.4, "knee_l": 0.3}
    mirrored = STANDING | {"arm_l": 0.7, "raise_l": 0.9, "raise_r": STANDING["raise_l"], "leg_r": 0.4, "knee_r": 0.3}
    labels, other = (draw_puppet(identity, p, (96, 96))[1] for p in (pose, mirrored))
    assert (FLIPPED[labels[:, ::-1]] == other).mean() > 0.995  # but for ties on the seam of the head


def test_the_front_does_not_tell_the_back():
    """A share of the garments has another look behind, which does not depend on the front's."""
    shirts = [Identity.from_seed(seed).shirt for seed in range(400)]
    different = [shirt for shirt in shirts if shirt.front is not shirt.back]
    assert 0.15 < len(different) / len(shirts) < 0.35
    grounds = np.array([[shirt.front.ground, shirt.back.ground] for shirt in different])
    correlation = np.corrcoef(grounds[:, 0].ravel(), grounds[:, 1].ravel())[0, 1]
    assert abs(correlation) < 0.15


@pytest.mark.parametrize("hidden", [0.0, 0.5, 1.0])
def test_the_share_of_hidden_surfaces_changes_nothing_else(hidden):
    shares = []
    for seed in range(100):
        usual, other = Identity.from_seed(seed), Identity.from_seed(seed, hidden)
        for garment in ("shirt", "trousers"):
            a, b = getattr(usual, garment), getattr(other, garment)
            np.testing.assert_array_equal(a.front.ground, b.front.ground)
            shares.append(b.front is not b.back)
        np.testing.assert_array_equal(usual.background.floor, other.background.floor)
    assert abs(np.mean(shares) - hidden) < 0.12


@pytest.mark.parametrize("seed", range(3))
def test_edges_are_smooth_and_all_sizes_show_the_same(seed):
    """A picture is the mean of one four times as large."""
    identity, pose = Identity.from_seed(seed), Movement.from_seed(seed).pose_at(1.5)
    small, _ = draw_puppet(identity, pose, (64, 64))
    large, _ = draw_puppet(identity, pose, (256, 256))
    mean = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.sqrt(np.square(small - mean).mean()) < 8
    taken = large[2::4, 2::4].astype(float)  # edges as they come
    assert np.square(small - mean).mean() < 0.4 * np.square(taken - mean).mean()


def test_faces_have_eyes_and_backs_of_heads_have_hair():
    green, skin = np.array([0.0, 1.0, 0.0]), np.array([0.6, 0.4, 0.3])
    identity = dataclasses.replace(Identity.from_seed(0), hair=green, skin=skin, style="short")

    def head(yaw):
        picture, labels = draw_puppet(identity, STANDING | {"yaw": yaw}, (256, 256))
        pixels = picture[np.isin(labels, list(HEAD.values()))].astype(int)
        hairy, white = pixels[:, 1] > 2 * pixels[:, 0], pixels.min(-1) > 130
        return hairy.mean(), white.sum()

    (hair_before, eyes), (hair_behind, none) = head(0.0), head(np.pi)
    assert hair_before < 0.4 and hair_behind > 0.7
    assert eyes >= 4 and none == 0


def test_every_puppet_stands_on_the_same_floor():
    soles = []
    for seed in range(8):
        feet = [part for part in skeleton(Identity.from_seed(seed), STANDING) if part.part.startswith("foot")]
        assert len(feet) == 2
        soles += [foot.end[1] - foot.radii[1] for foot in feet]
    np.testing.assert_allclose(soles, np.mean(soles), atol=0.02)


def test_pictures_stay_as_they_are():
    """The bundled model was trained on these draws and pixels: noted here are the means of one clip's channels."""
    clip = example((64, 64), 3, 7, 7)
    np.testing.assert_allclose(clip.video.mean((0, 1, 2)), [118.738, 106.028, 102.343], atol=0.05)
    assert Movement.from_seed(7).pose_at(1.5)["arm_r"] == pytest.approx(0.461112285)
