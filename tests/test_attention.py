import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal, relative_error
from jax.sharding import PartitionSpec

from mafx.models.attention import KERNELS, Attention, FeedForward, SpatialTransformer, attention, geglu, kernel_order
from mafx.models.kernels import Kernels
from mafx.training.sharding import batch_sharding, make_mesh

# several blocks of queries, the last one not full
SMALL_BLOCKS = {name: Kernels(attention=name, block_score_bytes=600) for name in ("plain", "blockwise")}
# several blocks of splash attention, without a TPU
INTERPRETED = {
    "plain": Kernels(attention="plain"),
    "splash": Kernels(attention="splash", splash_block=128, interpret=True),
    "two_part": Kernels(attention="two_part", interpret=True),
}


def inputs(rng, b=2, f=3, n=10, k=7, m=5, heads=2, d=4):
    draw = functools.partial(normal, rng)
    return (
        draw(b, f, n, heads, d),
        (draw(b, f, k, heads, d), draw(b, f, k, heads, d)),
        (draw(b, m, heads, d), draw(b, m, heads, d)),
    )


def by_definition(q, own, shared):
    """One query at a time, in float64."""
    out = np.zeros(q.shape)
    for b, f, n, a in np.ndindex(q.shape[:4]):
        keys, values = ([], [])
        for kv, where in ((own, (b, f)), (shared, (b,))):
            if kv is not None:
                keys.append(np.asarray(kv[0][where])[:, a])
                values.append(np.asarray(kv[1][where])[:, a])
        keys, values = np.concatenate(keys).astype(np.float64), np.concatenate(values)
        scores = np.exp(keys @ np.asarray(q[b, f, n, a]) / np.sqrt(q.shape[-1]))
        out[b, f, n, a] = scores @ values / scores.sum()
    return out


@pytest.mark.parametrize("kernel", ["plain", "blockwise"])
@pytest.mark.parametrize("parts", ["own", "shared", "both"])
def test_kernels_equal_the_definition(rng, kernel, parts):
    q, own, shared = inputs(rng)
    own, shared = own if parts != "shared" else None, shared if parts != "own" else None
    np.testing.assert_allclose(
        attention(q, own, shared, kernels=SMALL_BLOCKS[kernel]), by_definition(q, own, shared), atol=2e-6
    )


def test_kernels_have_the_same_gradient(rng):
    args = inputs(rng)

    def gradient(kernel):
        return jax.grad(lambda args: jnp.square(attention(*args, kernels=SMALL_BLOCKS[kernel])).sum())(args)

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), gradient("plain"), gradient("blockwise"))


def test_large_scores_are_not_materialised(rng):
    q, own, shared = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), y)
        for y in inputs(rng, f=4, n=4096, k=4096, m=4096, heads=8)
    )
    assert kernel_order(q, own, shared, None, Kernels("cpu"))[0] == "blockwise"

    def temporary_bytes(kernels):
        program = jax.jit(lambda *x: attention(*x, kernels=kernels)).lower(q, own, shared).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(Kernels("cpu")) < temporary_bytes(Kernels(attention="plain")) / 20


@pytest.mark.parametrize(("parts", "width"), [("own", 40), ("shared", 80), ("both", 160)])
def test_splash_equals_the_definition(rng, parts, width):
    q, own, shared = inputs(rng, b=1, f=2, n=128, k=256, m=128, heads=1, d=width)
    own, shared = own if parts != "shared" else None, shared if parts != "own" else None
    got = attention(q, own, shared, kernels=INTERPRETED["splash"])
    np.testing.assert_allclose(got, by_definition(q, own, shared), atol=5e-6)


def test_splash_has_the_gradient_of_plain_on_one_device_and_on_many(rng):
    """A dropped bank is not seen. A batch that the devices do not divide is attended by all of them."""
    mesh = make_mesh({"data": 2}, jax.devices()[:2])

    def gradient(kernel):
        def loss(args, keep):
            return jnp.square(attention(*args, keep, kernels=INTERPRETED[kernel])).sum()

        return jax.jit(jax.value_and_grad(loss))

    def compare(got, expected):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-5), got, expected)

    args, keep = inputs(rng, b=2, f=2, n=128, k=128, m=128, d=40), jnp.array([True, False])
    expected = gradient("plain")(args, keep)
    compare(gradient("splash")(args, keep), expected)
    spread = jax.device_put((args, keep), batch_sharding(mesh))
    step = gradient("splash").lower(*spread).compile()
    assert "all-gather" not in step.as_text()
    got = step(*spread)
    compare(got, expected)
    assert all(x.sharding.is_equivalent_to(batch_sharding(mesh), x.ndim) for x in jax.tree.leaves(got[1]))
    one = jax.tree.map(lambda x: x[:1], args), keep[:1]
    whole = jax.device_put(one, batch_sharding(mesh).update(spec=PartitionSpec()))
    compare(gradient("splash")(*whole), gradient("plain")(*one))


