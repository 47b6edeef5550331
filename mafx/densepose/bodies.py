"""People in ordinary pictures as DensePose labels: body parts drawn where the landmarks are, inside the person's outline.

The result is approximate. The outline is a network's; the parts inside it are tapered capsules of anatomical size,
hidden by one another as their depths say, and divided into their two sides by the directions of the surface.

Axes of this module: x to the right of the picture, y up, z towards the viewer. Directions come from the landmarks in
metres, places from those in pixels.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mafx.densepose.capsules import HEAD, LABELS, Capsule, Surface, bounding_box, project
from mafx.densepose.landmarks import FPS, Pose, PoseFinder
from mafx.densepose.people import Person
from mafx.densepose.pose_files import PoseFiles
from mafx.densepose.pose_networks import PoseNetworks
from mafx.media import Size

# Landmarks of BlazePose, left before right where there are two.
NOSE, EYES, EARS, MOUTH = 0, (2, 5), (7, 8), (9, 10)
SHOULDERS, ELBOWS, WRISTS, LITTLE_FINGERS, INDEX_FINGERS = (11, 12), (13, 14), (15, 16), (17, 18), (19, 20)
HIPS, KNEES, ANKLES, HEELS, TOES = (23, 24), (25, 26), (27, 28), (29, 30), (31, 32)

LARGEST_SIDE = 512  # pixels of a person's box that are drawn one by one; in larger ones, squares of pixels
RIM = 0.5  # how far the surface looks to the viewer, over how far sideways, where an outline is beyond its limb
IN_OUTLINE = 0.62  # least probability


class Limb(NamedTuple):
    """A capsule in pixels, and how its surface is labelled.

    Attributes:
      capsule: Where it is.
      towards: The direction, `3`, that decides between the two labels of a part: the second one looks there.
      reach: Distance in pixels up to which the outline's other places belong to this limb.
    """

    capsule: Capsule
    towards: np.ndarray
    reach: float


class BodyFinder:
    """Finds people in the frames of a video and draws their body parts. The labels are approximate."""

    def __init__(self, files: PoseFiles, people: int = 1, tracking: bool = True, fps: float = FPS):
        """Prepare both networks.

        Args:
          files: The networks.
          people: How many are found at most.
          tracking: Whether frames are a video: people are followed and smoothed. Else each one is a picture of its own.
          fps: Frames per second, for the smoothing.
        """
        self._poses = PoseFinder(PoseNetworks(files), people, tracking, fps)

    def find(self, frames: Iterable[np.ndarray]) -> Iterator[list[Person]]:
        """Find the people of each frame.

        Args:
          frames: uint8 `H W 3` RGB, in the order of time. Only the one at work is held.

        Yields:
          The people of each frame, the smallest first, because they are the farthest. Scores are the network's
          probability that there is a person, times how well the drawn parts fill the outline.
        """
        sizes: list[Size] = []

        def note_size() -> Iterator[np.ndarray]:
            for frame in frames:
                sizes[:] = [frame.shape[:2]]
                yield frame

        for poses in self._poses.find(note_size()):
            people = [draw_body(pose, sizes[0]) for pose in sorted(poses, key=pixels_per_metre)]
            yield [person for person in people if person is not None]


# -- Skeleton


def pixels_per_metre(pose: Pose) -> float:
    """The scale by which the landmarks in metres fit those in pixels best."""
    seen = pose.visibility[:, None]
    metres, pixels = pose.world[:, :2], pose.points[: len(pose.world), :2]
    metres = metres - (seen * metres).sum(0) / seen.sum()
    pixels = pixels - (seen * pixels).sum(0) / seen.sum()
    return float(max((seen * metres * pixels).sum() / max((seen * metres**2).sum(), 1e-9), 1e-3))


class Skeleton:
    """Joints and directions of a pose.

    Attributes:
      scale: Pixels per metre.
      left, down, front: Directions of the trunk.
    """

    def __init__(self, pose: Pose):
        self.scale = pixels_per_metre(pose)
        self._metres = pose.world * (1, -1, -1)
        plane = pose.points[: len(pose.world), :2] * (1, -1)
        self._pixels = np.concatenate([plane, self.scale * self._metres[:, 2:]], axis=1)
        across = self.span(SHOULDERS[1], SHOULDERS[0]) + self.span(HIPS[1], HIPS[0])
        self.down = unit(self.metres(*HIPS) - self.metres(*SHOULDERS))
        self.front = unit(np.cross(self.down, across))
        self.left = np.cross(self.front, self.down)

    def at(self, *landmarks: int) -> np.ndarray:
        """The mean of landmarks in pixels, `3`."""
        return self._pixels[list(landmarks)].mean(0)

    def metres(self, *landmarks: int) -> np.ndarray:
        """The same in metres."""
        return self._metres[list(landmarks)].mean(0)

    def span(self, start: int, end: int) -> np.ndarray:
        """From one landmark to another, in metres."""
        return self._metres[end] - self._metres[start]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-9)


def turn(vector: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Turn a vector as the shortest turn from one unit vector to another does."""
    both = start + end
    return vector - both * (both @ vector) / max(1 + start @ end, 1e-3) + 2 * end * (start @ vector)


