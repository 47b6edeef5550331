"""The optimiser: its learning rate, and what it keeps in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from micro import micro_config

from mafx.training import optimiser as optimiser_module
from mafx.training.optimiser import (
    MUON_RMS,
    hashed_positions,
    make_optimiser,
    round_stochastically,
    with_bfloat16_state,
)
from mafx.training.sharding import make_mesh, parameter_sharding

UPDATES = 2000


def test_the_cosine_ends_at_its_floor():
    config = micro_config("appearance", steps=110, warmup=10, decay="cosine", lr=1e-3)
    _, rate = make_optimiser(config)
    assert [float(rate(i)) for i in (0, 5, 10)] == pytest.approx([0, 5e-4, 1e-3])
    assert float(rate(60)) == pytest.approx(1e-3 * (0.05 + 0.95 * 0.5))
    assert float(rate(110)) == pytest.approx(5e-5)


def test_rounding_takes_one_of_two_neighbours_and_is_right_on_average():
    x = jnp.asarray([1.001, -1.001, 3e-30, 1.0, 0.0, -7e20, np.inf, -np.inf, np.nan], jnp.float32)
    random = hashed_positions((4096, len(x)), jnp.uint32(5))
    rounded = np.asarray(jax.vmap(round_stochastically, (None, 0))(x, random)).astype(np.float64)
    np.testing.assert_array_equal(rounded[:, 6:], np.tile([np.inf, -np.inf, np.nan], (4096, 1)))
    for value, column in zip(np.asarray(x, np.float64)[:6], rounded.T[:6], strict=True):
        neighbours = np.unique(column)
        spacing = abs(value) * 2.0**-7  # at most, of bfloat16's eight bits
        assert len(neighbours) <= 2 and (abs(neighbours - value) <= spacing).all()
        assert abs(column.mean() - value) <= 0.04 * spacing  # five deviations of the mean
    assert len(np.unique(rounded[:, 0])) == 2 and (rounded[:, 3] == 1).all(), "what bfloat16 has stays"


def test_hashed_positions_look_random():
    """Each bit, and neighbours along each axis, and the same place under another salt."""
    draws = [np.asarray(hashed_positions((256, 16, 8), jnp.uint32(salt))) for salt in (1, 2, 2**31)]
    first = draws[0]
    limit = 5 / first.size**0.5  # five deviations
    assert len(np.unique(first)) == first.size
    for bit in range(32):
        assert abs((first >> bit & 1).mean() - 0.5) < limit
    others = [np.roll(first, 1, axis) for axis in range(3)] + draws[1:]
    for other in others:
        correlation = np.corrcoef(first.ravel().astype(float), other.ravel().astype(float))[0, 1]
        assert abs(correlation) < limit


@functools.partial(jax.jit, static_argnums=0)
def second_moments(optimiser):
    """After updates by gradients that shrink to a tenth: of AdamW's state, the float32 or bfloat16 second moments."""
    scales = jnp.logspace(-4, 0, 4096)

    def update(state, i):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), i), scales.shape)
        with jax.numpy_dtype_promotion("standard"):
            _, state = optimiser.update(noise * scales * 0.1 ** (i / UPDATES), state, scales)
        return state, None

    state, _ = jax.lax.scan(update, optimiser.init(scales), jnp.arange(UPDATES))
    (moments,) = (x for path, x in jax.tree.leaves_with_path(state) if ".nu" in jax.tree_util.keystr(path))
    return moments


def test_second_moments_follow_where_the_nearest_bfloat16_would_stand_still():
    adamw = optax.adamw(1e-3, 0.9, 0.999)
    exact = second_moments(adamw)
    rounded = second_moments(with_bfloat16_state(adamw))
    assert rounded.dtype == jnp.bfloat16

    def round_to_nearest(updates, state, params):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state)
        updates, wide = adamw.update(updates, wide, params)
        return updates, jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, wide)

    def init(params):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, adamw.init(params))

    nearest = second_moments(optax.GradientTransformation(init, round_to_nearest))
    ratio, other = (np.asarray(x, np.float64) / np.asarray(exact) for x in (rounded, nearest))
    assert abs(ratio.mean() - 1) < 0.01 and ratio.std() < 0.1
    assert np.median(other) > 2, "rounding to the nearest is good enough: the random numbers are not needed"


def fit_line(optimiser):
    """Losses of a regression with noisy gradients."""
    rng = np.random.default_rng(0)
    truth = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)

    def loss(weights, x, noise):
        return jnp.square(x @ (weights - truth) + noise).mean()

    @jax.jit
    def update(weights, state, key):
        x, noise = jax.random.normal(key, (16, 64)), jax.random.normal(key, (16, 8))
        value, gradient = jax.value_and_grad(loss)(weights, x, noise)
        with jax.numpy_dtype_promotion("standard"):
            step, state = optimiser.update(gradient, state, weights)
        return optax.apply_updates(weights, step), state, value

    weights, losses = jnp.zeros_like(truth), []
    state = optimiser.init(weights)
    for i in range(600):
        weights, state, value = update(weights, state, jax.random.key(i))
        losses.append(float(value))
    return np.asarray(losses)


