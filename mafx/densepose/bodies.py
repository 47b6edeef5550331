"""People in ordinary pictures as DensePose labels: body parts drawn around landmarks, inside of the person's outline.

The result is approximate. The outline is a network's; the parts inside it are tapered capsules of anatomical size,
hidden by one another as their depths say, and divided into their two sides by the directions of the surface.

Axes of this module: x to the right of the picture, y up, z towards the viewer. Directions come from the landmarks in
metres, places from those in pixels.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mafx.densepose.capsules import HEAD, LABELS, Capsule, bounding_box, project
from mafx.densepose.landmarks import FPS, Pose, PoseFinder
from mafx.densepose.people import Person
from mafx.densepose.pose_files import PoseFiles
from mafx.densepose.pose_networks import PoseNetworks

# Landmarks of BlazePose, left before right where there are two.
NOSE, EYES, EARS, MOUTH = 0, (2, 5), (7, 8), (9, 10)
SHOULDERS, ELBOWS, WRISTS, LITTLE_FINGERS, INDEX_FINGERS = (11, 12), (13, 14), (15, 16), (17, 18), (19, 20)
HIPS, KNEES, ANKLES, HEELS, TOES = (23, 24), (25, 26), (27, 28), (29, 30), (31, 32)


class BodyFinder:
    """Finds people in the frames of a video and draws their body parts. The labels are approximate.

    Attributes:
      warm_up: Frames that it wants to see before the first one, to have found and smoothed people.
    """

    warm_up = 25

    def __init__(self, files: PoseFiles, people: int = 1, tracking: bool = True, fps: float = FPS):
        """Prepare both networks.

        Args:
          files: The networks.
          people: How many are found at most.
          tracking: Whether frames are a video: people are followed and smoothed. Else each one is a picture of its own.
          fps: Frames per second, for the smoothing.

        Raises:
          InputError: LiteRT cannot run one of the networks.
        """
        self._poses = PoseFinder(PoseNetworks(files), people, tracking, fps)

    def find(self, frames: Iterable[np.ndarray]) -> Iterator[list[Person]]:
        """Find the people of each frame.

        Args:
          frames: uint8 `H W 3` RGB, in the order of time. Only the one at work is held.

        Yields:
          The people of each frame, the smallest first, because they are the farthest. A score is the probability that
          there is a person, times the share of the outline and the drawn parts that they have in common.
        """
        for poses in self._poses.find(frames):
            people = map(draw_body, sorted(poses, key=pixels_per_metre))
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
        self.down = unit(self._metres[list(HIPS)].mean(0) - self._metres[list(SHOULDERS)].mean(0))
        self.front = unit(np.cross(self.down, across))
        self.left = np.cross(self.front, self.down)

    def at(self, *landmarks: int) -> np.ndarray:
        """The mean of landmarks in pixels, `3`."""
        return self._pixels[list(landmarks)].mean(0)

    def span(self, start: int, end: int) -> np.ndarray:
        """From one landmark to another, in metres."""
        return self._metres[end] - self._metres[start]

    def upright(self, low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
        """The direction from the mean of some landmarks to that of others, as long as a metre, in pixels."""
        return unit(self._metres[list(high)].mean(0) - self._metres[list(low)].mean(0)) * self.scale


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(np.linalg.norm(vector), 1e-9)


def turn(vector: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Turn a vector as the shortest turn from one unit vector to another does."""
    both = start + end
    return vector - both * (both @ vector) / max(1 + start @ end, 1e-3) + 2 * end * (start @ vector)


# -- Parts


class Size(NamedTuple):
    """Of a kind of limb, in metres.

    Attributes:
      start, end: Radii at the two ends.
      lift: How far it is moved towards the viewer, since depths are less sure than places.
      reach: Up to which distance the outline's other places belong to it: clothes and hair.
    """

    start: float
    end: float
    lift: float
    reach: float


# The trunk, the head and the arms were fitted to the first half of one clip, whose DensePose renders are known. All
# else is anatomy: the clip shows neither legs nor, clearly, hands.
SIZES = {
    "torso": Size(0.09, 0.08, 0.05, 0.04),
    "wedge": Size(0.03, 0.12, 0.05, 0.04),
    "head": Size(0.07, 0.08, 0.10, 0.01),
    "neck": Size(0.05, 0.055, 0.08, 0.04),
    "upper_arm": Size(0.042, 0.045, 0.10, 0.07),
    "lower_arm": Size(0.045, 0.026, 0.10, 0.10),
    "hand": Size(0.03, 0.04, 0.10, 0.02),
    "thigh": Size(0.085, 0.06, 0.0, 0.10),
    "shin": Size(0.058, 0.04, 0.0, 0.10),
    "foot": Size(0.04, 0.04, 0.02, 0.05),
}
SIDES = LABELS | {"wedge": LABELS["torso"]} | dict.fromkeys(("head", "neck"), (HEAD["right"], HEAD["left"]))