def test_tpus_take_splash_where_tokens_suit_it(rng):
    q, own, shared = inputs(rng, n=256, k=256, m=128)
    text = tuple(x[:, :77] for x in shared)
    assert kernel_order(q, own, shared, None, Kernels("tpu", devices=8))[0] == "plain"  # several devices, and no mesh
    one_device = Kernels("tpu", devices=1)
    assert kernel_order(q, own, shared, None, one_device)[0] == "splash"
    assert kernel_order(q, None, text, None, one_device)[0] == "plain"
    assert kernel_order(q[:, :, :64], own, None, None, one_device)[0] == "plain"


NVIDIA_CARDS = [  # compute capability, and the widths of heads for which sampling and training take cuDNN
    ((7, 5), [], []),  # T4
    ((8, 0), [40, 80], [40, 80]),  # A100
    ((8, 6), [40, 80], [40, 80]),  # RTX 3090
    ((8, 9), [40, 80], [40, 80]),  # RTX 4090, L4
    ((9, 0), [40, 80, 160], [40, 80, 160]),  # H100
    ((10, 0), [40, 80, 160], [40, 80]),  # B200
]


@pytest.mark.parametrize(("card", "sampling", "training"), NVIDIA_CARDS)
def test_nvidia_cards_take_cudnn_for_widths_that_it_has(rng, card, sampling, training):
    """Widths 40, 80 and 160 are Stable Diffusion's, 20 those of half its size, and 4 of the tiny model."""

    def chosen(gradient):
        kernels = Kernels("gpu", capability=card, gradient=gradient, devices=1)
        arguments = {d: jnp.zeros((1, 1, 256, 1, d), jnp.bfloat16) for d in (4, 20, 40, 80, 160)}
        return {d: kernel_order(q, (q, q), None, None, kernels)[0] for d, q in arguments.items()}

    def widths(choice, name):
        return [d for d, kernel in choice.items() if kernel == name]

    in_sampling, in_training = chosen(gradient=False), chosen(gradient=True)
    assert (widths(in_sampling, "cudnn"), widths(in_training, "cudnn")) == (sampling, training)
    others = [d for d in in_sampling if d not in sampling]
    assert widths(in_sampling, "two_part") == (others if card >= (8, 0) else [])
    assert set(widths(in_training, "plain")) == set(in_training) - set(training)


def test_cudnn_is_not_for_float32_nor_for_few_queries(rng):
    q, own, shared = inputs(rng, n=256, k=256, m=128, d=8)
    half, kernels = q.astype(jnp.float16), Kernels("gpu", capability=(9, 0), devices=1)
    chosen = [kernel_order(x, own, shared, None, kernels) for x in (half, q, half[:, :, :32])]
    assert chosen == [["cudnn", "two_part", "plain"], ["plain"], ["two_part", "plain"]]
    keep = jnp.array([True, False])
    assert kernel_order(half[:, :, :32], own, shared, keep, kernels) == ["plain"]  # two_part hides no keys
    several = dataclasses.replace(kernels, devices=8)  # and no mesh
    assert kernel_order(half, own, shared, None, several) == ["cudnn", "plain"]


@pytest.mark.parametrize(("own_keys", "shared_keys", "width"), [(70, 33, 40), (65, 0, 160), (0, 77, 20), (1, 32, 80)])
def test_two_part_equals_the_definition(rng, own_keys, shared_keys, width):
    """Numbers of queries, keys and channels that blocks divide or not."""
    q, own, shared = inputs(rng, b=2, f=2, n=70, k=max(own_keys, 1), m=max(shared_keys, 1), heads=2, d=width)
    own, shared = own if own_keys else None, shared if shared_keys else None
    got = attention(q, own, shared, kernels=INTERPRETED["two_part"])
    np.testing.assert_allclose(got, by_definition(q, own, shared), atol=5e-6)


