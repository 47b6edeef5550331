import jax
import numpy as np
import pytest
from rcnn_fixtures import SETS, load_set, operations, published_tensors, read_rgb, write_pickle

from mafx.densepose import draw_labels
from mafx.densepose.people import paint, whole_box
from mafx.densepose.rcnn_run import RCNNFinder, chart_labels, frame_boxes, resize_picture, resized_size
from mafx.errors import InputError


def test_sizes_by_hand():
    assert resized_size((512, 512)) == (800, 800)
    assert resized_size((1080, 1920)) == (750, 1333)
    assert resized_size((300, 100), 30, 60) == (60, 20)


def test_boxes_return_to_the_frame():
    got = frame_boxes(np.float32([[10, 20, 2000, 800]]), (800, 1600), (400, 800))
    np.testing.assert_array_equal(got, [[5, 10, 800, 400]])


def test_labels_by_hand():
    coarse, fine = np.zeros((2, 2, 2), np.float32), np.zeros((2, 2, 25), np.float32)
    coarse[:, 0, 1] = coarse[:, 1, 0] = 1  # the left half is a person
    fine[0, :, 7] = fine[1, :, 9] = 1
    assert chart_labels(coarse, fine, (4, 4)).tolist() == [[7, 7, 0, 0]] * 2 + [[9, 9, 0, 0]] * 2
    assert chart_labels(coarse, fine, (1, 1)).tolist() == [[0]]  # a tie of both halves is background
    assert chart_labels(coarse, fine, (0, 3)).shape == (0, 3)
    assert chart_labels(coarse, fine, (3, 0)).shape == (3, 0)


def test_operations_are_those_of_the_published_code():
    ops = operations()
    for row in ops["size/h_w_min_max_newh_neww"].tolist():
        assert resized_size(tuple(row[:2]), *row[2:4]) == tuple(row[4:])
    for key, expected in ops.items():
        if key.startswith("resize/") and key != "resize/in":
            np.testing.assert_array_equal(resize_picture(ops["resize/in"], expected.shape[:2]), expected)
    for i in range(4):
        sizes = ops[f"rescale/{i}_resized_hw_original_hw"].tolist()
        got = frame_boxes(ops[f"rescale/{i}_in"], tuple(sizes[:2]), tuple(sizes[2:]))
        kept = np.flatnonzero((got[:, 2:] > got[:, :2]).all(-1))
        np.testing.assert_array_equal(kept, ops[f"rescale/{i}_kept"])
        np.testing.assert_array_equal(got[kept], ops[f"rescale/{i}_out"])
        assert [whole_box(box) for box in got[kept]] == list(map(tuple, ops[f"rescale/{i}_int_xywh"].tolist()))


@pytest.mark.parametrize("name", SETS)
def test_labels_are_those_of_the_published_code(name):
    expected = load_set(name).expected
    coarse, fine = (expected[f"a/{key}_segm_0"].transpose(1, 2, 0) for key in ("coarse", "fine"))
    labels = chart_labels(coarse, fine, expected["a/labels_0"].shape)
    assert (labels == expected["a/labels_0"]).mean() > 0.9999 - 1 / labels.size  # one tie at the level of rounding