FLATNESS = 3.0  # of the trunk, whose front and back are wider than its sides
COLUMN_TOP, COLUMN_BOTTOM = 0.75, 0.8  # how far its columns stand from the middle, of what the joints do
WAIST, CROTCH = 0.04, 0.06  # metres above and below the hips, where columns and wedge end
FACE_TURN = 0.7  # how much of the head's turn shows in its halves
HEAD_FORWARD = 0.15  # where the head's middle is between ears and nose
CROWN = 0.04  # metres above it, from which the head is round
NECK_BOTTOM = 0.45  # where the neck begins between the shoulders and the head's middle
BEND_WEIGHT = 1.0  # of the bent elbow against how arms hang, in saying which side of an arm is its front
UPPER_AHEAD, LOWER_AHEAD = 0.8, 0.5  # how much the front belongs to an arm's inner side
PALM_WEIGHT = 1.0  # and how much the palm's side belongs to that of the lower arm
ELBOW = 0.07  # of the way from the elbow to the shoulder, where the lower arm begins
HAND_START, HAND_END = 0.3, 1.6  # of the way from the wrist to the knuckles, where the hand's capsule has its ends
THIGH_START = 0.12  # of the way from hip to knee


class Limb(NamedTuple):
    """A capsule in pixels, and how its surface is labelled.

    Attributes:
      capsule: Where it is.
      towards: The direction, `3`, that decides between the two labels of a part: the second one's side looks there.
      reach: Distance in pixels up to which the outline's other places belong to this limb.
    """

    capsule: Capsule
    towards: np.ndarray
    reach: float


def limbs_of(pose: Pose) -> list[Limb]:
    """The body parts of a pose."""
    body = Skeleton(pose)
    limbs = [*_torso(body), *_head(body)]
    for side, name in enumerate("lr"):
        limbs += [*_arm(body, side, name), *_leg(body, side, name)]
    return limbs


def _limb(body: Skeleton, part: str, start: np.ndarray, end: np.ndarray, towards: np.ndarray) -> Limb:
    """`part` is a kind of limb, with `_l` or `_r` behind it where there are two."""
    first, last, lift, reach = np.array(SIZES[part.removesuffix("_l").removesuffix("_r")]) * body.scale
    lifted = np.array([0, 0, lift])
    return Limb(Capsule(part, start + lifted, end + lifted, (first, last)), towards, reach)


def _torso(body: Skeleton) -> list[Limb]:
    """Two columns beside a middle one, which together are flat, and a wedge that reaches down between the legs."""
    chest, hips = body.at(*SHOULDERS), body.at(*HIPS)
    up = body.upright(HIPS, SHOULDERS)
    front = body.front * (1, 1, FLATNESS)
    ends = [(hips + WAIST * up, chest)]
    for shoulder, hip in zip(SHOULDERS, HIPS, strict=True):
        bottom = hips + COLUMN_BOTTOM * (body.at(hip) - hips) + WAIST * up
        ends.append((bottom, chest + COLUMN_TOP * (body.at(shoulder) - chest)))
    wedge = _limb(body, "wedge", hips - CROTCH * up, hips + WAIST * up, front)
    return [wedge, *(_limb(body, "torso", bottom, top, front) for bottom, top in ends)]


def _head(body: Skeleton) -> list[Limb]:
    """An egg between the ears, and the neck, which DensePose counts as head."""
    ears, nose, chest = body.at(*EARS), body.at(NOSE), body.at(*SHOULDERS)
    middle = ears + HEAD_FORWARD * (nose - ears)
    left = unit(body.span(EARS[1], EARS[0])) * (1, 1, FACE_TURN)
    return [
        _limb(body, "head", middle, middle + CROWN * body.upright(MOUTH, EYES), left),
        _limb(body, "neck", chest + NECK_BOTTOM * (middle - chest), middle, left),
    ]