# -- Parts

# Radii at the two ends in metres, how far they are lifted towards the viewer (depths are less sure than places), and
# how far the outline's other places belong to them, for clothes and hair.
SIZES: dict[str, tuple[float, float, float, float]] = {
    "torso": (0.09, 0.08, 0.05, 0.04), "wedge": (0.03, 0.10, 0.05, 0.04),
    "head": (0.07, 0.08, 0.1, 0.01), "neck": (0.05, 0.055, 0.08, 0.04),
    "upper_arm": (0.042, 0.045, 0.1, 0.07), "lower_arm": (0.045, 0.026, 0.1, 0.1), "hand": (0.03, 0.04, 0.1, 0.02),
    "thigh": (0.085, 0.06, 0.0, 0.1), "shin": (0.058, 0.04, 0.0, 0.1), "foot": (0.04, 0.04, 0.02, 0.05),
}  # fmt: skip
SIDES = LABELS | {"wedge": LABELS["torso"]} | dict.fromkeys(("head", "neck"), (HEAD["right"], HEAD["left"]))


def limbs_of(pose: Pose) -> list[Limb]:
    """The body parts of a pose."""
    body = Skeleton(pose)
    limbs = [*_torso(body), *_head(body)]
    for side, name in enumerate("lr"):
        limbs += [*_arm(body, side, name), *_leg(body, side, name)]
    return limbs


def _limb(
    body: Skeleton, kind: str, side: str, start: np.ndarray, end: np.ndarray, towards: np.ndarray
) -> Limb:
    first, last, lift, reach = np.array(SIZES[kind]) * body.scale
    part = f"{kind}_{side}" if side else kind
    lifted = np.array([0, 0, lift])
    return Limb(Capsule(part, start + lifted, end + lifted, (first, last)), towards, reach)


def _torso(body: Skeleton) -> list[Limb]:
    """Two columns beside a middle one, which together are flat, and a wedge that reaches down between the legs."""
    chest, hips = body.at(*SHOULDERS), body.at(*HIPS)
    up = -body.scale * body.down
    front = body.front * (1, 1, FLATNESS)
    columns = [(hips + WAIST * up, chest)]
    for shoulder, hip in zip(SHOULDERS, HIPS, strict=True):
        bottom = hips + COLUMN_BOTTOM * (body.at(hip) - hips) + WAIST * up
        columns.append((bottom, chest + COLUMN_TOP * (body.at(shoulder) - chest)))
    wedge = _limb(body, "wedge", "", hips - CROTCH * up, hips + WAIST * up, front)
    return [wedge, *(_limb(body, "torso", "", bottom, top, front) for bottom, top in columns)]


