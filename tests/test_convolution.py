import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import relative_error

from mafx.models import convolution as module
from mafx.models.convolution import MATRICES, choose, convolve, winograd
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
    direct = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), **SAME)  # noqa: E731
    wanted, got = (
        jax.grad(lambda *args, f=f: jnp.square(f(*args)).sum(), (0, 1))(x, kernel)
        for f in (direct, lambda *args: winograd(*args, 4))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, wanted)


def test_where_it_is_chosen():
    x = lambda pixels, dtype=jnp.float32: jax.ShapeDtypeStruct((1, 1, pixels, 256), dtype)  # noqa: E731
    kernel = lambda *channels: jax.ShapeDtypeStruct((3, 3, *channels), jnp.float32)  # noqa: E731
    wide = kernel(256, 256)
    assert [choose("cpu", x(n), wide) for n in (256, 1024, 4096)] == ["direct", "winograd2", "winograd4"]
    assert (
        choose("cpu", x(4096), kernel(256, 4))
        == choose("cpu", x(4096, jnp.bfloat16), wide)
        == choose("gpu", x(4096), wide)
        == "direct"
    )


def test_layers_take_it(rng, monkeypatch):
    """A layer of the UNet, also at stride 2, where the definition stays."""
    calls = []
    monkeypatch.setattr(module, "LEAST_CHANNELS", 4)
    monkeypatch.setattr(module, "winograd", lambda *args: (calls.append(args[2]), winograd(*args))[1])
    x = draw(rng, 1, 2, 32, 32, 4)  # frames
    for stride, found in ((1, [4]), (2, [4])):
        layer = conv3x3(5, "conv", stride=stride)
        params = layer.init(jax.random.key(0), x)
        calls.clear() if stride == 1 else None
        got = layer.apply(params, x)
        assert calls == found
    assert got.shape == (1, 2, 16, 16, 5)
    plain = convolve(x[0], jnp.ones((3, 3, 4, 5)), (2, 2), ((1, 1), (1, 1)), **SAME)
    assert plain.shape == (2, 16, 16, 5)
