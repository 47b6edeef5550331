import time

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.extend.core import Primitive
from jax.sharding import AxisType, PartitionSpec

from mafx.flops import CUDNN_PRODUCTS, count_flops, matmul_rate
from mafx.models.attention import attention
from mafx.models.kernels import Kernels


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
    both = jax.make_jaxpr(jax.grad(lambda p, x: jnp.square(conv.apply(p, x)).sum(), (0, 1)))(
        params, jnp.ones((2, 8, 8, 4))
    )
    assert 2.8 * forward < count_flops(both.jaxpr) < 3.6 * forward


# Of the gradient with its forward pass: plain attention does 2 + 4 products. Splash attention computes the scores once
# more, and, being checkpointed, its forward pass twice.
PRODUCTS = {"plain": 6, "splash": 11}


@pytest.mark.parametrize("kernel", PRODUCTS)
def test_attention_kernels_count_as_the_definition_does(kernel):
    q, own, shared = (jnp.ones((2, 3, n, 4, 64), jnp.bfloat16) for n in (512, 512, 256))
    products = 2 * 2 * 3 * 512 * 768 * 4 * 64  # a multiplication with its addition counts two

    def loss(q, own, shared):
        out = attention(q, (own, own), (shared[:, 0], shared[:, 0]), kernels=Kernels(attention=kernel))
        return out.astype(jnp.float32).sum()

    assert count_flops(jax.make_jaxpr(loss)(q, own, shared).jaxpr) == 2 * products
    gradient = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, own, shared)
    assert count_flops(gradient.jaxpr) == pytest.approx(PRODUCTS[kernel] * products, rel=0.01)


def test_kernels_of_ours_count_what_they_are_for():
    """Not what their blocks compute in vain: 20 channels of a head are padded to 32, 77 keys to 96."""
    q, text = jnp.ones((1, 2, 64, 4, 20), jnp.bfloat16), jnp.ones((1, 77, 4, 20), jnp.bfloat16)

    def attend(q, text):
        return attention(q, None, (text, text), kernels=Kernels(attention="two_part"))

    assert count_flops(jax.make_jaxpr(attend)(q, text).jaxpr) == 2 * 2 * 2 * 64 * 77 * 4 * 20


@pytest.mark.parametrize(("name", "products"), CUDNN_PRODUCTS.items())
def test_cudnn_attention_counts_by_its_name(name, products):
    """The primitive itself can be traced only where cuDNN is, so one of its name stands in."""
    primitive = Primitive(name)
    primitive.def_abstract_eval(lambda q, k, v: q)
    q, k = jnp.ones((2, 256, 4, 64)), jnp.ones((2, 512, 4, 64))
    jaxpr = jax.make_jaxpr(primitive.bind)(q, k, k).jaxpr
    assert count_flops(jaxpr) == products * 2 * (2 * 256 * 512 * 4 * 64)


def test_what_every_device_does_counts_for_all_of_them():
    mesh, rows = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,)), PartitionSpec("data")
    split = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=rows, out_specs=rows)
    assert flops(split, (4 * mesh.size, 5)) == mesh.size * 2 * 4 * 5 * 4


def test_the_rate_is_that_of_the_same_product_measured_outside():
    """Within a factor of ten: other work on this machine may slow either measurement."""
    a = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    began = time.perf_counter()
    jax.block_until_ready(product(a, a))
    outside = 2 * 1024**3 / (time.perf_counter() - began)
    assert 0.1 < matmul_rate(jnp.float32) / outside < 10
