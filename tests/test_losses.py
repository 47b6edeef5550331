import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mafx.diffusion.losses import corrupt, loss_weights
from mafx.diffusion.schedule import PREDICTIONS, Schedule, signal_and_noise


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_undoes_the_corruption(rng, prediction):
    schedule = Schedule(prediction=prediction)
    x = jnp.asarray(rng.normal(size=(64, 2, 3, 3, 4)), jnp.float32)
    done = corrupt(jax.random.key(0), x, schedule)
    alpha, sigma = (
        jnp.asarray(y, jnp.float32)[done.times][:, None, None, None, None] for y in (schedule.alphas, schedule.sigmas)
    )
    clean, noise = signal_and_noise(done.noisy, done.target, alpha, sigma, prediction)
    np.testing.assert_allclose(clean, x, atol=1e-4 if prediction == "epsilon" else 2e-5)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert done.times.shape == (64,) and len(set(done.times.tolist())) > 50


def test_noise_offset_is_constant_over_a_frame():
    x = jnp.zeros((256, 2, 8, 8, 1))
    schedule = Schedule()
    spread = [float(corrupt(jax.random.key(0), x, schedule, offset).target.mean((2, 3)).std()) for offset in (0.0, 0.5)]
    assert spread[0] == pytest.approx(1 / 8, rel=0.1)
    assert spread[1] == pytest.approx(np.sqrt(1 / 64 + 0.25), rel=0.1)


def test_times_are_drawn_later_as_shifted():
    x, schedule = jnp.zeros((4096, 1, 1, 1, 1)), Schedule()
    for shift in (1.0, 3.0):
        times = np.asarray(corrupt(jax.random.key(0), x, schedule, time_shift=shift).times)
        assert times.min() >= 0 and times.max() < schedule.steps
        middle = schedule.steps * shift * 0.5 / (1 + (shift - 1) * 0.5)  # where u = 0.5 goes
        assert (times < middle).mean() == pytest.approx(0.5, abs=0.03)


def test_min_snr_weights_by_hand():
    schedule = Schedule()
    snr = schedule.abar / (1 - schedule.abar)
    times = jnp.array([0, 300, 900])
    assert loss_weights(times, schedule).tolist() == [1, 1, 1]
    np.testing.assert_allclose(
        loss_weights(times, schedule, 5.0), np.minimum(snr, 5)[[0, 300, 900]] / snr[[0, 300, 900]], rtol=1e-5
    )
    velocity = Schedule(prediction="v")
    np.testing.assert_allclose(
        loss_weights(times, velocity, 5.0), (np.minimum(snr, 5) / (snr + 1))[[0, 300, 900]], rtol=1e-5
    )
    sample = Schedule(prediction="sample")
    np.testing.assert_allclose(loss_weights(times, sample, 5.0), np.minimum(snr, 5)[[0, 300, 900]], rtol=1e-5)
