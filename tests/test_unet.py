import dataclasses
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal
from micro import MICRO

from mafx.flops import count_flops
from mafx.models.unet import REMAT, Encoded, Residuals, UNet


@pytest.fixture
def inputs(rng):
    draw = functools.partial(normal, rng)
    return draw(1, 3, 4, 4, 4), jnp.array([7]), draw(1, 77, 16)


def test_residuals_enter_behind_the_skips_and_the_middle(micro, inputs):
    x, t, text = inputs
    unet, params = UNet(MICRO.unet), {"params": micro.params["unet"]}
    encoded = unet.apply(params, x, t, text, {}, method="encode")
    shifts = Residuals(tuple(0.1 * jnp.ones_like(s) for s in encoded.skips), jnp.zeros_like(encoded.x))
    moved = Encoded(encoded.x, tuple(s + 0.1 for s in encoded.skips), encoded.temb, encoded.written)

    def decode(*args):
        return unet.apply(params, *args, method="decode").output

    np.testing.assert_allclose(decode(encoded, text, {}, shifts), decode(moved, text, {}), atol=1e-6)
    assert (
        np.abs(decode(encoded, text, {}, Residuals(shifts.skips, 1 + encoded.x)) - decode(moved, text, {})).max() > 1e-3
    )


def test_rematerialisation_changes_nothing_but_memory(micro, inputs):
    x, t, text = inputs

    def grads(remat):
        unet = UNet(dataclasses.replace(MICRO.unet, remat=remat))

        def loss(params):
            encoded = unet.apply({"params": params}, x, t, text, {}, method="encode")
            return jnp.square(unet.apply({"params": params}, encoded, text, {}, method="decode").output).mean()

        return jax.jit(jax.grad(loss))

    params, plain, *others = micro.params["unet"], *map(grads, REMAT)
    expected = plain(params)
    for f in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, f(params))
    flops = [f.lower(params).cost_analysis()["flops"] for f in (plain, *others)]
    assert flops == sorted(flops) and flops[-1] > 1.1 * flops[0]  # the forward pass once more
    products = [count_flops(jax.make_jaxpr(f)(params).jaxpr) for f in (plain, *others)]
    assert products[1] < 1.05 * products[0] < products[-1]  # all are kept but those of attention


def test_appearance_encoder_has_nothing_behind_its_last_feature(micro):
    """The published file holds no weight that is never used."""
    names = {"/".join(path) for path in flax.traverse_util.flatten_dict(micro.params["appearance"])}
    last = {name for name in names if "up_blocks_1/attentions_1" in name}
    assert {name.split("/")[3] for name in last} == {"norm", "proj_in", "transformer_blocks_0"}
    assert not any("conv_out" in name or "conv_norm_out" in name or "motion" in name for name in names)


def test_frames_of_one_image_each_share_norm_statistics(micro, inputs):
    """The denoiser's residual blocks take statistics over all frames: even without temporal layers, frames interact."""
    x, t, text = inputs
    keep = {
        p: v
        for p, v in flax.traverse_util.flatten_dict(micro.params["unet"]).items()
        if not any("motion" in name for name in p)
    }
    params = {"params": flax.traverse_util.unflatten_dict(keep)}

    def run(config, x):
        unet = UNet(dataclasses.replace(config, temporal=None))
        return unet.apply(params, unet.apply(params, x, t, text, {}, method="encode"), text, {}, method="decode").output

    per_frame = dataclasses.replace(MICRO.unet, norm_per_frame=True)
    images = jnp.concatenate([run(MICRO.unet, x[:, i : i + 1]) for i in range(3)], axis=1)
    np.testing.assert_allclose(run(per_frame, x), images, atol=1e-5)
    assert np.abs(run(MICRO.unet, x) - images).max() > 1e-3


def test_shallow_with_the_right_depth_is_the_whole(micro, inputs):
    """What enters the last level, kept from the same latents, gives the same answer from the first level alone."""
    x, t, text = inputs
    unet, params = UNet(MICRO.unet), {"params": micro.params["unet"]}
    whole = unet.apply(params, unet.apply(params, x, t, text, {}, method="encode"), text, {}, method="decode")
    shallow = unet.apply(params, x, t, text, {}, True, method="encode")
    assert len(shallow.skips) == 1 + MICRO.unet.layers
    again = unet.apply(params, shallow, text, {}, None, whole.deep, method="decode")
    np.testing.assert_allclose(again.output, whole.output, atol=1e-6)
    other = unet.apply(params, shallow, text, {}, None, 1 + whole.deep, method="decode")
    assert np.abs(other.output - whole.output).max() > 1e-3
