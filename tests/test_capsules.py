import numpy as np
import pytest

from mafx.densepose.capsules import HEAD, LABELS, Capsule, bounding_box, project

YS, XS = np.arange(20, -21, -1, dtype=np.float32), np.arange(-30, 31, dtype=np.float32)


def test_a_ball_is_seen_as_one():
    ball = Capsule("head", np.array([3.0, -2.0, 7.0]), np.array([3.0, -2.0, 7.0]), (5.0, 5.0))
    surface = project(ball, YS[:, None], XS[None])
    y, x = np.meshgrid(YS, XS, indexing="ij")
    square = (x - 3) ** 2 + (y + 2) ** 2
    np.testing.assert_array_equal(surface.height > 0, square < 25)
    seen = surface.height > 0
    np.testing.assert_allclose(surface.z[seen], 7 + np.sqrt(25 - square[seen]), rtol=1e-6)
    normals = surface.normal(seen)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(normals[:, 0] * 5, (x - 3)[seen], atol=1e-5)
    np.testing.assert_allclose(normals[:, 1] * 5, (y + 2)[seen], atol=1e-5)


def test_a_limb_tapers_and_leans():
    limb = Capsule("shin_l", np.array([-10.0, 0.0, 0.0]), np.array([10.0, 0.0, 20.0]), (4.0, 2.0))
    surface = project(limb, YS[:, None], XS[None])
    middle = len(YS) // 2, len(XS) // 2
    assert surface.along[middle] == pytest.approx(0.5)
    assert surface.radius[middle] == pytest.approx(3)
    assert surface.z[middle] == pytest.approx(10 + 3)


@pytest.mark.parametrize("seed", range(8))
def test_the_bounding_box_holds_all_that_is_seen_and_no_more_than_needed(seed):
    rng = np.random.default_rng(seed)
    start, end = rng.uniform(-25, 25, (2, 3))
    limb = Capsule("shin_l", start, end, tuple(rng.uniform(1, 6, 2)))
    box = bounding_box(limb, YS, XS)
    whole = project(limb, YS[:, None], XS[None]).height > 0
    inside = np.zeros_like(whole)
    inside[box] = True
    assert not (whole & ~inside).any()
    assert (YS[box[0]] <= max(start[1], end[1]) + 6).all() and (XS[box[1]] >= min(start[0], end[0]) - 6).all()


def test_every_label_has_a_part():
    assert {label for pair in LABELS.values() for label in pair} | set(HEAD.values()) == set(range(1, 25))