def test_two_part_on_many_devices(rng):
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    args = inputs(rng, b=2, f=2, n=40, k=40, m=33, d=16)
    attend = jax.jit(lambda args: attention(*args, kernels=INTERPRETED["two_part"]))
    got = attend(jax.device_put(args, batch_sharding(mesh)))
    np.testing.assert_allclose(got, by_definition(*args), atol=5e-6)
    assert got.sharding.is_equivalent_to(batch_sharding(mesh), got.ndim)


@pytest.mark.parametrize("shape", [(1, 2, 3, 40), (1, 300, 1, 64)])
def test_geglu_at_once_equals_geglu_in_steps(rng, shape):
    """In bfloat16, since the kernel takes 16 bits; what differs is the rounding between the steps."""
    c, o = shape[-1], 128
    x, kernel, bias = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in (shape, (c, 2 * o), (2 * o,)))
    card = Kernels("gpu", capability=(8, 0), devices=1, interpret=True)
    exact = geglu(*(y.astype(jnp.float32) for y in (x, kernel, bias)))
    in_steps, at_once = geglu(x, kernel, bias), geglu(x, kernel, bias, card)
    assert at_once.dtype == jnp.bfloat16 and at_once.shape == in_steps.shape
    errors = [relative_error(y.astype(jnp.float32), exact) for y in (in_steps, at_once)]
    assert errors[1] < min(errors[0], 2**-8)
    with_gradient = jax.make_jaxpr(functools.partial(geglu, kernels=dataclasses.replace(card, gradient=True)))
    assert "pallas_call" not in str(with_gradient(x, kernel, bias))


def test_a_refused_kernel_is_left_out_and_said_once(rng, monkeypatch, caplog):
    """A library that refuses while the program is traced, and a compiler that refuses what was traced."""

    def refuse_tracing(*_, kernels):
        raise NotImplementedError("no plan for this card")

    def refuse_compiling(q, *_, kernels):
        return jax.ffi.ffi_call("a_library_that_is_not_here", jax.ShapeDtypeStruct(q.shape, q.dtype))(q)

    q, own, shared = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), y) for y in inputs(rng, n=64, k=64, m=64, d=8))
    card = Kernels("gpu", capability=(9, 0), devices=1, interpret=True, probe=True)
    assert kernel_order(q, own, shared, None, card) == ["cudnn", "two_part", "plain"]
    expected = attention(q, own, shared, kernels=Kernels(attention="plain"))
    monkeypatch.setitem(KERNELS, "cudnn", refuse_tracing)
    monkeypatch.setitem(KERNELS, "two_part", refuse_compiling)
    for _ in range(2):
        got = jax.jit(lambda *args: attention(*args, kernels=card))(q, own, shared)
        np.testing.assert_array_equal(got.astype(jnp.float32), expected.astype(jnp.float32))
    messages = [record.getMessage() for record in caplog.records if "is not used" in record.getMessage()]
    assert [message.split()[2] for message in messages] == ["cudnn", "two_part"]
    assert "no plan for this card" in messages[0]


@pytest.mark.parametrize("parts", ["own", "shared", "both", "some"])
@pytest.mark.parametrize("keys", [5, 6])
def test_what_cudnn_is_given_has_the_values_and_gradients_of_plain(rng, parts, keys):
    """Odd numbers of keys, shared keys, dropped ones: the arguments are cuDNN's, the kernel behind them is XLA's."""
    q, own, shared = inputs(rng, k=4, m=keys)
    args = q, own if parts != "shared" else None, shared if parts != "own" else None
    keep = jnp.array([True, False]) if parts == "some" else None

    def value_and_gradient(kernels):
        def loss(args):
            return jnp.square(attention(*args, keep, kernels=kernels)).sum()

        return jax.value_and_grad(loss)(args)

    expected = value_and_gradient(Kernels(attention="plain"))
    for gradient in (False, True):
        got = value_and_gradient(Kernels(attention="cudnn", gradient=gradient, interpret=True))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), got, expected)


def test_unknown_kernel():
    with pytest.raises(ValueError, match="'fast' is unknown, expected one of auto"):
        attention(*inputs(np.random.default_rng(0)), kernels=Kernels(attention="fast"))


