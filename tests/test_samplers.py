import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mafx.diffusion.samplers import SAMPLERS, guide, make_sampler, sampler_step
from mafx.diffusion.schedule import Schedule, velocity


def row(table, i):
    ((columns, _),) = table.parts(1000)
    return {name: column[i] for name, column in columns.items()}


def sample(table, x, model, prediction="epsilon", noise=None):
    previous = jnp.zeros_like(x)
    for i, t in enumerate(table.times):
        fresh = previous if noise is None else noise[i]
        x, previous = sampler_step(row(table, i), x, model(x, t), previous, fresh, prediction)
        yield x, previous


@pytest.mark.parametrize("steps", [25, 20, 7])
def test_ddim_equals_the_published_sampler(published, steps):
    x = load_file(published / "expected" / "scheduler.safetensors")
    x = {name.removeprefix(f"s{steps}."): value for name, value in x.items()}
    table = make_sampler("ddim", steps, Schedule())
    np.testing.assert_array_equal(table.times, x["timesteps"])
    outputs = dict(zip(table.times.tolist(), x["model_outputs"], strict=True))
    for i, (got, clean) in enumerate(
        sample(table, jnp.asarray(x["sample0"]), lambda x, t: jnp.asarray(outputs[int(t)]))
    ):
        for name, value in (("prev_samples", got), ("pred_original_samples", clean)):
            error = np.linalg.norm(value - x[name][i]) / np.linalg.norm(x[name][i])
            assert error < 1e-6, f"{name} of step {i}: {error}"


def gaussian(mean, deviation, schedule):
    """The exact noise prediction where the data is normal, for which the flow has a closed form."""

    def model(x, t):
        alpha, sigma = schedule.alphas[t], schedule.sigmas[t]
        variance = alpha**2 * deviation**2 + sigma**2
        return sigma * (x - alpha * mean) / variance

    def flow(x, start, end):
        def moments(t):
            return schedule.alphas[t] * mean, np.sqrt(schedule.alphas[t] ** 2 * deviation**2 + schedule.sigmas[t] ** 2)

        (m0, s0), (m1, s1) = moments(start), moments(end)
        return m1 + s1 * (x - m0) / s0

    return model, flow


def errors(name, counts, prediction="epsilon"):
    schedule = Schedule(prediction=prediction)
    model, flow = gaussian(0.7, 0.5, schedule)
    x = jnp.linspace(-2, 2, 9)

    def output(x, t):
        eps, alpha, sigma = model(x, t), schedule.alphas[t], schedule.sigmas[t]
        return eps if prediction == "epsilon" else velocity((x - sigma * eps) / alpha, eps, alpha, sigma)

    found = []
    for n in counts:
        table = make_sampler(name, n, schedule)
        states = [x, *(state for state, _ in sample(table, x, output, prediction))]
        half = int(np.argmax(table.times <= 510))
        found.append(float(jnp.abs(states[half] - flow(x, table.times[0], table.times[half])).max()))
    return found


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2)])
def test_samplers_converge_to_a_known_flow_in_their_order(name, order, prediction):
    """Half way: towards the end steps are equal in time, but ever longer in log-SNR."""
    coarse, fine = errors(name, (20, 80), prediction)
    assert fine < 0.02
    assert coarse / fine > 0.75 * 4**order


def test_eta_one_keeps_the_marginal_variance():
    """From pure noise on data that is a point at zero, every step of full eta must keep the spread at sigma."""
    schedule = Schedule()
    table = make_sampler("ddim", 50, schedule, eta=1.0)
    x = jax.random.normal(jax.random.key(0), (20000,)) * table.sigma[0]
    noise = jax.random.normal(jax.random.key(1), (50, 20000))

    def model(x, t):  # x_0 is zero
        return x / schedule.sigmas[t].astype(np.float32)

    spreads = [float(x.std()) for x, _ in sample(table, x, model, noise=noise)]
    np.testing.assert_allclose(spreads[:-1], table.sigma[1:], rtol=0.03)
    assert spreads[-1] == pytest.approx(0, abs=1e-6)


