import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import AxisType, PartitionSpec

from mafx.models.attention import attention
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
    both = jax.make_jaxpr(jax.grad(lambda p, x: jnp.square(conv.apply(p, x)).sum(), (0, 1)))(
        params, jnp.ones((2, 8, 8, 4))
    )
    assert 2.8 * forward < count_flops(both.jaxpr) < 3.6 * forward


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_attention_kernels_count_as_the_definition_does(kernel, monkeypatch):
    if kernel == "cudnn":  # only traced
        monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    q, own, shared = (jnp.ones((2, 3, n, 4, 64), jnp.bfloat16) for n in (512, 512, 256))

    def count(kernel, gradient):
        def f(q, own, shared):
            return attention(q, (own, own), (shared[:, 0], shared[:, 0]), kernel=kernel).astype(jnp.float32).sum()

        return count_flops(jax.make_jaxpr(jax.grad(f, (0, 1, 2)) if gradient else f)(q, own, shared).jaxpr)

    assert count(kernel, gradient=False) == count("plain", gradient=False) == 2 * 2 * 2 * 3 * 512 * 768 * 4 * 64
    # of the gradient, with its forward pass: 2 + 4 products, and the scores anew; splash checkpoints its forward pass, and computes scores twice
    assert count(kernel, gradient=True) / count("plain", gradient=True) == pytest.approx(
        {"cudnn": 7 / 6, "splash": 11 / 6}[kernel], rel=0.01
    )


def test_what_every_device_does_counts_for_all_of_them():
    mesh, rows = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,)), PartitionSpec("data")
    split = jax.shard_map(lambda a: a @ a.T, mesh=mesh, in_specs=rows, out_specs=rows)
    assert flops(split, (4 * mesh.size, 5)) == mesh.size * 2 * 4 * 5 * 4


def test_rate_is_plausible():
    assert 1e8 < matmul_rate(jnp.float32) < 1e16
