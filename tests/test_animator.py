"""Guidance with every exact saving equals the plain formulation, and costs less."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import compiled, normal
from micro import MICRO

from mafx.models.animator import SIZES, Animator, AnimatorConfig, parameter_shapes
from mafx.models.kernels import Kernels


def published_step(apply, x, t, text, negative, reference, motion):
    """Both halves as one batch through everything, as the published pipeline runs them.

    Both rows attend to the bank, and the unconditional one is then replaced. (The published code computes that
    replacement besides, inside each attention.)
    """

    def both(y):
        return jnp.concatenate([y, y])

    texts = jnp.concatenate([negative, text])
    bank = apply("bank", both(reference), both(t), texts)
    residuals = jax.tree.map(both, apply("residuals", x, t, text, motion))
    return apply("predict", both(x), both(t), texts, bank, residuals)


def our_step(apply, x, t, text, reference, motion):
    return apply(
        "predict_both", x, t, text, None, apply("bank", reference, t, text), apply("residuals", x, t, text, motion)
    )


@pytest.fixture
def inputs(rng):
    draw = functools.partial(normal, rng)
    return draw(1, 3, 4, 4, 4), jnp.array([7]), draw(1, 77, 16), draw(1, 4, 4, 4), jnp.abs(draw(1, 3, 8, 8, 3))


def test_savings_change_nothing(micro, inputs):
    x, t, text, reference, motion = inputs
    apply = compiled(micro.networks, micro.params)
    unconditional, conditional = our_step(apply, x, t, text, reference, motion)
    np.testing.assert_allclose(conditional[0], published_step(apply, x, t, text, text, reference, motion)[1], atol=1e-5)
    plain = apply("predict", x, t, text, {}, apply("residuals", x, t, text, motion))
    np.testing.assert_allclose(unconditional, plain, atol=1e-5)
    assert np.abs(unconditional - conditional).max() > 1e-2


def test_two_prompts_run_two_encoders(micro, inputs):
    x, t, text, reference, motion = inputs
    apply = compiled(micro.networks, micro.params)
    bank, residuals = apply("bank", reference, t, text), apply("residuals", x, t, text, motion)
    halves = apply("predict_both", x, t, text, -text, bank, residuals)
    np.testing.assert_allclose(halves[0], apply("predict", x, t, -text, {}, residuals), atol=1e-5)
    np.testing.assert_allclose(halves[1], apply("predict", x, t, text, bank, residuals), atol=1e-5)


def test_full_fusion_mixes_the_reference_into_the_down_path_too(micro, inputs):
    x, t, text, reference, motion = inputs
    full = compiled(Animator(dataclasses.replace(MICRO, fusion="full")), micro.params)
    midup = compiled(micro.networks, micro.params)
    assert set(full("bank", reference, t, text)) - set(midup("bank", reference, t, text)) == {"down_blocks_0"}
    got, usual = our_step(full, x, t, text, reference, motion), our_step(midup, x, t, text, reference, motion)
    np.testing.assert_allclose(got[0], usual[0], atol=1e-5)  # without the reference there is no difference
    assert np.abs(got[1] - usual[1]).max() > 1e-3
    with pytest.raises(ValueError, match="'all' is unknown, expected one of midup, full"):
        AnimatorConfig(fusion="all")


def test_guided_step_costs_at_most_0_82_of_the_published_one():
    """At full size, 16 frames of 512x512. The compiler counts loops once, so attention must not loop."""
    config = SIZES["sd15"].with_kernels(Kernels("gpu", attention="plain"))
    f, h = 16, 64
    shapes = (1, f, h, h, 4), (1,), (1, 77, 768), (1, h, h, 4), (1, f, 8 * h, 8 * h, 3)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.int32 if shape == (1,) else jnp.float32) for shape in shapes]
    params = parameter_shapes(config)

    def tera_flops(step):
        program = jax.jit(lambda params, *args: step(compiled(Animator(config), params), *args))
        return program.lower(params, *inputs).cost_analysis()["flops"] / 1e12

    ours = tera_flops(our_step)
    published = tera_flops(lambda apply, x, t, text, *rest: published_step(apply, x, t, text, text, *rest))
    print(f"one guided step: {ours:.1f} TFLOP; as published, without its repetition, {published:.1f}")
    assert ours <= 0.82 * published
