import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal, relative_error

from mafx.models.kernels import Kernels
from mafx.models.temporal import TemporalConfig, TemporalTransformer, frame_attention, frame_sinusoid


def test_sinusoid_by_hand():
    np.testing.assert_allclose(
        frame_sinusoid(2, 4), [[0, 1, 0, 1], [np.sin(1), np.cos(1), np.sin(0.01), np.cos(0.01)]], rtol=1e-6
    )


def make(rng, frames=5):
    x = jnp.asarray(rng.normal(size=(2, frames, 3, 2, 32)), jnp.float32)
    module = TemporalTransformer(TemporalConfig(heads=2, groups=8))
    return module, module.init(jax.random.key(0), x), x


def test_attends_along_frames_only(rng):
    """A change at one position reaches all frames there; elsewhere only through the entry norm, which is per frame."""
    module, params, x = make(rng)
    params["params"]["proj_out"]["kernel"] = jnp.eye(32)
    y = module.apply(params, x)
    one_frame = x.at[0, 2].set(0)
    changed = jnp.abs(module.apply(params, one_frame) - y).max((2, 3, 4))
    assert (changed[0] > 1e-4).all()
    assert (changed[1] == 0).all()
    swapped = module.apply(params, x[:, :, ::-1])[:, :, ::-1]  # positions in space mean nothing to it
    np.testing.assert_allclose(swapped, y, atol=1e-5)


def test_order_of_frames_matters_and_positions_get_no_gradient(rng):
    module, params, x = make(rng)
    params["params"]["proj_out"]["kernel"] = jnp.eye(32)
    assert np.abs(module.apply(params, x[:, ::-1])[:, ::-1] - module.apply(params, x)).max() > 1e-3
    grads = jax.grad(lambda p: jnp.square(module.apply(p, x)).sum())(params)["params"]["transformer_blocks_0"]
    assert all((grads[f"attention_blocks_{i}"]["pe"] == 0).all() for i in range(2))
    assert np.abs(grads["attention_blocks_0"]["to_q"]["kernel"]).max() > 0


@pytest.mark.parametrize(("frames", "positions", "width"), [(16, 10, 40), (5, 7, 12), (24, 3, 160)])
def test_fused_frame_attention_equals_that_by_position(rng, frames, positions, width):
    """Blocks that are not full along frames, positions and channels."""
    q, k, v = (normal(rng, 2, frames, positions, 2, width).astype(jnp.bfloat16) for _ in range(3))
    exact = frame_attention(*(x.astype(jnp.float32) for x in (q, k, v)))
    card = Kernels("gpu", capability=(8, 0), devices=1, interpret=True)
    attend = jax.jit(frame_attention, static_argnums=3)
    assert "pallas_call" in str(jax.make_jaxpr(attend, static_argnums=3)(q, k, v, card))
    assert relative_error(attend(q, k, v, card).astype(jnp.float32), exact) < 2**-8


@pytest.mark.parametrize(
    "kernels",
    [
        Kernels("gpu", capability=(7, 5), devices=1),  # a T4
        Kernels("gpu", capability=(8, 0), devices=1, gradient=True),
        Kernels("gpu", capability=(8, 0), devices=8),  # and no mesh
        Kernels("tpu", devices=1),
    ],
)
def test_frame_attention_is_not_fused(rng, kernels):
    q = normal(rng, 1, 4, 3, 2, 16).astype(jnp.bfloat16)
    assert "pallas_call" not in str(jax.make_jaxpr(frame_attention, static_argnums=3)(q, q, q, kernels))
