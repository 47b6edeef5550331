import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mafx.models.layers import (
    Downsample,
    GroupNorm,
    LayerNorm,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    timestep_embedding,
)


def test_timestep_embedding_by_hand():
    got = timestep_embedding(jnp.array([0, 3]), 4)
    np.testing.assert_allclose(got, [[1, 1, 0, 0], [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]], atol=1e-6)


def test_time_embedding_is_float32_whatever_the_parameters(rng):
    module = TimeEmbedding(8, 16)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), module.init(jax.random.key(0), jnp.zeros(1)))
    assert module.apply(params, jnp.array([5])).dtype == jnp.float32


@pytest.mark.parametrize("batch_axes", [1, 2])
def test_group_norm_statistics(rng, batch_axes):
    """Over frames, rows, columns and the group's channels, or over each frame's."""
    x = rng.normal(3, 2, (2, 3, 4, 5, 8)).astype(np.float32)
    module = GroupNorm(groups=2, batch_axes=batch_axes)
    got = module.apply(module.init(jax.random.key(0), x), x)
    groups = x.reshape(2, 3, 4, 5, 2, 4)
    axes = (1, 2, 3, 5) if batch_axes == 1 else (2, 3, 5)
    wanted = (groups - groups.mean(axes, keepdims=True)) / np.sqrt(groups.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, wanted.reshape(x.shape), atol=1e-5)


def test_group_norm_says_what_does_not_divide():
    with pytest.raises(ValueError, match="10 channels do not divide into 4 groups"):
        GroupNorm(groups=4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 10)))


def test_norms_keep_small_variances_and_the_dtype():
    x = jnp.array([[1e-3, -1e-3]], jnp.bfloat16)
    module = LayerNorm()
    params = module.init(jax.random.key(0), x)
    got = module.apply(params, x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), [[0.3015, -0.3015]], rtol=1e-2)  # 1e-3 / sqrt(1e-6 + 1e-5)


def test_downsample_pads_both_sides_or_the_high_one():
    x = jnp.ones((1, 4, 4, 1))
    for padding, corners in (((1, 1), (4.0, 9.0)), ((0, 1), (9.0, 4.0))):
        module = Downsample(padding)
        params = jax.tree.map(jnp.ones_like, module.init(jax.random.key(0), x))
        got = module.apply(params, x)[0, ..., 0] - 1  # minus the bias
        assert got.shape == (2, 2)
        assert (got[0, 0], got[1, 1]) == corners


def test_upsample_picks_pixels_as_pytorch_does():
    """floor(i * in / out): for 3 -> 5 the rows 0 0 1 1 2."""
    x = jnp.broadcast_to(jnp.arange(3.0)[None, :, None, None], (1, 3, 2, 1))
    module = Upsample()
    params = module.init(jax.random.key(0), x)
    identity = jax.tree.map(jnp.zeros_like, params)
    identity["params"]["conv"]["kernel"] = identity["params"]["conv"]["kernel"].at[1, 1].set(1)
    np.testing.assert_array_equal(module.apply(identity, x, (5, 3))[0, :, 0, 0], [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(module.apply(identity, x)[0, :, 0, 0], [0, 0, 1, 1, 2, 2])


def test_residual_block_treats_video_as_frames_but_for_its_norms(rng):
    """With norms per frame a video equals its frames one by one; with norms over the clip it does not."""
    x, temb = (
        jnp.asarray(rng.normal(size=(1, 3, 4, 4, 8)), jnp.float32),
        jnp.asarray(rng.normal(size=(1, 6)), jnp.float32),
    )
    alone, together = (ResidualBlock(16, groups=4, batch_axes=axes) for axes in (2, 1))
    params = alone.init(jax.random.key(0), x, temb)
    frames = jnp.concatenate([alone.apply(params, x[:, i : i + 1], temb) for i in range(3)], axis=1)
    np.testing.assert_allclose(alone.apply(params, x, temb), frames, atol=1e-5)
    assert np.abs(together.apply(params, x, temb) - frames).max() > 1e-2
