import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rcnn_fixtures import SETS, SMALL, channels_last, load_set, run

from mafx.densepose.rcnn import PEOPLE, DensePoseRCNN, RCNNConfig, prepare
from mafx.densepose.rcnn_weights import parameter_shapes


def test_pictures_lose_their_mean_before_they_are_padded():
    x = prepare(jnp.full((1, 30, 33, 3), 100, jnp.uint8), jnp.dtype(jnp.float32))
    assert x.shape == (1, 32, 64, 3)
    np.testing.assert_allclose(x[0, 29, 32], [100 - 103.53, 100 - 116.28, 100 - 123.675], rtol=1e-5)
    assert not x[0, 30:].any()
    assert not x[0, :, 33:].any()


@pytest.mark.parametrize("name", SETS)
def test_what_the_network_sees_is_what_the_published_code_sees(name):
    expected = load_set(name).expected
    x = prepare(jnp.asarray(expected["a/resized_bgr"][None, ..., ::-1]), jnp.dtype(jnp.float32))
    np.testing.assert_array_equal(x, channels_last(expected["a/input"]))


@pytest.mark.parametrize("name", SETS)
def test_detections_are_those_of_the_published_code(name, parity):
    """From the stored features and proposals."""
    expected = load_set(name).expected
    levels = [channels_last(expected[f"a/p{i}"]) for i in range(2, 6)]
    boxes = jnp.asarray(expected["a/proposal_boxes"])[None]
    size = tuple(expected["a/resized_hw"].tolist())
    valid = jnp.ones(boxes.shape[:2], bool)
    got = run(load_set(name).rcnn, lambda m, *args: m.refine(*args, size), levels, boxes, valid)
    count = int(expected["a/count"][0])
    assert int((got.scores > 0).sum()) == count
    parity.check(f"{name} boxes", got.boxes[0, :count], expected["a/det_boxes_resized"], 1e-3, absolute=True)
    parity.check(f"{name} scores", got.scores[0, :count], expected["a/scores"], 1e-5, absolute=True)


@pytest.mark.parametrize("config", [RCNNConfig(), RCNNConfig(decoder=None, coarse=15), SMALL])
def test_shapes_of_whole_networks(config):
    """Of the full size too: nothing is allocated."""
    size = (750, 1333)

    def find(params, pictures):
        x = prepare(pictures, jnp.dtype(jnp.float32))
        return DensePoseRCNN(config).apply({"params": params}, x, size, 3)

    params = {}
    for path, leaf in parameter_shapes(config).items():
        inner = params
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = leaf
    detections, charts = jax.eval_shape(find, params, jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8))
    assert detections.boxes.shape == (2, PEOPLE, 4)
    side = 56 if config.decoder is None else 112
    assert charts.coarse.shape == (2, 3, side, side, config.coarse)
    assert charts.u.shape == (2, 3, side, side, 25)