def test_moments_in_bfloat16_train_as_those_in_float32_do():
    adamw = optax.adamw(1e-2, 0.9, 0.999)
    exact, rounded = fit_line(adamw), fit_line(with_bfloat16_state(adamw))
    assert exact[-50:].mean() < 0.05 * exact[0], "there is nothing to compare: it does not learn"
    np.testing.assert_allclose(rounded[1:], exact[1:], rtol=0.05)
    assert rounded[-50:].mean() == pytest.approx(exact[-50:].mean(), rel=0.01)


def test_arrays_are_kept_in_the_dtypes_of_the_config():
    params = {"a": jnp.ones((4, 4))}

    def floats(**changes):
        state = make_optimiser(micro_config("appearance", **changes))[0].init(params)
        return sorted(str(x.dtype) for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))

    assert floats() == ["float32"] * 2
    assert floats(moments_dtype="bfloat16") == ["bfloat16"] * 2


def test_rounding_is_the_same_on_any_mesh(rng):
    optimiser = with_bfloat16_state(optax.adamw(1e-2))
    x = {"kernel": jnp.asarray(rng.normal(size=(16, 64)), jnp.float32), "bias": jnp.ones(3)}
    states = []
    for fsdp in (1, 4):
        mesh = make_mesh({"fsdp": fsdp}, jax.devices()[:fsdp])
        sharding = parameter_sharding(mesh, x, 64)
        params = jax.device_put(x, sharding)
        state = optimiser.init(params)
        for _ in range(3):
            with jax.numpy_dtype_promotion("standard"):
                _, state = jax.jit(optimiser.update)(params, state, params)
        states.append(jax.device_get(state))
    jax.tree.map(np.testing.assert_array_equal, *states)


# -- Muon


def first_updates(name, params, gradients):
    """What the first step of an optimiser adds to parameters, by their names."""
    optimiser, _ = make_optimiser(micro_config("appearance", optimiser=name, lr=0.5, **STILL))
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimiser.update(gradients, optimiser.init(params), params)
    return updates


STILL = {"warmup": 0, "decay": "constant", "clip": 1e9, "weight_decay": 0.0}


@pytest.mark.parametrize("shape", [(6, 4), (4, 9), (3, 3, 2, 5)])
def test_muon_turns_the_gradient_of_a_kernel_into_an_orthogonal_matrix(rng, shape):
    params = {"layer/kernel": jnp.zeros(shape)}
    gradient = rng.normal(size=shape).astype(np.float32) ** 3  # of very different singular values
    update = first_updates("muon", params, {"layer/kernel": jnp.asarray(gradient)})["layer/kernel"]
    matrix = np.asarray(update).reshape(-1, shape[-1])
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert singular.max() / singular.min() < 2 < np.linalg.cond(gradient.reshape(matrix.shape))
    assert np.sqrt(np.square(matrix).mean()) == pytest.approx(0.5 * MUON_RMS, rel=0.3)
    assert (matrix * gradient.reshape(matrix.shape)).sum() < 0, "downhill"


def test_muon_leaves_everything_else_to_adamw(rng):
    shapes = {"layer/bias": (4,), "norm/scale": (4,), "text/embedding": (5, 4), "low_rank/layer/kernel/a": (6, 2)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    gradients = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    updates, config = first_updates("muon", params, gradients), micro_config("appearance")
    adamw = optax.nadamw(0.5, *config.betas, weight_decay=0.0)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = adamw.update(gradients, adamw.init(params), params)
    for name in shapes:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5, err_msg=name)


def test_arrays_of_one_shape_are_updated_as_each_alone(rng, monkeypatch):
    """Kernels of one shape and of another, and two kinds of one shape, over two steps."""
    shapes = {"a/kernel": (4, 6), "b/kernel": (4, 6), "c/kernel": (6, 4), "d/bias": (6,), "e/scale": (6,)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    gradients = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params) for _ in range(2)]

    def updates():
        optimiser, _ = make_optimiser(
            micro_config("appearance", optimiser="muon", lr=0.5, **STILL | {"weight_decay": 0.1})
        )
        state, found = optimiser.init(params), []
        with jax.numpy_dtype_promotion("standard"):
            for gradient in gradients:
                update, state = optimiser.update(gradient, state, params)
                found.append(update)
        return found, state

    grouped, state = updates()
    monkeypatch.setattr(optimiser_module, "GROUPED_ELEMENTS", 0)
    alone, _ = updates()
    momenta = {x.shape for x in jax.tree.leaves(state)}
    assert (2, 4, 6) in momenta and (1, 6, 4) in momenta, "nothing was grouped"
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), grouped, alone)