@pytest.mark.parametrize("name", SETS)
def test_people_are_those_of_the_published_code(name, parity):
    fixture = load_set(name)
    frames = [read_rgb(fixture.folder / "pictures" / f"{picture}.png") for picture in fixture.pictures]
    finder = RCNNFinder(fixture.rcnn, **fixture.sides)
    found = list(finder.find(iter(frames)))
    wrong = pixels = 0
    for picture, frame, people in zip(fixture.pictures, frames, found, strict=True):
        expected = {key.partition("/")[2]: x for key, x in fixture.expected.items() if key.startswith(f"{picture}/")}
        assert len(people) == expected["count"][0]
        boxes = expected.get("int_boxes_xywh", np.zeros((0, 4), int))
        assert [person.box for person in people] == list(map(tuple, boxes.tolist()))
        for i, person in enumerate(people):
            parity.check(f"{name} {picture} score {i}", person.score, expected["scores"][i], 2e-4, absolute=True)
            pixels += person.labels.size
            wrong += (person.labels != expected[f"labels_{i}"]).sum()
        render = draw_labels(paint(people, frame.shape[:2]))
        different = (render != read_rgb(fixture.folder / "renders" / f"{picture}.png")).any(-1)
        assert different.sum() <= len(people)  # ties at the level of rounding, which the published code has too
    assert wrong <= 1e-4 * pixels


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights that find few people."""
    tensors = published_tensors(seed=12)
    for name in ("proposal_generator.rpn_head.anchor_deltas", "roi_heads.box_predictor.bbox_pred"):
        tensors[f"{name}.weight"] *= 0.1  # boxes are about as large as anchors
    tensors["roi_heads.box_predictor.cls_score.bias"] = np.float32([-1.5, 0])
    return write_pickle(tmp_path_factory.mktemp("weights") / "a.pkl", tensors)


SIDES = {"min_size": 64, "max_size": 96}


@pytest.fixture(scope="module")
def frames():
    return list(np.random.default_rng(1).integers(0, 256, (3, 40, 56, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def one_by_one(weights, frames):
    return list(RCNNFinder(weights, **SIDES).find(frames))


def assert_same(got, expected):
    assert [[person.box for person in people] for people in got] == [[p.box for p in people] for people in expected]
    for people, others in zip(got, expected, strict=True):
        for a, b in zip(people, others, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-4)
            assert (a.labels != b.labels).sum() <= 0.01 * a.labels.size


def test_people_lie_in_the_frame_the_surest_first(one_by_one):
    assert len(one_by_one) == 3
    assert sum(map(len, one_by_one)) > 3
    for people in one_by_one:
        scores = [person.score for person in people]
        assert scores == sorted(scores, reverse=True)
        for (x, y, width, height), labels, score in people:
            assert labels.shape == (height, width)
            assert labels.dtype == np.uint8
            assert 0 <= x <= x + width <= 56
            assert 0 <= y <= y + height <= 40
            assert 0.05 < score <= 1


def test_batches_on_two_devices_give_the_same_as_one_frame_at_a_time(weights, frames, one_by_one):
    finder = RCNNFinder(weights, **SIDES, devices=jax.devices()[:2], frames_at_once=4)
    assert_same(list(finder.find(frames)), one_by_one)  # three frames: one place of the batch stays empty


def test_frames_are_read_when_they_are_needed(weights, frames, one_by_one):
    taken = []

    def endless():
        while True:
            taken.append(0)
            yield frames[0]

    found = RCNNFinder(weights, **SIDES).find(endless())
    for _ in range(5):
        assert_same([next(found)], one_by_one[:1])
    assert len(taken) <= 7


def test_16_bits_find_nearly_the_same():
    """The weights are random, so that small errors become large ones: the published code has 28 % other pixels."""
    fixture = load_set("tiny")
    frame, expected = read_rgb(fixture.folder / "pictures" / "a.png"), fixture.expected
    (people,) = RCNNFinder(fixture.folder / "model_final.pkl", **fixture.sides, dtype="bf16").find([frame])
    boxes, surest = [person.box for person in people], expected["a/int_boxes_xywh"][:3]
    assert np.abs(np.subtract(boxes[:3], surest)).max() <= 8
    assert len(boxes) <= 6
    render = draw_labels(paint(people, frame.shape[:2]))
    different = (render != read_rgb(fixture.folder / "renders" / "a.png")).any(-1)
    assert different.sum() < 0.5 * surest[:, 2:].prod(-1).sum()


def test_inputs_that_do_not_fit(weights):
    finder = RCNNFinder(weights, **SIDES)
    for frame in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="expected frames uint8 H W 3, found"):
            next(finder.find([frame]))
    assert list(finder.find([])) == []
    with pytest.raises(InputError, match="expected a multiple of 2 frames at once"):
        RCNNFinder(weights, devices=jax.devices()[:2], frames_at_once=3)
