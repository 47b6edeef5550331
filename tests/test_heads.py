import jax.numpy as jnp
import pytest
from rcnn_fixtures import SETS, channels_first, channels_last, load_set, run

from mafx.densepose.roi import roi_align


@pytest.fixture(params=SETS)
def fixture(request):
    return load_set(request.param)


def test_proposal_and_box_heads_are_those_of_the_published_code(fixture, parity):
    expected, rcnn = fixture.expected, fixture.rcnn
    levels = [channels_last(expected[f"a/p{i}"]) for i in range(2, 7)]
    for i, (logits, deltas) in enumerate(run(rcnn, lambda m, x: [m.proposal_head(y) for y in x], levels), 2):
        for key, got in (("logits", logits), ("deltas", deltas)):
            name = f"rpn_{key}_p{i}"
            parity.check(f"{fixture.name} {name}", channels_first(got)[0], expected[f"a/{name}"], 1e-5)
    boxes = jnp.asarray(expected["a/proposal_boxes"])[None]
    logits, deltas = run(rcnn, lambda m, x, boxes: m.classify(roi_align(x, boxes, side=7)), levels[:4], boxes)
    parity.check(f"{fixture.name} class_logits", logits[0], expected["a/class_logits"], 1e-5)
    parity.check(f"{fixture.name} box_deltas", deltas[0], expected["a/box_deltas"], 1e-5)


def test_the_decoder_is_that_of_the_published_code(fixture, parity):
    levels = [channels_last(fixture.expected[f"a/p{i}"]) for i in range(2, 6)]
    (got,) = run(fixture.rcnn, lambda m, x: m.decode(x), levels)
    parity.check(f"{fixture.name} decoder", channels_first(got)[0], fixture.expected["a/decoder"], 1e-5)


def test_charts_are_those_of_the_published_code(fixture, parity):
    expected, rcnn = fixture.expected, fixture.rcnn
    head = run(rcnn, lambda m, x: m.densepose_head(x), channels_last(expected["a/dp_pooled"][0]))
    parity.check(f"{fixture.name} DensePose head", channels_first(head), expected["a/dp_head_0"], 1e-5)
    charts = run(rcnn, lambda m, x: m.chart_predictor(x), channels_last(expected["a/dp_head_0"][0]))
    coarse, fine, u, v = (channels_first(x)[0] for x in charts)
    parity.check(f"{fixture.name} coarse", coarse, expected["a/coarse_segm_0"], 1e-5)
    parity.check(f"{fixture.name} fine", fine, expected["a/fine_segm_0"], 1e-5)
    parity.check(f"{fixture.name} u", u[5], expected["a/u_0_part5"], 1e-5)
    parity.check(f"{fixture.name} v", v[5], expected["a/v_0_part5"], 1e-5)
