import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rcnn_fixtures import SETS, channels_last, load_set, operations

from mafx.densepose.proposals import anchors_at, best, cell_anchors, clip, decode, propose, suppress


def test_anchors_by_hand():
    np.testing.assert_array_equal(cell_anchors(0)[1], [-16, -16, 16, 16])
    widths, heights = cell_anchors(1)[:, 2] * 2, cell_anchors(1)[:, 3] * 2
    np.testing.assert_allclose(heights / widths, [0.5, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(heights * widths, 64**2, rtol=1e-6)
    got = anchors_at(1, jnp.array([3 * 7 + 1]), columns=5)  # position 7 is column 2 of row 1, at a stride of 8
    np.testing.assert_array_equal(got, [[16 - 32, 8 - 32, 16 + 32, 8 + 32]])


def test_deltas_by_hand():
    box = jnp.array([[10.0, 20.0, 30.0, 60.0]])
    np.testing.assert_allclose(decode(jnp.zeros((1, 4)), box, (1, 1, 1, 1)), box)
    moved = decode(jnp.array([[0.5, -0.5, jnp.log(2.0), 0.0]]), box, (1, 1, 1, 1))
    np.testing.assert_allclose(moved, [[10, 0, 50, 40]], atol=1e-5)
    np.testing.assert_allclose(
        decode(jnp.array([[5.0, 0, 0, 0]]), box, (10, 10, 5, 5)), box + jnp.array([[10.0, 0, 10, 0]])
    )
    np.testing.assert_array_equal(clip(jnp.array([[-1.0, 2, 30, 40]]), (20, 25)), [[0, 2, 25, 20]])


def in_turn(boxes, threshold):
    """Suppression as it is defined, one box after another."""
    kept = []
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        for j in kept:
            u0, v0, u1, v1 = boxes[j]
            both = max(min(x1, u1) - max(x0, u0), 0) * max(min(y1, v1) - max(y0, v0), 0)
            if both > threshold * ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both):
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_suppression_at_once_is_suppression_in_turn(rng, threshold):
    corners = rng.uniform(0, 40, (3, 80, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (3, 80, 2))], -1).astype(np.float32)
    kept = jax.jit(suppress, static_argnums=2)(boxes, np.ones((3, 80), bool), threshold)
    for got, group in zip(np.asarray(kept), boxes, strict=True):
        assert np.flatnonzero(got).tolist() == in_turn(group.astype(float), threshold)
        assert 0 < got.sum() < 80


def test_a_chain_of_boxes():
    """Each suppresses the next one, unless it is suppressed itself."""
    starts = np.arange(9, dtype=np.float32) * 3
    boxes = np.stack([starts, 0 * starts, starts + 10, 0 * starts + 10], -1)
    assert suppress(boxes, np.ones(9, bool), 0.5).tolist() == [True, False] * 4 + [True]
    assert suppress(boxes, np.arange(9) > 0, 0.5).tolist() == [False, True] * 4 + [False]


def test_the_best_of_few():
    scores, indices = best(jnp.array([[1.0, 3, 2]]), 5)
    assert scores.tolist() == [[3, 2, 1, -jnp.inf, -jnp.inf]]
    assert indices.tolist() == [[1, 2, 0, 0, 0]]


def test_operations_are_those_of_the_published_code():
    ops = operations()
    np.testing.assert_allclose(np.stack([cell_anchors(i) for i in range(5)]), ops["anchors/cells"], rtol=1e-6)
    for i, (h, w) in enumerate([(3, 4), (2, 3), (2, 2), (1, 2), (1, 1)]):
        got = anchors_at(i, jnp.arange(3 * h * w), columns=w)
        np.testing.assert_allclose(got, ops[f"anchors/p{i + 2}"], rtol=1e-6)
    for key, weights in (("rpn", (1.0, 1.0, 1.0, 1.0)), ("box_head", (10.0, 10.0, 5.0, 5.0))):
        got = decode(jnp.asarray(ops["decode/deltas"]), jnp.asarray(ops["decode/boxes"]), weights)
        np.testing.assert_allclose(got, ops[f"decode/{key}"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_suppression_is_that_of_the_published_code(threshold):
    ops = operations()
    order = np.argsort(-ops["nms/scores"], kind="stable")
    boxes, groups = ops["nms/boxes"][order], ops["nms/groups"][order]
    kept = np.asarray(suppress(boxes, np.ones(len(boxes), bool), threshold))
    assert order[kept].tolist() == ops[f"nms/keep_{threshold}"].tolist()
    own = np.stack([suppress(boxes, groups == group, threshold) for group in np.unique(groups)]).any(0)
    assert order[own].tolist() == ops[f"nms/keep_grouped_{threshold}"].tolist()


@pytest.mark.parametrize("name", SETS)
def test_proposals_are_those_of_the_published_code(name):
    expected = load_set(name).expected
    for picture in load_set(name).pictures:
        if f"{picture}/p2" not in expected:
            continue  # the picture of one colour has sizes only
        maps = [[channels_last(expected[f"{picture}/rpn_{x}_p{i}"]) for x in ("logits", "deltas")] for i in range(2, 7)]
        size = tuple(expected[f"{picture}/resized_hw"].tolist())
        boxes, logits = jax.jit(propose, static_argnums=1)(maps, size)
        count = int(expected[f"{picture}/proposal_count"][0])
        assert int((logits > -jnp.inf).sum()) == count
        np.testing.assert_allclose(logits[0, :count], expected[f"{picture}/proposal_logits"], rtol=1e-6)
        close = np.abs(np.asarray(boxes[0, :count]) - expected[f"{picture}/proposal_boxes"]).max(-1) < 1e-3
        assert close[:50].all()
        assert close.mean() > 0.99  # logits that are nearly equal may change places