COLUMN_TOP, COLUMN_BOTTOM = 0.75, 0.95  # how far the columns stand from the middle, of what the joints do
WAIST, CROTCH = 0.04, 0.06  # metres above and below the hips, where columns and wedge end
FLATNESS = 3.0  # of the trunk, whose front and back are wider than its sides


def _head(body: Skeleton) -> list[Limb]:
    """An egg between the ears, and the neck, which DensePose counts as head."""
    ears, nose, chest = body.at(*EARS), body.at(NOSE), body.at(*SHOULDERS)
    up = unit(body.metres(*EYES) - body.metres(*MOUTH)) * body.scale
    left = unit(body.span(EARS[1], EARS[0])) * (1, 1, FACE_TURN)
    middle = ears + HEAD_FORWARD * (nose - ears)
    return [
        _limb(body, "head", "", middle - CHIN * up, middle + CROWN * up, left),
        _limb(body, "neck", "", chest + NECK_BOTTOM * (middle - chest), middle, left),
    ]


FACE_TURN = 0.7  # how much of the head's turn shows in its halves
HEAD_FORWARD = 0.15  # where the head's middle is between ears and nose
CHIN, CROWN = 0.0, 0.04  # metres below and above it, from which the egg is round
NECK_BOTTOM = 0.45  # where the neck begins between the shoulders and the head's middle


def _arm(body: Skeleton, side: int, name: str) -> list[Limb]:
    """An arm's outer side is the one of its elbow and of the back of its hand."""
    shoulder, elbow, wrist = SHOULDERS[side], ELBOWS[side], WRISTS[side]
    index, little = INDEX_FINGERS[side], LITTLE_FINGERS[side]
    sign = 1 if name == "r" else -1
    upper, lower = unit(body.span(shoulder, elbow)), unit(body.span(elbow, wrist))
    bend = lower - upper * (upper @ lower)  # where the forearm goes, the upper arm's front looks
    ahead = unit(turn(body.front, body.down, upper) + BEND_WEIGHT * bend)
    inwards = sign * np.cross(ahead, upper)
    palm = sign * unit(np.cross(body.span(wrist, index), body.span(wrist, little)))
    outer = -UPPER_AHEAD * ahead - inwards
    outer_lower = -LOWER_AHEAD * turn(ahead, upper, lower) - turn(inwards, upper, lower) - PALM_WEIGHT * palm
    hand = body.at(index, little) - body.at(wrist)
    bent = body.at(elbow) + ELBOW * (body.at(shoulder) - body.at(elbow))
    return [
        _limb(body, "upper_arm", name, body.at(shoulder), bent, unit(outer)),
        _limb(body, "lower_arm", name, bent, body.at(wrist), unit(outer_lower)),
        _limb(body, "hand", name, body.at(wrist) + HAND_START * hand, body.at(wrist) + HAND_END * hand, body.front),
    ]


BEND_WEIGHT = 1.0  # of the bent elbow against how arms hang, in saying which side of an arm is its front
UPPER_AHEAD, LOWER_AHEAD = 0.8, 0.7  # how much the front belongs to the inner side
PALM_WEIGHT = 1.0
ELBOW = 0.07  # of the way from the elbow to the shoulder, where the lower arm begins
HAND_START, HAND_END = 0.3, 1.6  # of the way from the wrist to the knuckles, where the hand's capsule has its ends


def _leg(body: Skeleton, side: int, name: str) -> list[Limb]:
    hip, knee, ankle = HIPS[side], KNEES[side], ANKLES[side]
    upper, lower = unit(body.span(hip, knee)), unit(body.span(knee, ankle))
    front = turn(body.front, body.down, upper)
    start = body.at(hip) + THIGH_START * (body.at(knee) - body.at(hip))
    return [
        _limb(body, "thigh", name, start, body.at(knee), front),
        _limb(body, "shin", name, body.at(knee), body.at(ankle), turn(front, upper, lower)),
        _limb(body, "foot", name, body.at(HEELS[side]), body.at(TOES[side]), front),
    ]


THIGH_START = 0.12  # of the way from hip to knee

# -- Drawing


