import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal, relative_error
from rcnn_fixtures import channels_first, channels_last, operations

from mafx.densepose.layers import TransposedConv, conv, double_bilinear, double_nearest, max_pool


def test_doubling_by_hand():
    x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(double_bilinear(x)[0, :, :, 0], [[0, 1, 3, 4]] * 2)
    np.testing.assert_allclose(double_nearest(x)[0, :, :, 0], [[0, 0, 4, 4]] * 2)


def test_a_transposed_convolution_spreads_each_pixel_over_4x4():
    kernel = jnp.arange(16.0).reshape(4, 4, 1, 1)
    x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1].set(1)
    got = TransposedConv(1).apply({"params": {"kernel": kernel, "bias": jnp.zeros(1)}}, x)
    np.testing.assert_array_equal(got[0, 1:5, 1:5, 0], kernel[..., 0, 0])
    assert float(got.sum()) == float(kernel.sum())


@pytest.mark.parametrize(("side", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (7, 2, 1), (3, 1, 12)])
def test_convolutions_are_those_of_xla(rng, side, stride, dilation):
    x, kernel = normal(rng, 2, 9, 8, 3), normal(rng, side, side, 3, 5)
    layer = conv(5, side, "a", stride=stride, dilation=dilation, bias=False)
    got = layer.apply({"params": {"kernel": kernel}}, x)
    padding = [(dilation * (side // 2),) * 2] * 2
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    assert relative_error(got, expected) < 1e-6


def test_layers_are_those_of_the_published_code():
    ops = operations()
    up, pool = channels_last(ops["up/in"]), channels_last(ops["pool/in"])
    kernel = jnp.asarray(ops["deconv/weight"].transpose(2, 3, 0, 1))
    params = {"kernel": kernel, "bias": jnp.asarray(ops["deconv/bias"])}
    deconv = TransposedConv(3).apply({"params": params}, channels_last(ops["deconv/in"]))
    assert relative_error(channels_first(double_bilinear(up))[0], ops["up/x2"]) < 1e-6
    np.testing.assert_array_equal(channels_first(double_nearest(up))[0], ops["up/nearest_x2"])
    np.testing.assert_array_equal(channels_first(max_pool(pool))[0], ops["pool/stem_3x3_s2_p1"])
    assert relative_error(channels_first(deconv)[0], ops["deconv/out"]) < 1e-6
