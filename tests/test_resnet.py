import jax.numpy as jnp
import numpy as np
import pytest
from rcnn_fixtures import SETS, channels_first, channels_last, load_set, operations, run

from mafx.densepose.resnet import STAGES, Pyramid


@pytest.mark.parametrize("name", SETS)
def test_stages_and_levels_are_those_of_the_published_code(name, parity):
    fixture = load_set(name)
    expected = fixture.expected
    stages = run(fixture.rcnn, lambda m, x: m.resnet(x), channels_last(expected["a/input"]))
    for stage, got in zip(STAGES, stages, strict=True):
        parity.check(f"{name} res{stage}", channels_first(got)[0], expected[f"a/res{stage}"], 1e-5)
    given = [channels_last(expected[f"a/res{stage}"]) for stage in STAGES]
    levels = run(fixture.rcnn, lambda m, x: m.pyramid(x), given)
    for i, got in enumerate(levels, 2):
        parity.check(f"{name} p{i}", channels_first(got)[0], expected[f"a/p{i}"], 1e-5)


def test_p6_is_every_second_position_of_p5():
    ops = operations()
    eye = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
    params = {f"fpn_lateral{i}": {"kernel": jnp.eye(2).reshape(1, 1, 2, 2), "bias": jnp.zeros(2)} for i in STAGES}
    params |= {f"fpn_output{i}": {"kernel": eye, "bias": jnp.zeros(2)} for i in STAGES}
    p5 = channels_last(ops["pool/in"])
    h, w = p5.shape[1:3]
    stages = [jnp.zeros((1, h * 2**k, w * 2**k, 2)) for k in (3, 2, 1)]
    levels = Pyramid(2).apply({"params": params}, [*stages, p5])
    np.testing.assert_array_equal(channels_first(levels[-1])[0], ops["pool/p6_1x1_s2"])
    np.testing.assert_array_equal(levels[2][0], np.asarray(p5)[0].repeat(2, 0).repeat(2, 1))  # p4 has p5 added
