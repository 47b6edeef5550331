import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from mafx.training.flops import count_flops, matmul_rate


def flops(f, *shapes):
    return count_flops(jax.make_jaxpr(f)(*(jnp.ones(shape) for shape in shapes)).jaxpr)


def test_products_and_loops():
    assert flops(lambda a, b: a @ b, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert flops(jax.vmap(lambda a, b: a @ b), (7, 3, 4), (7, 4, 5)) == 7 * 2 * 3 * 4 * 5
    assert flops(lambda a: jax.lax.scan(lambda x, _: (x @ x, None), a, length=6)[0], (4, 4)) == 6 * 2 * 4**3
    assert flops(jax.jit(jax.checkpoint(lambda a: jnp.tanh(a @ a))), (4, 4)) == 2 * 4**3


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_and_their_gradients(stride):
    conv = nn.Conv(5, (3, 3), strides=stride, padding=1)
    params = conv.init(jax.random.key(0), jnp.ones((2, 8, 8, 4)))
    forward = 2 * 2 * (8 // stride) ** 2 * 9 * 4 * 5
    assert flops(lambda x: conv.apply(params, x), (2, 8, 8, 4)) == forward
    both = jax.make_jaxpr(jax.grad(lambda p, x: jnp.square(conv.apply(p, x)).sum(), (0, 1)))(params, jnp.ones((2, 8, 8, 4)))
    assert 2.8 * forward < count_flops(both.jaxpr) < 3.6 * forward


def test_rate_is_plausible():
    assert 1e8 < matmul_rate(jnp.float32) < 1e16
