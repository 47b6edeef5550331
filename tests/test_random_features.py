import numpy as np

from mafx.evaluation.features import frechet_distance
from mafx.evaluation.random_features import random_features


def test_blur_and_noise_are_far_from_sharp_pictures():
    """Two halves of one set are nearer to each other than one of them is to the other when it is blurred or noisy."""
    rng = np.random.default_rng(0)
    squares = np.kron(rng.integers(0, 256, (4000, 4, 4, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    a, b = squares[:2000], squares[2000:]
    blurred = ((a.astype(float) + np.roll(a, 1, 1) + np.roll(a, 1, 2) + np.roll(a, (1, 1), (1, 2))) / 4).astype(
        np.uint8
    )
    noisy = np.clip(a + rng.normal(0, 50, a.shape), 0, 255).astype(np.uint8)
    same, blur, noise = (frechet_distance(random_features(x), random_features(b)) for x in (a, blurred, noisy))
    assert same * 3 < min(blur, noise)


def test_features_are_the_same_every_time_and_have_a_row_per_frame():
    video = np.random.default_rng(0).integers(0, 256, (5, 32, 24, 3)).astype(np.uint8)
    features = random_features(video)
    assert features.shape == (5, 336) and features.dtype == np.float32
    np.testing.assert_allclose(random_features(video[2:3]), features[2:3], atol=1e-6)
