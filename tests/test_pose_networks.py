import numpy as np
import pytest
from conftest import SHARED
from scipy.special import logit

from mafx.densepose.pose_files import PoseFiles
from mafx.densepose.pose_networks import (
    DETECTION_SHAPES,
    LANDMARK_SHAPES,
    Network,
    PoseNetworks,
    anchors,
    decode_detections,
    merge_detections,
    overlap,
    refine,
)
from mafx.errors import InputError

PUBLISHED = SHARED / "fixtures" / "pose" / "networks_frame101.npz"


def test_anchors_are_centres_of_cells():
    centres = anchors()
    assert centres.shape == (2254, 2)
    np.testing.assert_allclose(centres[:3] * 224, [(4, 4), (4, 4), (12, 4)])  # two at each cell of 8 pixels
    np.testing.assert_allclose(centres[1568:1571] * 224, [(8, 8), (8, 8), (24, 8)])  # then two at each of 16
    np.testing.assert_allclose(centres[-1] * 224, (208, 208))  # six at each of 32


def test_boxes_count_from_their_anchors():
    boxes, logits = np.zeros((2254, 12), np.float32), np.full(2254, -9, np.float32)
    boxes[2], logits[2] = [4, 8, 20, 40, 0, 112, 56, 0, 0, 0, 0, 0], logit(0.75)
    found, scores = decode_detections(boxes, logits)
    np.testing.assert_allclose(scores, [0.75], rtol=1e-6)
    np.testing.assert_allclose(found[0, :8] * 224, [6, -8, 26, 32, 12, 116, 68, 4], rtol=1e-6)


def test_overlap_by_hand():
    box, others = np.array([0.0, 0, 2, 2]), np.array([(0.0, 0, 2, 2), (1, 1, 3, 3), (5, 5, 6, 6), (2, 0, 4, 2)])
    np.testing.assert_allclose(overlap(box, others), [1, 1 / 7, 0, 0])


def test_detections_of_one_person_are_averaged_by_score():
    found = np.zeros((3, 12))
    found[:, :4] = [(0, 0, 1, 1), (0.1, 0, 1.1, 1), (4, 4, 5, 5)]
    found[:, 4] = 1, 2, 7
    merged = merge_detections(found, np.array([0.9, 0.6, 0.8]))
    assert [person.score for person in merged] == [0.9, 0.8]
    assert merged[0].hips[0] == pytest.approx((0.9 * 1 + 0.6 * 2) / 1.5)
    assert merged[1].hips[0] == 7


def test_landmarks_move_to_the_heat_around_them():
    heat = np.full((64, 64, 4), -20.0)
    heat[10, 12, :3] = heat[10, 14, 0] = 20  # two hot cells near the first, one near the second; the third is far
    points = np.array([(13.5, 9.5), (12.5, 10.5), (40.5, 40.5), (-3.5, 80.5)]) / 64
    moved = refine(points, heat) * 64
    np.testing.assert_allclose(moved, [(13, 10), (12, 10), (40.5, 40.5), (-3.5, 80.5)], atol=1e-3)


def test_the_heat_map_ends_at_its_border():
    heat = np.full((64, 64, 1), -20.0)
    heat[0, 0] = heat[63, 63] = 20
    np.testing.assert_allclose(refine(np.array([(0.5, 1.5)]) / 64, heat), [(0, 0)], atol=1e-3)


def test_networks_equal_the_published_outputs(pose_files):
    if not PUBLISHED.is_file():
        pytest.skip("the published outputs (../shared/fixtures/pose) are not here")
    for name, content, side, shapes in (
        ("pose_detection", pose_files.detection, 224, DETECTION_SHAPES),
        ("pose_landmark_full", pose_files.landmarks, 256, LANDMARK_SHAPES),
    ):
        network = Network(content, name, side, shapes, threads=2)
        expected = dict(np.load(PUBLISHED))
        for i, output in enumerate(network(expected[f"{name}.in"])):
            suffix = f"Identity_{i}" if i else "Identity"
            np.testing.assert_allclose(output, expected[f"{name}.{suffix}"], atol=1e-3, rtol=1e-3)


def test_files_that_are_other_networks_are_refused(pose_files):
    with pytest.raises(InputError, match=r"expected a network of detection with the shapes .*224.* found .*256"):
        PoseNetworks(PoseFiles(pose_files.landmarks, pose_files.landmarks))


def test_damaged_networks_are_refused(pose_files):
    damaged = pose_files.detection[:8] + b"\xff" * 4096
    with pytest.raises(InputError, match="LiteRT cannot run the network of detection"):
        PoseNetworks(PoseFiles(damaged, pose_files.landmarks))
