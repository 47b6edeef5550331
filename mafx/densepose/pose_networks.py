"""The two networks of BlazePose, run by LiteRT, and what their numbers mean.

The first finds people in a whole picture. The second looks at a crop around one of them, and gives 33 landmarks, in the
picture and in metres, and the person's outline. Numbers without a remark are those of mediapipe's graphs
`modules/pose_detection/pose_detection_cpu.pbtxt` and
`modules/pose_landmark/tensors_to_pose_landmarks_and_segmentation.pbtxt`.

Paper: Bazarevsky et al., BlazePose: On-device Real-time Body Pose tracking, arXiv:2006.10204.
"""

import threading
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from mafx.densepose.pose_files import PoseFiles
from mafx.errors import InputError, refusals

DETECTION_SIDE = 224  # pixels of the first network's picture
LANDMARK_SIDE = 256  # of the second's
LANDMARKS = 39  # 33 of the body, two that say where the next crop is, four that are not used
STRIDES = ((8, 2), (16, 2), (32, 6))  # pixels between anchors, and how many lie at one place
LEAST_SCORE = 0.5  # of a detection
SAME_PERSON = 0.3  # overlap of two boxes above which detections are averaged
KERNEL = 7  # cells of the heat map around a landmark, in which it is refined
LEAST_HEAT = 0.5  # in these cells, below which it is not


class Detection(NamedTuple):
    """A person that the first network found. Coordinates are in [0, 1] of its picture, beyond it where it must guess.

    Attributes:
      box: Left, top, right and bottom of the face, `4`.
      hips: The point between the hips, `2`.
      reach: A point of the circle around `hips` that the whole person fits into, in the direction of the head, `2`.
      score: 0 to 1.
    """

    box: np.ndarray
    hips: np.ndarray
    reach: np.ndarray
    score: float


class CropLandmarks(NamedTuple):
    """What the second network found in its crop.

    Attributes:
      points: Landmarks `39 3` in units of the crop's side. z grows away from the viewer, and is 0 at the hips.
      visibility: Probability that nothing hides a landmark, `39`.
      world: Landmarks in metres `39 3`, from the point between the hips, as the crop has them.
      mask: Logits of the person, `256 256`.
      presence: Probability that there is a person.
    """

    points: np.ndarray
    visibility: np.ndarray
    world: np.ndarray
    mask: np.ndarray
    presence: float


Shape = tuple[int, ...]
DETECTION_SHAPES: tuple[Shape, ...] = ((1, 2254, 12), (1, 2254, 1))
LANDMARK_SHAPES: tuple[Shape, ...] = (
    (1, 5 * LANDMARKS), (1, 1), (1, LANDMARK_SIDE, LANDMARK_SIDE, 1), (1, 64, 64, LANDMARKS), (1, 3 * LANDMARKS),
)  # fmt: skip


class Network:
    """A file of TensorFlow Lite, ready to run, for one thread at a time: others wait."""

    def __init__(self, content: bytes, name: str, side: int, shapes: tuple[Shape, ...], threads: int):
        """Raises InputError where LiteRT cannot run the file, or its outputs have not these shapes."""
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 (slow to import)

        with refusals(f"LiteRT cannot run the network of {name}"):
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()
            inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        found = [tuple(map(int, tensor["shape"])) for tensor in (*inputs, *outputs)]
        expected = [(1, side, side, 3), *shapes]
        if found != expected:
            raise InputError(f"expected a network of {name} with the shapes {expected}, found {found}")
        self._input, self._outputs = inputs[0]["index"], [output["index"] for output in outputs]
        self._lock = threading.Lock()

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        """All outputs for a picture, float32 `1 H W 3`, in the file's order."""
        with self._lock:
            self._interpreter.set_tensor(self._input, picture)
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(index) for index in self._outputs]


