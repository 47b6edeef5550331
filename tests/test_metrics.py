import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from mafx import metrics
from mafx.evaluation.summary import mean_interval


@pytest.fixture
def pictures(rng):
    a = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    return (
        a,
        np.clip(a.astype(int) + rng.integers(-60, 60, a.shape), 0, 255).astype(np.uint8),
        rng.random((24, 32)) < 0.3,
    )


def test_psnr_is_that_of_scikit_image(pictures):
    a, b, mask = pictures
    assert metrics.psnr(a, b) == pytest.approx(skimage_metrics.peak_signal_noise_ratio(a, b), abs=1e-4)
    assert metrics.psnr(a, b, mask) == pytest.approx(
        skimage_metrics.peak_signal_noise_ratio(a[mask], b[mask]), abs=1e-4
    )
    assert metrics.psnr(a, a) == 100


def test_ssim_by_its_formula(pictures):
    """Wang et al. 2004, equation 13, with sample covariances over windows of 7x7, at one pixel."""
    a, b, _ = pictures
    weights = np.array([299, 587, 114]) / 1000
    x, y = (np.round(p @ weights)[5:12, 8:15] for p in (a, b))
    covariance = np.cov(x.ravel(), y.ravel())
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
    expected /= (x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
    mask = np.zeros(a.shape[:2], bool)
    mask[8, 11] = True
    assert metrics.ssim(a, b, mask) == pytest.approx(expected, abs=5e-3)  # grey values are rounded by another rule
    assert metrics.ssim(a, a) == pytest.approx(1)


def test_l1_depends_on_size_as_published(pictures):
    a, b, mask = pictures
    assert metrics.l1(a, b) == pytest.approx(np.abs(a / 255 - b / 255).mean())
    assert metrics.l1_published(a, b, mask) == pytest.approx(np.abs(a[mask] - b[mask].astype(float)).mean() / (24 * 32))


def test_legacy_psnr_is_about_29_whatever_the_pictures(rng):
    truth = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    other = np.clip(truth + rng.normal(0, 40, truth.shape), 0, 255).astype(np.uint8)
    assert 16 < metrics.psnr(truth, other) < 18
    assert 28 < metrics.psnr_legacy(truth, other) < 30
    by_hand = np.mean(
        [(int(x) - int(y)) % 256 * ((int(x) - int(y)) % 256) % 256 for x, y in zip(truth.flat, other.flat, strict=True)]
    )
    assert metrics.psnr_legacy(truth, other) == pytest.approx(10 * np.log10(255**2 / by_hand))


def test_difference_error_sees_only_what_changes(rng):
    truth = rng.integers(0, 200, (3, 8, 8, 3)).astype(np.uint8)
    brighter = truth + 30
    np.testing.assert_array_equal(metrics.difference_error(brighter, truth), 0)
    jump = truth.copy()
    jump[1, :4] += 51
    np.testing.assert_allclose(metrics.difference_error(jump, truth), 0.1)
    mask = np.zeros((3, 8, 8), bool)
    mask[:2, :4] = True
    np.testing.assert_allclose(metrics.difference_error(jump, truth, mask), [0.2, np.nan])


def test_mean_of_defined_values():
    assert metrics.mean_of_defined([1.0, np.nan, 3.0]) == 2
    assert np.isnan(metrics.mean_of_defined([np.nan]))


def test_flicker_of_parts_the_reference_never_showed():
    labels = np.zeros((3, 8, 8), np.uint8)
    labels[:, :4], labels[:, 4:] = 1, 2
    video = np.zeros((3, 8, 8, 3), np.uint8)
    video[1, :4], video[1:, 4:] = 51, 102

    def flicker(shown, pairs=None, **options):
        return metrics.flicker(metrics.unseen_colours(video, labels, np.array(shown), **options), pairs)

    assert flicker([2]) == pytest.approx(0.2)  # there and back
    assert flicker([1]) == pytest.approx(0.4 / np.sqrt(2))
    assert flicker([1], np.array([True, False])) == pytest.approx(0.4)
    assert flicker([1], np.array([False, True])) == 0
    assert np.isnan(flicker([1, 2])) and np.isnan(flicker([2], least=33)), "the part has 32 pixels"


def test_drift_is_from_the_beginning_to_the_end():
    labels = np.ones((8, 4, 4), np.uint8)
    labels[-1] = 0  # nobody is there
    video = np.repeat(np.array([0, 51, 0, 51, 51, 102, 102, 102], np.uint8), 48).reshape(8, 4, 4, 3)
    colours = metrics.unseen_colours(video, labels, np.array([2]))
    assert metrics.drift(colours, 2) == pytest.approx(0.3)
    assert np.isnan(metrics.drift(metrics.unseen_colours(video, labels, np.array([1])), 2))


def test_the_side_that_a_frame_shows():
    labels = np.zeros((4, 4), np.uint8)
    assert metrics.facing(labels) == ""
    labels[:2] = 2
    assert metrics.facing(labels) == "front"
    labels[2:] = 1
    assert metrics.facing(labels) == "side"
    labels[1] = 1
    assert metrics.facing(labels) == "side", "a quarter is not less than a quarter"
    labels[:] = 1
    assert metrics.facing(labels) == "back"


def test_sharpness_is_relative_to_the_truth(rng):
    truth = rng.integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    mask = np.zeros((3, 8, 8), bool)
    mask[:2, 1:5, 1:5] = True
    assert metrics.relative_sharpness(truth, truth, mask) == 1
    assert metrics.relative_sharpness(truth // 2, truth, mask) == pytest.approx(0.5, abs=0.01)
    changed = truth.copy()
    changed[2], changed[:, 6:] = 0, 0
    assert metrics.relative_sharpness(changed, truth, mask) == 1, "outside of the mask"
    assert np.isnan(metrics.relative_sharpness(truth, truth, np.zeros_like(mask)))


def test_intervals_hold_the_mean_about_as_often_as_they_say(rng):
    inside = [low <= 0 <= high for _, low, high in (mean_interval(rng.normal(size=30)) for _ in range(100))]
    assert 85 <= sum(inside) <= 100
    assert mean_interval([1.0, 2.0, 4.0]) == mean_interval([1.0, float("nan"), 2.0, 4.0])


def test_sharpness_falls_with_blur_and_counts_the_mask_alone():
    checks = np.zeros((8, 8, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 255
    assert metrics.sharpness(checks) == pytest.approx(2)
    assert metrics.sharpness(np.full((8, 8, 3), 90, np.uint8)) == 0
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    half = checks.copy()
    half[5:] = 128
    assert metrics.sharpness(half, mask) == pytest.approx(2)
    blurred = (checks.astype(float) * 0.5 + 64).astype(np.uint8)
    assert metrics.sharpness(blurred) < 1.01
