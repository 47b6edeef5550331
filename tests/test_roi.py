import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import normal, relative_error
from rcnn_fixtures import SETS, channels_first, channels_last, load_set, operations

from mafx.densepose import roi
from mafx.densepose.roi import assign_levels

roi_align = jax.jit(roi.roi_align, static_argnames="side")


def test_a_slope_has_the_values_of_the_centres_of_bins():
    """Of a map whose value is 10 rows + columns, at a stride of 4 pixels."""
    values = 10 * jnp.arange(8.0)[:, None] + jnp.arange(8.0)[None]
    got = roi_align([values[None, ..., None]], jnp.array([[[4.0, 8.0, 12.0, 24.0]]]), side=2)
    rows, columns = np.array([3.0, 5.0]), np.array([1.5, 2.5])
    np.testing.assert_allclose(got[0, 0, ..., 0], 10 * rows[:, None] + columns, rtol=1e-6)


def test_boxes_are_read_from_their_own_level_and_picture():
    maps = [jnp.stack([jnp.full((64 // 2**k, 64 // 2**k, 1), 10.0 * b + k) for b in range(2)]) for k in range(4)]
    boxes = jnp.array([[0, 0, 20, 20], [0, 0, 120, 120], [0, 0, 230, 230], [0.0, 0, 250, 1000]])
    got = roi_align(maps, jnp.stack([boxes, boxes]), side=1)[..., 0, 0, 0]
    np.testing.assert_allclose(got[:, :3], [[0, 1, 2], [10, 11, 12]])
    assert assign_levels(boxes, 4).tolist() == [0, 1, 2, 3]


def test_operations_are_those_of_the_published_code():
    ops = operations()
    features, boxes = channels_last(ops["roi/features"]), jnp.asarray(ops["roi/boxes"])[None]
    got = roi_align([features], boxes, side=7)[0]
    assert relative_error(channels_first(got), ops["roi/legacy_7"]) < 1e-6
    np.testing.assert_array_equal(assign_levels(jnp.asarray(ops["levels/boxes"]), 4) + 2, ops["levels/level"])


def test_features_of_16_bits(rng):
    features, boxes = normal(rng, 1, 12, 16, 3), jnp.array([[[3.0, 5.0, 40.0, 30.0]]])
    got = roi_align([features.astype(jnp.bfloat16)], boxes, side=7)
    assert got.dtype == jnp.bfloat16
    assert relative_error(got, roi_align([features], boxes, side=7)) < 1e-2


@pytest.mark.parametrize("name", SETS)
def test_features_of_boxes_are_those_of_the_published_code(name, parity):
    expected = load_set(name).expected
    levels = [channels_last(expected[f"a/p{i}"]) for i in range(2, 6)]
    got = roi_align(levels, jnp.asarray(expected["a/proposal_boxes"][None, :8]), side=7)[0]
    parity.check(f"{name} box features", channels_first(got), expected["a/box_pooled_8"], 1e-5)
    boxes = jnp.asarray(expected["a/det_boxes_resized"][None])
    got = roi_align([channels_last(expected["a/decoder"])], boxes, side=28)[0]
    parity.check(f"{name} DensePose features", channels_first(got), expected["a/dp_pooled"], 1e-5)
