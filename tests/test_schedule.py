import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mafx.diffusion.schedule import PREDICTIONS, Schedule, add_noise, sampling_times, signal_and_noise, velocity


def test_equals_the_published_schedule(published):
    wanted = load_file(published / "expected" / "scheduler.safetensors")
    np.testing.assert_allclose(Schedule().abar, wanted["alphas_cumprod"], rtol=3e-7)


def test_scaled_linear_ends():
    schedule = Schedule(kind="scaled_linear")
    assert schedule.abar[0] == pytest.approx(1 - 0.00085)
    assert schedule.abar[-1] == pytest.approx(0.0047, rel=0.01)  # Stable Diffusion's last signal


def test_zero_terminal_snr():
    schedule, plain = Schedule(zero_terminal_snr=True, prediction="v"), Schedule()
    assert schedule.abar[-1] == 0
    assert schedule.abar[0] == pytest.approx(plain.abar[0])
    assert (np.diff(schedule.abar) < 0).all()
    with pytest.raises(ValueError, match="use prediction 'v'"):
        Schedule(zero_terminal_snr=True)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_output_is_split_into_what_it_was_made_of(rng, prediction):
    x, noise = (jnp.asarray(rng.normal(size=(2, 3)), jnp.float32) for _ in range(2))
    alpha, sigma = 0.8, 0.6
    noisy = add_noise(x, noise, alpha, sigma)
    output = {"epsilon": noise, "v": velocity(x, noise, alpha, sigma), "sample": x}[prediction]
    got = signal_and_noise(noisy, output, alpha, sigma, prediction)
    np.testing.assert_allclose(got[0], x, atol=1e-6)
    np.testing.assert_allclose(got[1], noise, atol=1e-6)


def test_sampling_times_by_hand():
    assert sampling_times(4, "leading").tolist() == [751, 501, 251, 1]
    assert sampling_times(4, "trailing").tolist() == [999, 749, 499, 249]
    assert sampling_times(4, "linspace").tolist() == [999, 749, 500, 250]
    times = sampling_times(1000, "leading")  # the published code runs past its table here
    assert times[0] == 999 and times[-1] == 0 and (np.diff(times) == -1).all()
    with pytest.raises(ValueError, match="between 1 and 1000"):
        sampling_times(0, "leading")
