import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mafx.diffusion.losses import corrupt, loss_weights
from mafx.diffusion.schedule import PREDICTIONS, Schedule, add_noise, answer_for, signal_and_noise


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


def test_errors_that_count_as_those_of_v(rng):
    """For every prediction the weighted error is that of v, up to the largest weight."""
    times = np.array([100, 300, 600])
    x, noise, wrong = rng.normal(size=(3, 3, 1, 2, 2, 4)).astype(np.float32)
    errors = []
    for prediction in ("v", "sample", "epsilon"):
        schedule = Schedule(prediction=prediction)
        alpha, sigma = (scale[times][:, None, None, None, None] for scale in (schedule.alphas, schedule.sigmas))
        noisy = add_noise(x, noise, alpha, sigma)
        answers = [answer_for(noisy, clean, alpha, sigma, prediction) for clean in (x, wrong)]
        squares = np.square(answers[0] - answers[1]).mean((1, 2, 3, 4))
        errors.append(squares * np.asarray(loss_weights(times, schedule, as_v=True)))
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-3)
    np.testing.assert_allclose(errors[2], errors[0], rtol=1e-3)
    ends = Schedule(prediction="sample", zero_terminal_snr=True)
    np.testing.assert_allclose(loss_weights(np.array([0, 999]), ends, as_v=True), [20, 1], rtol=1e-3)
