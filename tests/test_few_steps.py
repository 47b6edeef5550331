import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.few_steps import get_config
from mafx.diffusion.losses import CLEAN, corrupt, earlier_times, pseudo_huber
from mafx.diffusion.samplers import make_sampler
from mafx.diffusion.schedule import PREDICTIONS, Schedule, answer_for, signal_and_noise
from mafx.errors import InputError
from mafx.training.config import check_config
from mafx.training.step import consistent_target

SCHEDULES = [
    Schedule(prediction=prediction, zero_terminal_snr=zero)
    for prediction in PREDICTIONS
    for zero in (False, True)
    if not (zero and prediction == "epsilon")
]


def test_earlier_times_come_closer():
    times = np.arange(1000)
    for halved, done in enumerate((0.0, 0.3, 0.6, 0.99)):
        earlier = np.asarray(earlier_times(jnp.asarray(times), jnp.asarray(done), 3, 1000))
        np.testing.assert_array_equal(earlier, np.maximum(times - np.ceil(1000 / 2**halved), CLEAN))
        assert (earlier == CLEAN).mean() == pytest.approx(0.5**halved, abs=2e-3)  # all at first: plain diffusion


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_answer_for_a_clean_part_splits_into_it(prediction):
    x, clean = np.random.default_rng(0).normal(size=(2, 5))
    answer = answer_for(x, clean, 0.6, 0.8, prediction)
    found, noise = signal_and_noise(x, answer, 0.6, 0.8, prediction)
    np.testing.assert_allclose(found, clean)
    np.testing.assert_allclose(0.6 * clean + 0.8 * noise, x)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("halvings", [0, 2, 7])
def test_a_network_that_knows_the_truth_is_consistent(schedule, halvings):
    """Its answer at any earlier time leads to the target of diffusion, also at the time of pure noise."""
    latents = jax.random.normal(jax.random.key(1), (64, 2, 3, 3, 4))
    corrupted = corrupt(jax.random.key(0), latents, schedule, time_shift=50.0)
    assert int(corrupted.times.max()) == schedule.steps - 1  # late times are drawn often
    earlier = earlier_times(corrupted.times, jnp.asarray(0.999), halvings, schedule.steps)
    assert (np.asarray(earlier) == CLEAN).all() == (halvings == 0)

    def teach(noisy, t):
        alpha, sigma = (
            jnp.asarray(x, jnp.float32)[t][:, None, None, None, None] for x in (schedule.alphas, schedule.sigmas)
        )
        return answer_for(noisy, latents, alpha, sigma, schedule.prediction)

    target = consistent_target(teach, latents, corrupted, earlier, schedule)
    assert np.isfinite(target).all()
    np.testing.assert_allclose(target, corrupted.target, atol=2e-3)


def test_the_target_is_the_teachers_where_it_errs():
    schedule = Schedule(prediction="sample", zero_terminal_snr=True)
    latents = jnp.ones((4, 1, 2, 2, 3))
    corrupted = corrupt(jax.random.key(0), latents, schedule)
    earlier = jnp.array([CLEAN, 0, 5, 100])
    target = consistent_target(lambda noisy, t: 7 * jnp.ones_like(noisy), latents, corrupted, earlier, schedule)
    np.testing.assert_array_equal(target[:, 0, 0, 0, 0], [1, 7, 7, 7])


def test_small_errors_count_by_their_squares_and_large_ones_by_themselves():
    small, large = pseudo_huber(jnp.array([1e-8, 4e-8])), pseudo_huber(jnp.array([1.0, 4.0]))
    assert float(small[1] / small[0]) == pytest.approx(4, rel=0.01)
    assert float(large[1] / large[0]) == pytest.approx(2, rel=0.01)


def test_consistency_sampling_noises_every_answer_anew():
    schedule = Schedule(prediction="sample", zero_terminal_snr=True)
    ours, ddim = (make_sampler(name, 4, schedule) for name in ("consistency", "ddim"))
    np.testing.assert_array_equal(ours.times, ddim.times)
    np.testing.assert_array_equal(ours.fresh_noise, ddim.noise)
    np.testing.assert_allclose(ours.clean[:-1], schedule.alphas[ours.times[1:]], rtol=1e-6)
    assert not ours.noise.any() and ours.fresh_noise[-1] == 0 and ours.clean[-1] == 1


@pytest.mark.parametrize("name", ["puppets", "tiktok"])
def test_its_configs_are_complete(name):
    check_config(get_config(name))


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="few_steps:puppets; found 'nothing'"):
        get_config("nothing")