class PoseNetworks:
    """Both networks."""

    def __init__(self, files: PoseFiles, threads: int = 2):
        """Raises InputError where LiteRT cannot run one of them. `threads` are LiteRT's."""
        self._detection = Network(files.detection, "detection", DETECTION_SIDE, DETECTION_SHAPES, threads)
        self._landmarks = Network(files.landmarks, "landmarks", LANDMARK_SIDE, LANDMARK_SHAPES, threads)

    def detect(self, picture: np.ndarray) -> list[Detection]:
        """Find people.

        Args:
          picture: float32 `224 224 3` in [0, 1].

        Returns:
          The surest first.
        """
        boxes, logits = self._detection(picture[None] * 2 - 1)
        return merge_detections(*decode_detections(boxes[0], logits[0, :, 0]))

    def find_landmarks(self, picture: np.ndarray) -> CropLandmarks:
        """Find the landmarks of the person in a crop, float32 `256 256 3` in [0, 1]."""
        landmarks, presence, mask, heat, world = self._landmarks(picture[None])
        landmarks = landmarks.reshape(LANDMARKS, 5)
        points = landmarks[:, :3] / LANDMARK_SIDE
        points[:, :2] = refine(points[:, :2], heat[0])
        return CropLandmarks(
            points, expit(landmarks[:, 3]), world.reshape(LANDMARKS, 3), mask[0, :, :, 0], float(presence[0, 0])
        )


# -- Detections


def anchors() -> np.ndarray:
    """Centres of the anchors in [0, 1], float32 `2254 2`, x before y."""
    layers = []
    for stride, copies in STRIDES:
        centres = (np.arange(DETECTION_SIDE // stride, dtype=np.float32) + 0.5) * stride / DETECTION_SIDE
        x, y = np.meshgrid(centres, centres)
        layers.append(np.repeat(np.stack([x.ravel(), y.ravel()], -1), copies, axis=0))
    return np.concatenate(layers)


def decode_detections(boxes: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn the first network's numbers into boxes and points.

    Args:
      boxes: `n 12`: centre, size, and four points, in pixels from the anchor.
      logits: `n`.

    Returns:
      The detections of at least `LEAST_SCORE`, `k 12`: left, top, right, bottom, and the points, in [0, 1]; and their
      scores, `k`.
    """
    scores = expit(logits)
    sure = scores >= LEAST_SCORE
    moved = boxes[sure].reshape(-1, 6, 2) / DETECTION_SIDE
    moved[:, [0, 2, 3, 4, 5]] += anchors()[sure][:, None]
    centre, size = moved[:, 0], moved[:, 1]
    corners = np.stack([centre - size / 2, centre + size / 2], axis=1)
    return np.concatenate([corners, moved[:, 2:]], axis=1).reshape(-1, 12), scores[sure]


def merge_detections(found: np.ndarray, scores: np.ndarray) -> list[Detection]:
    """Average the detections of one person, weighted by their scores (mediapipe's weighted non-maximum suppression)."""
    merged = []
    while len(scores):
        best = scores.argmax()
        same = overlap(found[best, :4], found[:, :4]) > SAME_PERSON
        same[best] = True
        mean = np.average(found[same], axis=0, weights=scores[same])
        merged.append(Detection(mean[:4], mean[4:6], mean[6:8], float(scores[best])))
        found, scores = found[~same], scores[~same]
    return merged


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (left, top, right, bottom) with `n` others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(np.prod(box[2:] - box[:2]) + areas - shared, 1e-12)


# -- Landmarks


def refine(points: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Move landmarks to the centre of the heat around them.

    Args:
      points: `n 2` in units of the crop's side.
      heat: Logits, `h w n`.

    Returns:
      `n 2`. Points outside of the crop stay, and so do those around which nothing is hot.
    """
    h, w, n = heat.shape
    cells = (points * (w, h)).astype(int)
    reach = np.arange(KERNEL) - KERNEL // 2
    columns, rows = cells[:, :1] + reach, cells[:, 1:] + reach  # n k
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None]
    at = heat[rows.clip(0, h - 1)[:, :, None], columns.clip(0, w - 1)[:, None], np.arange(n)[:, None, None]]
    hot = np.where(inside, expit(at), 0)
    total = np.maximum(hot.sum((1, 2)), 1e-9)
    x = (hot.sum(1) * columns).sum(1) / total / w
    y = (hot.sum(2) * rows).sum(1) / total / h
    moved = ((points >= 0) & (points < 1)).all(1) & (hot.max((1, 2)) >= LEAST_HEAT)
    return np.where(moved[:, None], np.stack([x, y], -1), points).astype(np.float32)
