import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error

from mafx.models.convolution import MATRICES, convolve_enlarged, winograd, winograd_tile
from mafx.models.kernels import Kernels
from mafx.models.layers import conv3x3

SAME = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("m", [2, 4])
def test_three_taps_by_hand(m):
    """A^T [(G g) * (B^T d)] is the sliding product of three taps with m + 2 inputs."""
    to_input, to_kernel, to_output = map(np.array, MATRICES[m])
    inputs, taps = np.arange(1.0, m + 3), np.array([3.0, -1.0, 2.0])
    wanted = [inputs[i : i + 3] @ taps for i in range(m)]
    np.testing.assert_allclose(to_output @ ((to_kernel @ taps) * (to_input @ inputs)), wanted)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 2)])
def test_winograd_is_the_convolution(rng, m, size):
    """Sides that tiles divide or not."""
    x, kernel = draw(rng, 2, *size, 6), draw(rng, 3, 3, 6, 5)
    wanted = jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **SAME)
    assert relative_error(winograd(x, kernel, m), wanted) < {2: 1e-6, 4: 5e-6}[m]


def test_gradient_is_the_convolution_s(rng):
    x, kernel = draw(rng, 1, 6, 6, 4), draw(rng, 3, 3, 4, 3)

    def direct(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **SAME)

    wanted, got = (
        jax.grad(lambda *args, f=f: jnp.square(f(*args)).sum(), (0, 1))(x, kernel)
        for f in (direct, lambda *args: winograd(*args, 4))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, wanted)


def test_where_winograd_is_chosen():
    def pixels(n, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((1, 1, n, 256), dtype)

    wide, narrow = (jax.ShapeDtypeStruct((3, 3, 256, c), jnp.float32) for c in (256, 4))
    assert [winograd_tile(pixels(n), wide, "cpu") for n in (256, 1024, 4096)] == [0, 2, 4]
    assert winograd_tile(pixels(4096), narrow, "cpu") == 0
    assert winograd_tile(pixels(4096, jnp.bfloat16), wide, "cpu") == 0
    assert winograd_tile(pixels(4096), wide, "gpu") == 0


def test_layers_take_it():
    """A layer of the UNet on a CPU; at stride 2, and elsewhere, the convolution is XLA's."""
    x = jax.ShapeDtypeStruct((1, 2, 32, 64, 128), jnp.float32)

    def convolutions(stride, platform):
        layer = conv3x3(128, "conv", stride=stride, kernels=Kernels(platform))
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        return str(jax.make_jaxpr(layer.apply)(params, x)).count("conv_general_dilated")

    assert [convolutions(1, "cpu"), convolutions(2, "cpu"), convolutions(1, "gpu")] == [0, 1, 1]


@pytest.mark.parametrize("size", [(4, 6), (1, 1), (5, 3)])
def test_enlarged_by_phases(rng, size):
    """What a GPU computes from the small picture is the convolution of the enlarged one, and so are the gradients."""
    x, kernel = draw(rng, 2, *size, 6), draw(rng, 3, 3, 6, 5)

    def enlarged(platform):
        def convolve(x, kernel):
            y = convolve_enlarged(x, kernel, (1, 1), ((1, 1), (1, 1)), Kernels(platform=platform), **SAME)
            return jnp.sin(y).sum(), y

        return jax.grad(convolve, (0, 1), has_aux=True)(x, kernel)

    (gradients, y), (wanted_gradients, wanted) = enlarged("gpu"), enlarged("cpu")
    assert y.shape == (2, 2 * size[0], 2 * size[1], 5)
    assert relative_error(y, wanted) < 1e-6
    for gradient, wanted_gradient in zip(gradients, wanted_gradients, strict=True):
        assert relative_error(gradient, wanted_gradient) < 1e-5