def test_first_update_by_hand():
    table = make_sampler("ddim", 2, Schedule())
    abar = Schedule().abar
    assert table.times.tolist() == [501, 1]
    got, clean = sampler_step(
        row(table, 0), jnp.float32(1.0), jnp.float32(0.5), jnp.float32(0.0), jnp.float32(0.0), "epsilon"
    )
    x0 = (1 - 0.5 * np.sqrt(1 - abar[501])) / np.sqrt(abar[501])
    assert float(clean) == pytest.approx(x0, rel=1e-5)
    assert float(got) == pytest.approx(np.sqrt(abar[1]) * x0 + np.sqrt(1 - abar[1]) * 0.5, rel=1e-5)


@pytest.mark.parametrize(("steps", "lengths"), [(1, [1]), (8, [8]), (9, [5, 5]), (25, [7, 7, 7, 7])])
def test_parts_have_one_length_and_all_steps(steps, lengths):
    table = make_sampler("ddim", steps, Schedule())
    parts = list(table.parts(8))
    assert [len(rows["time"]) for rows, _ in parts] == lengths
    assert [start for _, start in parts] == list(range(0, steps, lengths[0]))
    numbers = np.concatenate([rows["number"] for rows, _ in parts])
    assert numbers[:steps].tolist() == list(range(steps)) and set(numbers[steps:]) <= {steps - 1}
    np.testing.assert_array_equal(np.concatenate([rows["time"] for rows, _ in parts])[:steps], table.times)


@pytest.mark.parametrize(("name", "most"), [("ddim", 1000), ("euler", 999), ("dpmpp_2m", 999)])
def test_any_number_of_steps(name, most):
    for steps in (1, 2, most):
        table = make_sampler(name, steps, Schedule())
        assert len(table.times) == steps == len(set(table.times))
        assert all(
            np.isfinite(column).all() for column in (table.clean, table.noise, table.momentum, table.fresh_noise)
        )
        assert (table.clean[-1], table.noise[-1], table.momentum[-1]) == (1, 0, 0)  # ends at the clean latents
    with pytest.raises(ValueError, match="sampling steps, found"):
        make_sampler(name, most + 1, Schedule())


def test_zero_signal_is_finite():
    schedule = Schedule(zero_terminal_snr=True, prediction="v")
    assert np.isfinite(make_sampler("dpmpp_2m", 8, schedule).momentum).all()


def test_guidance():
    assert guide(jnp.float32(1.0), jnp.float32(3.0), 1.0) == 3
    assert guide(jnp.float32(1.0), jnp.float32(3.0), 7.5) == 16


def test_unknown_names():
    with pytest.raises(ValueError, match="'plms' is unknown, expected one of consistency, ddim"):
        make_sampler("plms", 5, Schedule())
    with pytest.raises(ValueError, match="belongs to the ddim sampler"):
        make_sampler("euler", 5, Schedule(), eta=0.5)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_with_zero_terminal_snr_samplers_begin_in_pure_noise(name, steps):
    """One step is the network's answer to pure noise. More steps with the perfect answer end where they should."""
    schedule = Schedule(zero_terminal_snr=True, prediction="v")
    table = make_sampler(name, steps, schedule)
    assert table.times[0] == 999 and table.alpha[0] == 0
    clean, x, previous = jnp.full((1,), 0.7), jnp.full((1,), -1.3), jnp.zeros((1,))
    for i in range(steps):
        now = row(table, i)
        output = (now["alpha"] * x - clean) / now["sigma"]  # v of the clean latent
        x, previous = sampler_step(now, x, output, previous, jnp.zeros((1,)), "v")
    np.testing.assert_allclose(x, clean, atol=1e-5)