def test_mixed_attention_is_self_attention_over_longer_rows(rng):
    """The reference's tokens are appended to keys and values, under the same projections."""
    x, reference = (
        jnp.asarray(rng.normal(size=(2, 3, 6, 8)), jnp.float32),
        jnp.asarray(rng.normal(size=(2, 4, 8)), jnp.float32),
    )
    layer = Attention(heads=2)
    params = layer.init(jax.random.key(0), x)
    longer = jnp.concatenate([x, jnp.broadcast_to(reference[:, None], (2, 3, 4, 8))], axis=2)
    np.testing.assert_allclose(layer.apply(params, x, bank=reference), layer.apply(params, longer)[:, :, :6], atol=1e-6)


def test_reference_is_projected_once_for_all_frames(rng):
    """The cost of keys and values of the reference does not grow with the frames."""
    reference = jax.ShapeDtypeStruct((1, 64, 32), jnp.float32)
    layer = Attention(heads=2, kernels=Kernels(attention="plain"))

    def cost(frames, with_reference):
        x = jax.ShapeDtypeStruct((1, frames, 64, 32), jnp.float32)
        params = jax.eval_shape(layer.init, jax.random.key(0), x)
        apply = jax.jit(lambda p, x, r: layer.apply(p, x, bank=r if with_reference else None))
        return apply.lower(params, x, reference).cost_analysis()["flops"]

    extra = [cost(f, True) - cost(f, False) for f in (1, 2, 3)]
    projections = 2 * 2 * 64 * 32 * 32
    per_frame = extra[2] - extra[1]
    assert extra[1] - extra[0] == pytest.approx(per_frame)
    assert extra[0] - per_frame == pytest.approx(projections, rel=0.05)


def test_feed_forward_gates_with_the_exact_gelu():
    layer = FeedForward()
    x = jnp.ones((1, 1, 1))
    params = layer.init(jax.random.key(0), x)["params"]
    params["proj_in"]["kernel"] = jnp.array([[2.0] * 4 + [3.0] * 4])
    params["proj_out"]["kernel"] = jnp.ones((4, 1))
    got = layer.apply({"params": params}, x)[0, 0, 0]
    assert got == pytest.approx(4 * 2 * 3 * 0.998650102, rel=1e-6)  # Phi(3); the tanh form gives 0.9981...


def test_feature_only_block_ends_at_its_norm(rng):
    x, text = jnp.asarray(rng.normal(size=(1, 2, 3, 3, 8)), jnp.float32), jnp.zeros((1, 5, 4))
    whole, short = SpatialTransformer(2, groups=4), SpatialTransformer(2, groups=4, bank_only=True)
    params = whole.init(jax.random.key(0), x, text)
    assert set(short.init(jax.random.key(0), x, text)["params"]["transformer_blocks_0"]) == {"norm1"}
    keep = {**params["params"], "transformer_blocks_0": {"norm1": params["params"]["transformer_blocks_0"]["norm1"]}}
    keep.pop("proj_out")
    nothing, feature = short.apply({"params": keep}, x, text)
    assert nothing is None
    np.testing.assert_array_equal(feature, whole.apply(params, x, text)[1])


@pytest.mark.parametrize("kernel", ["plain", "blockwise"])
def test_dropped_references_are_not_seen(rng, kernel):
    q, own, shared = inputs(rng)
    got = attention(q, own, shared, jnp.array([True, False]), kernels=SMALL_BLOCKS[kernel])
    np.testing.assert_allclose(got[0], by_definition(q, own, shared)[0], atol=2e-6)
    np.testing.assert_allclose(got[1], by_definition(q, own, None)[1], atol=2e-6)


def test_places_draw_attention_to_the_same_place_of_the_reference(rng):
    """With queries and keys that say nothing, what comes out at a place is most like what the reference has there."""
    layer = Attention(2)
    x, reference = jnp.zeros((1, 1, 24, 32)), jnp.asarray(rng.normal(size=(1, 24, 32)), jnp.float32)
    params = layer.init(jax.random.key(0), x)
    zero = jnp.zeros((32, 32))
    params = {
        "params": {name: {"kernel": zero if name in ("to_q", "to_k") else jnp.eye(32)} for name in params["params"]}
    }
    params["params"]["to_out"]["bias"] = jnp.zeros(32)
    placed = layer.apply(params, x, bank=reference, grid=(4, 6))[0, 0]
    correlation = jnp.corrcoef(placed, reference[0])[:24, 24:]
    np.testing.assert_array_equal(correlation.argmax(1), np.arange(24))
    everywhere = layer.apply(params, x, bank=reference)[0, 0]
    np.testing.assert_allclose(everywhere, jnp.broadcast_to(reference.mean((0, 1)) / 2, (24, 32)), atol=1e-6)