def _arm(body: Skeleton, side: int, name: str) -> list[Limb]:
    """An arm's outer side is that of the elbow's tip and of the back of the hand."""
    shoulder, elbow, wrist = SHOULDERS[side], ELBOWS[side], WRISTS[side]
    index, little = INDEX_FINGERS[side], LITTLE_FINGERS[side]
    sign = 1 if name == "r" else -1
    upper, lower = unit(body.span(shoulder, elbow)), unit(body.span(elbow, wrist))
    bend = lower - upper * (upper @ lower)  # the upper arm's front looks to where the lower arm goes
    ahead = unit(turn(body.front, body.down, upper) + BEND_WEIGHT * bend)
    inwards = sign * np.cross(ahead, upper)
    palm = sign * unit(np.cross(body.span(wrist, index), body.span(wrist, little)))
    inner = UPPER_AHEAD * ahead + inwards
    inner_lower = turn(LOWER_AHEAD * ahead + inwards, upper, lower) + PALM_WEIGHT * palm
    joint = body.at(elbow) + ELBOW * (body.at(shoulder) - body.at(elbow))
    hand = body.at(index, little) - body.at(wrist)
    return [
        _limb(body, f"upper_arm_{name}", body.at(shoulder), joint, -inner),
        _limb(body, f"lower_arm_{name}", joint, body.at(wrist), -inner_lower),
        _limb(body, f"hand_{name}", body.at(wrist) + HAND_START * hand, body.at(wrist) + HAND_END * hand, palm),
    ]


def _leg(body: Skeleton, side: int, name: str) -> list[Limb]:
    hip, knee, ankle = HIPS[side], KNEES[side], ANKLES[side]
    upper, lower = unit(body.span(hip, knee)), unit(body.span(knee, ankle))
    front = turn(body.front, body.down, upper)
    start = body.at(hip) + THIGH_START * (body.at(knee) - body.at(hip))
    return [
        _limb(body, f"thigh_{name}", start, body.at(knee), front),
        _limb(body, f"shin_{name}", body.at(knee), body.at(ankle), turn(front, upper, lower)),
        _limb(body, f"foot_{name}", body.at(HEELS[side]), body.at(TOES[side]), front),
    ]


# -- Drawing

IN_OUTLINE = 0.62  # least probability
LARGEST_SIDE = 512  # pixels of a person's box that are drawn one by one; of larger boxes, squares of pixels are
RIM = 0.5  # how far the surface looks to the viewer, over how far sideways, where the outline is beyond its limb


class Grid(NamedTuple):
    """The places that are drawn.

    Attributes:
      box: Left, top, width and height in pixels.
      step: Distance between places; width and height are multiples of it.
    """

    box: tuple[int, int, int, int]
    step: int

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """y of the rows and x of the columns, float32."""
        left, top, width, height = self.box
        rows, columns = np.arange(height // self.step), np.arange(width // self.step)
        ys, xs = (first + self.step * steps + (self.step - 1) / 2 for first, steps in ((top, rows), (left, columns)))
        return -ys.astype(np.float32), xs.astype(np.float32)


def draw_body(pose: Pose) -> Person | None:
    """Draw the parts of a person.

    Args:
      pose: The person.

    Returns:
      The labels of the person's box, and how sure they are; None where the outline shows nobody inside of the picture.
    """
    grid = _grid(pose)
    if grid is None:
        return None
    inside = pose.crop.paste(pose.mask, grid.box, grid.step) > IN_OUTLINE
    ys, xs = grid.axes
    limbs = limbs_of(pose)
    labels = _draw(limbs, ys, xs)
    drawn = labels > 0
    labels[~inside] = 0
    _fill(labels, inside & ~drawn, limbs, ys, xs)
    agreement = (inside & drawn).sum() / max((inside | drawn).sum(), 1)
    if grid.step > 1:
        labels = labels.repeat(grid.step, axis=0).repeat(grid.step, axis=1)
    return Person(grid.box, labels, pose.presence * float(agreement))


def _grid(pose: Pose) -> Grid | None:
    """The box around a person's outline inside of the picture."""
    H, W = pose.size
    rows, columns = np.nonzero(pose.mask > IN_OUTLINE)
    if not len(rows):
        return None
    bounds = [(places.min() - 1, places.max() + 1) for places in (columns, rows)]
    corners = np.array([(x, y) for x in bounds[0] for y in bounds[1]]) / len(pose.mask)
    corners = pose.crop.to_picture(corners)
    left, top = np.clip(np.floor(corners.min(0)).astype(int), 0, (W, H)).tolist()
    right, bottom = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, (W, H)).tolist()
    if left >= right or top >= bottom:
        return None
    step = -(-max(right - left, bottom - top) // LARGEST_SIDE)
    width, height = (-(-side // step) * step for side in (right - left, bottom - top))
    return Grid((left, top, width, height), step)


def _draw(limbs: list[Limb], ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """The label of the nearest limb at each place, uint8 `h w`, 0 where there is none."""
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


def _label(limb: Limb, normals: np.ndarray) -> np.ndarray:
    """Labels `p` of places whose surface looks along `p 3`."""
    first, second = SIDES[limb.capsule.part]
    return np.where(normals @ limb.towards.astype(np.float32) > 0, second, first).astype(np.uint8)


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
        rim = np.stack([surface.dx[better], surface.dy[better], RIM * away[better]], axis=-1)
        found[better] = _label(limb, rim)
    labels[rows, columns] = found
