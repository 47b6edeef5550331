"""float16, for cards without bfloat16: what leaves its range, and what is done about it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal, relative_error
from micro import MICRO, micro_config
from test_train import one_step, one_step_parts

from mafx import sources
from mafx.models import kernels
from mafx.models.animator import Animator
from mafx.training.checkpoints import Checkpoints
from mafx.training.sharding import make_mesh

TOO_LARGE = 2.0**60  # a scale of the loss


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 1}, jax.devices()[:1])


def decode(networks, latents):
    return networks.decode_latents(latents)


def decode_in_half(networks, latents):
    return networks.autoencoder.decode(latents / networks.config.autoencoder.scaling)


def encode(networks, image):
    return networks.encode_image(image)


def encode_in_half(networks, image):
    return networks.autoencoder.encode(image)[0]


@pytest.mark.parametrize(
    ("half", "channels", "method", "in_half"),
    [("encoder", 3, encode, encode_in_half), ("decoder", 4, decode, decode_in_half)],
)
def test_sums_of_the_autoencoder_may_leave_the_range(micro, rng, half, channels, method, in_half):
    """The norm at the end takes large sums as it takes small ones. In float16 itself they would be infinite."""
    params = jax.tree.map(jnp.asarray, micro.params)
    first = params["autoencoder"][half]["conv_in"]
    params["autoencoder"][half]["conv_in"] = jax.tree.map(lambda x: x * 3e4, first)
    x, networks = normal(rng, 1, 8, 8, channels), Animator(MICRO)
    expected = networks.apply({"params": params}, x, method=method)
    params, x = jax.tree.map(lambda x: x.astype(jnp.float16), (params, x))
    got = networks.apply({"params": params}, x, method=method)
    assert got.dtype == jnp.float16 and relative_error(got, expected) < 1e-2
    assert not np.isfinite(networks.apply({"params": params}, x, method=in_half)).all()


@pytest.mark.parametrize("stage", ["appearance", "temporal"])
def test_a_step_has_the_gradient_of_float32(micro, mesh, stage):
    steps = {
        dtype: one_step(micro_config(stage, batch=8, dtype=dtype), micro.params, mesh)
        for dtype in ("float32", "float16")
    }
    state, metrics = steps["float16"]
    assert metrics["finite"] and metrics["loss_scale"] == 2**16 and int(state.step) == 1
    for name in ("loss", "gradient_norm"):
        assert float(metrics[name]) == pytest.approx(float(steps["float32"][1][name]), rel=0.02)
    assert all(x.dtype == jnp.float32 and np.isfinite(x).all() for x in state.trainable.values())
    assert all(x.dtype == jnp.float16 for x in state.frozen.values())
    assert "loss_scale" not in steps["float32"][1]


def test_a_scale_that_is_too_large_halves_and_teaches_nothing(micro, mesh):
    state, batch, step = one_step_parts(micro_config("temporal", dtype="float16"), micro.params, mesh)
    before = jax.tree.map(np.asarray, (state.trainable, state.optimiser, state.ema))
    state = state._replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(TOO_LARGE)))
    state, metrics = step(state, batch, np.int32(1), np.uint32(0))
    assert metrics["finite"] and not np.isfinite(metrics["gradient_norm"])
    assert int(state.step) == 1 and state.loss_scale.scale == TOO_LARGE / 2
    jax.tree.map(np.testing.assert_array_equal, (state.trainable, state.optimiser, state.ema), before)


def test_a_gradient_that_no_scale_makes_finite_is_refused(micro, mesh):
    state, batch, step = one_step_parts(micro_config("temporal", dtype="float16"), micro.params, mesh)
    name = next(iter(state.trainable))
    broken = dict(state.trainable, **{name: jnp.full_like(state.trainable[name], jnp.nan)})
    state, metrics = step(state._replace(trainable=broken), batch, np.int32(1), np.uint32(0))
    assert not metrics["finite"] and int(state.step) == 0


def test_a_checkpoint_keeps_the_scale(micro, mesh, tmp_path):
    config = micro_config("temporal", dtype="float16")
    state, _, _ = one_step_parts(config, micro.params, mesh)
    changed = state._replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(8), fin_steps=jnp.int32(5)))
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(changed, 0, config)
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path, {})
    restored, _ = checkpoints.restore(state)
    checkpoints.close()
    assert restored.loss_scale == dataclasses.replace(state.loss_scale, scale=8, fin_steps=5)


@pytest.mark.parametrize(
    ("platform", "card", "expected"),
    [
        ("cpu", (0, 0), "float32"),
        ("tpu", (0, 0), "bfloat16"),
        ("gpu", (0, 0), "bfloat16"),  # AMD
        ("gpu", (7, 0), "float16"),  # V100
        ("gpu", (7, 5), "float16"),  # T4
        ("gpu", (8, 0), "bfloat16"),
        ("gpu", (12, 0), "bfloat16"),
    ],
)
def test_the_default_is_what_the_card_has(monkeypatch, platform, card, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(kernels, "device_capability", lambda _: card)
    assert sources.default_dtype() == expected
