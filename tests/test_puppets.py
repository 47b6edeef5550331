import numpy as np
import pytest
from micro import example

from mafx.data.puppets import STANDING, Identity, Movement, draw_puppet, skeleton
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
    """Right hand, foot and half of the head are at the left of a puppet that faces the viewer; else at the right."""
    identity = Identity.from_seed(0)
    for yaw, sign in ((0.0, -1), (np.pi, 1)):
        _, labels = draw_puppet(identity, STANDING | {"yaw": yaw}, (128, 128))
        for right, left in ((3, 4), (6, 5), (23, 24)):
            assert np.sign(np.nonzero(labels == right)[1].mean() - np.nonzero(labels == left)[1].mean()) == sign
        assert (2 in labels) == (yaw == 0) and (1 in labels) == (yaw != 0)  # front and back of the torso


def test_mirrored_pose_is_the_flipped_picture_of_labels():
    identity = Identity.from_seed(2)
    pose = STANDING | {"arm_r": 0.7, "raise_r": 0.9, "leg_l": 0.4, "knee_l": 0.3}
    mirrored = STANDING | {"arm_l": 0.7, "raise_l": 0.9, "raise_r": STANDING["raise_l"], "leg_r": 0.4, "knee_r": 0.3}
    labels, other = (draw_puppet(identity, p, (96, 96))[1] for p in (pose, mirrored))
    assert (FLIPPED[labels[:, ::-1]] == other).mean() > 0.995  # but for ties on the seam of the head


def test_the_front_does_not_tell_the_back():
    """A quarter of the clothes have another colour behind, and it does not depend on the front's."""
    shirts = [Identity.from_seed(seed).shirt for seed in range(400)]
    different = [shirt for shirt in shirts if (shirt.front != shirt.back).any()]
    fronts, backs = [shirt.front for shirt in different], [shirt.back for shirt in different]
    assert 0.15 < len(fronts) / len(shirts) < 0.35
    correlation = np.corrcoef(np.array(fronts).ravel(), np.array(backs).ravel())[0, 1]
    assert abs(correlation) < 0.15


def test_every_puppet_stands_on_the_same_floor():
    soles = []
    for seed in range(8):
        feet = [part for part in skeleton(Identity.from_seed(seed), STANDING) if part.part.startswith("foot")]
        assert len(feet) == 2
        soles += [foot.end[1] - foot.radii[1] for foot in feet]
    np.testing.assert_allclose(soles, np.mean(soles), atol=0.02)


def test_pictures_stay_as_they_are():
    """The bundled model was trained on these draws and pixels: noted here are the means of one clip's channels."""
    clip = example((32, 32), 3, 7, 7)
    np.testing.assert_allclose(clip.video.mean((0, 1, 2)), [110.782, 128.846, 100.061], atol=0.05)
    assert Movement.from_seed(7).pose_at(1.5)["arm_r"] == pytest.approx(0.461112285)
