import functools

import jax
import jax.numpy as jnp
import numpy as np
from conftest import normal
from micro import MICRO

from mafx.models.control import ControlNet


def test_sees_frames_one_by_one(micro, rng):
    draw = functools.partial(normal, rng)
    x, t, text, pose = draw(1, 3, 4, 4, 4), jnp.array([7]), draw(1, 77, 16), jnp.abs(draw(1, 3, 8, 8, 3))
    control, params = ControlNet(MICRO.unet, MICRO.motion_widths), {"params": micro.params["control"]}
    embedded = control.apply(params, pose, method="embed_motion")
    clip = control.apply(params, x, t, text, embedded)
    assert len(clip.skips) == 4  # the first convolution, one layer and one downsampling, one layer
    for i in range(3):
        frame = control.apply(params, x[:, i : i + 1], t, text, embedded[:, i : i + 1])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[:, i : i + 1], b, atol=1e-5), clip, frame)
