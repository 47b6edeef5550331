import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.few_steps import get_config
from mafx.diffusion.losses import (
    CLEAN,
    anchored_shares,
    corrupt,
    earlier_times,
    guided_target,
    loss_weights,
    pseudo_huber,
)
from mafx.diffusion.samplers import guide, make_sampler, sampler_step
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


def test_every_other_example_has_a_clean_target():
    schedule, latents = Schedule(), jnp.zeros((400, 1, 1, 1, 1))
    for done in (0.0, 0.5, 0.99):
        shares = anchored_shares(len(latents), jnp.asarray(done), 4)
        times = corrupt(jax.random.key(0), latents, schedule, share=shares).times
        earlier = np.asarray(earlier_times(times, jnp.asarray(done), 4, schedule.steps))
        assert (earlier[1::2] == CLEAN).all()
        assert (earlier[::2] == CLEAN).mean() == pytest.approx(float(shares[1]), abs=0.1)
    assert anchored_shares(1, jnp.asarray(0.99), 4).tolist() == [1.0], "an example alone is tuned"


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

    target = consistent_target(teach, corrupted, earlier, schedule)
    assert np.isfinite(target).all()
    np.testing.assert_allclose(target, corrupted.target, atol=2e-3)


def test_the_target_is_the_teachers_where_it_errs():
    schedule = Schedule(prediction="sample", zero_terminal_snr=True)
    latents = jnp.ones((4, 1, 2, 2, 3))
    corrupted = corrupt(jax.random.key(0), latents, schedule)
    earlier = jnp.array([CLEAN, 0, 5, 100])
    target = consistent_target(lambda noisy, t: 7 * jnp.ones_like(noisy), corrupted, earlier, schedule)
    np.testing.assert_array_equal(target[:, 0, 0, 0, 0], [1, 7, 7, 7])


@pytest.mark.parametrize("scale", [1.0, 1.5, 7.5])
def test_a_guided_network_comes_to_rest_at_the_answer_of_guidance(rng, scale):
    unconditional, target = rng.normal(size=(2, 5))
    conditional = np.zeros(5)
    for _ in range(200):
        conditional = guided_target(target, unconditional, conditional, scale)
    np.testing.assert_allclose(conditional, guide(unconditional, target, scale), rtol=1e-6)


def test_small_errors_count_by_their_squares_and_large_ones_by_themselves():
    small, large = pseudo_huber(jnp.array([1e-6, 4e-6])), pseudo_huber(jnp.array([100.0, 400.0]))
    assert float(small[1] / small[0]) == pytest.approx(4, rel=0.01)
    assert float(large[1] / large[0]) == pytest.approx(2, rel=0.01)


# -- Six points on a circle, learnt by a network of three layers


def circle(key):
    place, spread = jax.random.split(key)
    angles = jax.random.randint(place, (256,), 0, 6) * (np.pi / 3)
    points = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1) + 0.05 * jax.random.normal(spread, (256, 2))
    return points[:, None, None, None]


def answer(params, x, t):
    turns = t[:, None] / 1000 * np.geomspace(1, 1000, 16)
    h = jnp.concatenate([x[:, 0, 0, 0], jnp.sin(turns), jnp.cos(turns)], -1).astype(jnp.float32)
    for kernel in params[:-1]:
        h = jax.nn.silu(h @ kernel)
    return (h @ params[-1])[:, None, None, None]


def fit(params, schedule, steps, halvings):
    """Train with the weights and the targets of a run, and return the averaged parameters."""
    optimiser = optax.adam(2e-3 if halvings == 0 else 3e-4)

    def loss(params, key, done):
        data_key, noise_key = jax.random.split(key)
        latents = circle(data_key)
        corrupted = corrupt(noise_key, latents, schedule, share=anchored_shares(len(latents), done, halvings))
        earlier = earlier_times(corrupted.times, done, halvings, schedule.steps)
        teach = functools.partial(answer, jax.lax.stop_gradient(params))
        target = consistent_target(teach, corrupted, earlier, schedule)
        error = jnp.square(answer(params, corrupted.noisy, corrupted.times) - target).mean((1, 2, 3, 4))
        error = loss_weights(corrupted.times, schedule, as_v=True) * error
        return (pseudo_huber(error) if halvings else error).mean()

    def step(carry, i):
        params, averages, state = carry
        gradient = jax.grad(loss)(params, jax.random.fold_in(jax.random.key(halvings), i), i / steps)
        update, state = optimiser.update(gradient, state)
        params = optax.apply_updates(params, update)
        averages = jax.tree.map(lambda a, x: 0.99 * a + 0.01 * x, averages, params)
        return (params, averages, state), None

    carry = params, params, optimiser.init(params)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0][1])(carry)


def distance_to_the_points(params, schedule, steps):
    """Mean distance of samples to the nearest point, and the share of the point that has fewest."""
    table = make_sampler("ddim", steps, schedule)
    x = jax.random.normal(jax.random.key(9), (1000, 1, 1, 1, 2))
    for part, _ in table.parts(1):
        row = {name: column[0] for name, column in part.items()}
        output = answer(params, x, jnp.full(1000, row["time"]))
        x, _ = sampler_step(row, x, output, x, jnp.zeros_like(x), schedule.prediction)
    turns = np.arange(6) * np.pi / 3
    distances = np.linalg.norm(np.asarray(x)[:, 0, 0, 0, None] - np.stack([np.cos(turns), np.sin(turns)], -1), axis=-1)
    return distances.min(1).mean(), np.bincount(distances.argmin(1), minlength=6).min() / 1000


@jax.numpy_rank_promotion("allow")
@jax.numpy_dtype_promotion("standard")
def test_a_tuned_network_says_in_four_steps_what_it_said_in_many():
    schedule = Schedule(prediction="sample", zero_terminal_snr=True)
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = [(34, 96), (96, 96), (96, 96), (96, 2)]
    params = [jax.random.normal(k, size) * (2 / size[0]) ** 0.5 for k, size in zip(keys, sizes, strict=True)]
    params = fit(params, schedule, 2500, 0)
    many, few = (distance_to_the_points(params, schedule, steps)[0] for steps in (25, 4))
    assert few > 1.5 * many, "few steps end between the points"
    tuned, rarest = distance_to_the_points(fit(params, schedule, 1500, 4), schedule, 4)
    assert tuned < 0.6 * few and rarest > 0.1, "all six are still drawn"


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


def test_guidance_in_the_answers_needs_answers_without_the_reference():
    config = get_config("puppets")
    config.loss.guidance, config.loss.reference_dropout = 1.5, 0.0
    with pytest.raises(InputError, match="1, or more with config.loss.reference_dropout, found 1.5"):
        check_config(config)
    config.loss.reference_dropout = 0.1
    check_config(config)


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="few_steps:puppets; found 'nothing'"):
        get_config("nothing")