def draw_body(pose: Pose, size: Size) -> Person | None:
    """Draw the parts of a person.

    Args:
      pose: The person.
      size: Rows and columns of the picture.

    Returns:
      The labels of the person's box; None where the outline shows nobody inside of the picture.
    """
    box, step = _box(pose, size)
    if step == 0:
        return None
    inside = pose.crop.paste(pose.mask, box, step) > IN_OUTLINE
    left, top, width, height = box
    ys = -(top + step * np.arange(height // step) + (step - 1) / 2).astype(np.float32)
    xs = (left + step * np.arange(width // step) + (step - 1) / 2).astype(np.float32)
    limbs = limbs_of(pose)
    labels = _draw(limbs, ys, xs)
    drawn = labels > 0
    labels[~inside] = 0
    _fill(labels, inside & ~drawn, limbs, ys, xs)
    agreement = (inside & drawn).sum() / max((inside | drawn).sum(), 1)
    if step > 1:
        labels = labels.repeat(step, axis=0).repeat(step, axis=1)
    return Person(box, labels, pose.presence * float(agreement))


def _box(pose: Pose, size: Size) -> tuple[tuple[int, int, int, int], int]:
    """The box of a person's outline inside of the picture, and the distance of the pixels to draw; 0 without an outline."""
    H, W = size
    rows, columns = np.nonzero(pose.mask > IN_OUTLINE)
    if not len(rows):
        return (0, 0, 0, 0), 0
    (low_y, high_y), (low_x, high_x) = ((x.min() - 1, x.max() + 2) for x in (rows, columns))
    corners = np.array([(x, y) for x in (low_x, high_x) for y in (low_y, high_y)]) / len(pose.mask)
    corners = pose.crop.to_picture(corners)
    left, top = np.clip(np.floor(corners.min(0)).astype(int), 0, (W, H))
    right, bottom = np.clip(np.ceil(corners.max(0)).astype(int), 0, (W, H))
    width, height = right - left, bottom - top
    if width <= 0 or height <= 0:
        return (0, 0, 0, 0), 0
    step = -(-max(width, height) // LARGEST_SIDE)
    return (int(left), int(top), int(-(-width // step) * step), int(-(-height // step) * step)), int(step)


def _draw(limbs: list[Limb], ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """The label of the nearest limb at each pixel, uint8 `h w`, 0 where there is none."""
    labels = np.zeros((len(ys), len(xs)), np.uint8)
    depth = np.full(labels.shape, -np.inf, np.float32)
    for limb in limbs:
        box = bounding_box(limb.capsule, ys, xs)
        surface = project(limb.capsule, ys[box[0], None], xs[None, box[1]])
        seen = (surface.height > 0) & (surface.z > depth[box])
        if seen.any():
            depth[box][seen] = surface.z[seen]
            labels[box][seen] = _label(limb, surface.normal(seen))
    return labels


def _label(limb: Limb, normal: np.ndarray) -> np.ndarray:
    """Labels `p` of places with the unit normals `p 3`."""
    part = limb.capsule.part
    first, second = SIDES[part]
    return np.where(normal @ limb.towards.astype(np.float32) > 0, second, first).astype(np.uint8)


def _fill(labels: np.ndarray, empty: np.ndarray, limbs: list[Limb], ys: np.ndarray, xs: np.ndarray) -> None:
    """Give the places that the mask `empty` selects the label of the nearest limb, where it reaches them."""
    rows, columns = np.nonzero(empty)
    y, x = ys[rows], xs[columns]
    nearest = np.full(len(rows), np.inf, np.float32)
    found = np.zeros(len(rows), np.uint8)
    for limb in limbs:
        surface = project(limb.capsule, y, x)
        away = np.hypot(surface.dx, surface.dy)
        distance = away - surface.radius
        better = (distance < nearest) & (distance < limb.reach)
        nearest[better] = distance[better]
        rim = np.stack([surface.dx[better], surface.dy[better], RIM * away[better]], -1) / away[better, None]
        found[better] = _label(limb, rim)
    labels[rows, columns] = found
