"""Drawing of puppets, in parallel projection: pictures with smooth edges, and exact labels.

Surfaces are sampled twice as densely as pixels, so that every second sample is the centre of a pixel: it gives the
label. The colour of a pixel is the mean of the 9 samples around its centre, with the weights 1 2 1 in both directions.
"""

from typing import NamedTuple

import numpy as np

from mafx.densepose.capsules import HEAD, LABELS, along_axis, bounding_box, project
from mafx.media import Size, to_uint8
from mafx.puppets.figure import HIPS, KINDS, Body, chin_of, head_axes, stand
from mafx.puppets.looks import FLOOR, Background, Garment, Identity
from mafx.puppets.moves import Pose, Stance, rotate_yaw, stance_of

LIGHT = np.array([-0.4, 0.6, 0.7]) / np.linalg.norm([-0.4, 0.6, 0.7])  # its direction
SHADE = 0.6  # brightness where no light falls
RIM = 0.25  # how much darker surfaces are that are seen from the side
SHADOW = 0.35  # how much darker the floor is below the feet
EMBLEM = 0.075  # radius
TRUNK = 0.24  # half of the width that the trunk seems to have in the light
NOWHERE = -1  # index of the piece where the background shows
HEADS = frozenset({"head", "hair", "neck"})


def draw_puppet(identity: Identity, pose: Pose | Stance, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Draw a puppet in a pose.

    Args:
      identity: What the puppet looks like.
      pose: How it stands.
      size: Rows and columns in pixels.

    Returns:
      The picture, uint8 `H W 3`, and its DensePose labels, uint8 `H W`, 0 where the background shows.
    """
    body = _stand(identity, pose)
    ys, xs = sample_places(size)
    points = find_surface(body, ys, xs)
    labels = label_samples(points, (len(ys), len(xs)))
    layer = np.zeros((len(ys), len(xs), 4), np.float32)  # colours, and 1 where the puppet is
    layer[points.where] = np.concatenate([paint_points(identity, body, points), np.ones((len(points.x), 1))], 1)
    person = _mean_around_centres(layer)
    behind = draw_background(identity.background, body, ys[1::2], xs[1::2])
    return to_uint8(person[..., :3] + (1 - person[..., 3:]) * behind), labels[1::2, 1::2]


def label_puppet(identity: Identity, pose: Pose | Stance, size: Size) -> np.ndarray:
    """The labels that `draw_puppet` gives, without the picture, which takes most of its time."""
    ys, xs = sample_places(size)
    return label_samples(find_surface(_stand(identity, pose), ys[1::2], xs[1::2]), size)


def _stand(identity: Identity, pose: Pose | Stance) -> Body:
    return stand(identity, pose if isinstance(pose, Stance) else stance_of(pose))


# -- Which point of the puppet each sample sees


def sample_places(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """World coordinates of the rows and columns of samples, float32 `2 H + 1` and `2 W + 1`."""
    H, W = size
    half = min(H, W)  # samples that a unit is long
    ys, xs = (H - np.arange(2 * H + 1)) / half, (np.arange(2 * W + 1) - W) / half
    return ys.astype(np.float32), xs.astype(np.float32)


class Points(NamedTuple):
    """What `p` samples see of a puppet.

    Attributes:
      where: Their rows and columns, both `p`.
      x: Of the surface, in the world, `p 3`.
      own: The same in the puppet's own axes.
      normal: Of the surface, in the world, `p 3`.
      own_normal: The same in the puppet's own axes.
      along: Position along the piece, 0 to 1.
      length: Distance from the piece's start, in the puppet's own unit.
      kind: Index in `KINDS`.
      front: Label where the piece is seen from the body's front.
      back: Label where it is seen from behind.
    """

    where: tuple[np.ndarray, np.ndarray]
    x: np.ndarray
    own: np.ndarray
    normal: np.ndarray
    own_normal: np.ndarray
    along: np.ndarray
    length: np.ndarray
    kind: np.ndarray
    front: np.ndarray
    back: np.ndarray

    def are(self, *kinds: str) -> np.ndarray:
        """Which points are of some kinds, bool `p`."""
        return np.isin(self.kind, [KINDS.index(kind) for kind in kinds])


def find_surface(body: Body, ys: np.ndarray, xs: np.ndarray) -> Points:
    """The points of a puppet that samples at rows `ys` and columns `xs` see."""
    shape = len(ys), len(xs)
    depth = np.full(shape, -np.inf, np.float32)  # z of the nearest surface so far
    nearest = np.full(shape, NOWHERE)
    for i, piece in enumerate(body.pieces):
        box = bounding_box(piece, ys, xs)
        surface = project(piece, ys[box[0], None], xs[None, box[1]])
        seen = (surface.height > 0) & (surface.z > depth[box])
        depth[box][seen] = surface.z[seen]
        nearest[box][seen] = i
    rows, columns = np.nonzero(nearest != NOWHERE)
    index = nearest[rows, columns]
    x = np.stack([xs[columns], ys[rows], depth[rows, columns]], -1).astype(np.float64)

    starts = np.array([piece.start for piece in body.pieces])[index]
    ends = np.array([piece.end for piece in body.pieces])[index]
    radii = np.array([piece.radii for piece in body.pieces])[index]
    axes, along = ends - starts, along_axis(starts, ends, x[:, 1], x[:, 0])
    radius = radii[:, 0] + along * (radii[:, 1] - radii[:, 0])
    normal = (x - starts - along[:, None] * axes) / radius[:, None]
    labels = np.array([LABELS.get(piece.part, (0, 0)) for piece in body.pieces])[index]
    return Points(
        where=(rows, columns),
        x=x,
        own=body.to_own_axes(x),
        normal=normal,
        own_normal=rotate_yaw(normal, -body.stance.yaw),
        along=along,
        length=along * np.linalg.norm(axes, axis=1) / body.scale,
        kind=np.array([KINDS.index(piece.kind) for piece in body.pieces])[index],
        front=labels[:, 1],
        back=labels[:, 0],
    )


def label_samples(points: Points, shape: tuple[int, int]) -> np.ndarray:
    """DensePose's labels of all samples, uint8 of a shape, 0 where they do not see the puppet."""
    left, _, ahead = points.own_normal.T
    head = np.where(left > 0, HEAD["left"], HEAD["right"])
    labels = np.zeros(shape, np.uint8)
    labels[points.where] = np.where(points.are(*HEADS), head, np.where(ahead > 0, points.front, points.back))
    return labels


def _mean_around_centres(samples: np.ndarray) -> np.ndarray:
    """Weighted means of samples `2H+1 2W+1 c` around the centres of pixels, `H W c`."""
    rows = samples[0:-1:2] + 2 * samples[1::2] + samples[2::2]
    return (rows[:, 0:-1:2] + 2 * rows[:, 1::2] + rows[:, 2::2]) / 16


# -- What it looks like


def paint_points(identity: Identity, body: Body, points: Points) -> np.ndarray:
    """Colours of points in the light, `p 3`."""
    colour = np.empty_like(points.x)
    colour[:] = identity.skin
    for kinds, painter in _PAINTERS.items():
        chosen = points.are(*kinds)
        if chosen.any():
            colour[chosen] = painter(identity, body, _select(points, chosen))
    normal = _smooth_normals(body, points)
    light = SHADE + (1 - SHADE) * np.maximum(normal @ LIGHT, 0)
    rim = 1 - RIM * (1 - normal[:, 2]) ** 2
    return colour * (light * rim)[:, None]


def _smooth_normals(body: Body, points: Points) -> np.ndarray:
    """Normals of points in the world, `p 3`: those of the trunk as if it were a single ellipse."""
    u, _ = _on_trunk(body, points)
    side = (u / TRUNK).clip(-0.95, 0.95)
    _, up, ahead = points.own_normal.T
    own = np.stack([side, up, np.sign(ahead) * np.sqrt(1 - side**2)], -1)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    return np.where(points.are("torso", "hips")[:, None], rotate_yaw(own, body.stance.yaw), points.normal)


def _select(points: Points, chosen: np.ndarray) -> Points:
    rows, columns = points.where
    return Points((rows[chosen], columns[chosen]), *(x[chosen] for x in points[1:]))


def _paint_head(identity: Identity, body: Body, points: Points) -> np.ndarray:
    """A face: brows, eyes, nose and mouth, placed in the head's own axes."""
    left, up, ahead = head_axes(body.stance) @ (points.own - chin_of(body.stance)).T / identity.head
    across, face = np.abs(left), ahead > 0.02
    colour = np.repeat(identity.skin[None], len(points.x), 0)

    def spot(x: float, y: float, width: float, height: float) -> np.ndarray:
        return face & (((across - x) / width) ** 2 + ((up - y) / height) ** 2 < 1)

    colour[spot(0.055, 0.01, 0.024, 0.02)] = 0.8 * identity.skin + 0.2 * np.array([0.8, 0.3, 0.25])  # cheeks
    colour[face & (np.abs(left - 0.006) < 0.008) & (np.abs(up - 0.035) < 0.03)] *= 0.8  # shadow of the nose
    colour[spot(0.0, 0.008, 0.02, 0.006)] *= 0.8
    colour[spot(0.042, 0.103, 0.03, 0.009)] = 0.7 * identity.hair + 0.1 * identity.skin
    eyes = spot(0.042, 0.07, 0.024, 0.015)
    colour[eyes] = 0.95
    colour[eyes & spot(0.041, 0.07, 0.012, 0.016)] = identity.eyes
    colour[spot(0.0, -0.025, 0.036, 0.011)] = identity.lips
    return colour


def _paint_hair(identity: Identity, body: Body, points: Points) -> np.ndarray:
    """Strands."""
    strands = 1 + 0.12 * np.sin(60 * points.own[:, 0] + 25 * points.own[:, 1])
    return identity.hair * strands[:, None]


def _paint_torso(identity: Identity, body: Body, points: Points) -> np.ndarray:
    """The shirt, with a neckline and an emblem; below it the belt."""
    u, v = _on_trunk(body, points)
    colour = _paint_garment(identity.shirt, u, v, points)
    ahead = points.own_normal[:, 2]
    middle = np.hypot(u, v - 0.27) < EMBLEM
    for fabric, side in ((identity.shirt.front, ahead > 0), (identity.shirt.back, ahead <= 0)):
        if fabric.emblem:
            colour[middle & side] = fabric.second
    colour[np.hypot(u, 1.2 * (v - 0.5)) < np.where(ahead > 0, 0.1, 0.07)] = identity.skin
    if identity.sleeves == "none":
        colour[np.abs(u) > 0.17 * identity.shoulders] = identity.skin
    colour[v < 0.07] = identity.belt
    return colour


def _paint_hips(identity: Identity, body: Body, points: Points) -> np.ndarray:
    u, v = _on_trunk(body, points)
    colour = _paint_garment(identity.trousers, u, v, points)
    colour[(v > 0.035) & (v <= 0.07)] = identity.belt
    shirt = v > 0.07
    colour[shirt] = _paint_garment(identity.shirt, u, v, points)[shirt]
    return colour


def _paint_arm(identity: Identity, body: Body, points: Points) -> np.ndarray:
    """The sleeve, as far as it goes."""
    upper = points.are("upper_arm")
    reach = {"none": 0.0, "short": 0.6, "long": 2.0}[identity.sleeves]
    covered = np.where(upper, points.along, 1 + points.along) < reach
    return np.where(covered[:, None], _paint_limb(identity.shirt, points), identity.skin)


def _paint_leg(identity: Identity, body: Body, points: Points) -> np.ndarray:
    """Trousers, or shorts, with white socks."""
    colour = _paint_limb(identity.trousers, points)
    if identity.shorts:
        shin = points.are("shin")
        colour[shin | (points.along > 0.75)] = identity.skin
        colour[shin & (points.along > 0.7)] = 0.92
    return colour


def _paint_foot(identity: Identity, body: Body, points: Points) -> np.ndarray:
    """Shoes, with light soles."""
    sole = points.own_normal[:, 1] < -0.55
    return np.where(sole[:, None], 0.9, identity.shoes)


_PAINTERS = {
    ("head",): _paint_head,
    ("hair",): _paint_hair,
    ("torso",): _paint_torso,
    ("hips",): _paint_hips,
    ("upper_arm", "lower_arm"): _paint_arm,
    ("thigh", "shin"): _paint_leg,
    ("foot",): _paint_foot,
}


def _on_trunk(body: Body, points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Where points of the trunk are, across it and above the hips."""
    up = body.stance.up
    away = points.own - HIPS
    return away @ np.array([up[1], -up[0], 0.0]), away @ up


def _paint_limb(garment: Garment, points: Points) -> np.ndarray:
    left, _, ahead = points.own_normal.T
    radius = 0.06  # about that of all limbs
    return _paint_garment(garment, radius * np.arctan2(left, ahead), points.length, points)


def _paint_garment(garment: Garment, u: np.ndarray, v: np.ndarray, points: Points) -> np.ndarray:
    """Colours of a garment at `u` across and `v` along it, `p 3`."""
    front = garment.front.colour(u, v)
    if garment.back is garment.front:
        return front
    return np.where((points.own_normal[:, 2] > 0)[:, None], front, garment.back.colour(u, v))


# -- What is behind it


def draw_background(background: Background, body: Body, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """The wall, what hangs there, and the floor with the puppet's shadow, float32 `H W 3`, at rows and columns."""
    y, x = ys[:, None], xs[None]
    pixel = ys[0] - ys[1] if len(ys) > 1 else np.float32(1.0)
    across = ((x + 1) / 2).clip(0, 1)[..., None]
    wall = (1 - across) * background.left + across * background.right
    wall = (wall * (1 + 0.12 * y[..., None])).astype(np.float32)
    for kx, ky, phase, amplitude, hue in background.waves.astype(np.float32):
        wave = amplitude * np.sin(kx * x + ky * y + phase)
        wall = wall + wave[..., None] * np.cos(hue + np.arange(3, dtype=np.float32))
    for frame in background.frames:
        left, right, low, high = frame.box
        wall = _lay_over(wall, frame.border, _inside(left, right, x, pixel) * _inside(low, high, y, pixel))
        rim = min(0.03, 0.2 * (right - left))
        share = ((y - low) / (high - low)).clip(0, 1)[..., None]
        picture = (1 - share) * frame.inside[0] + share * frame.inside[1]
        cover = _inside(left + rim, right - rim, x, pixel) * _inside(low + rim, high - rim, y, pixel)
        wall = _lay_over(wall, picture, cover)
    floor = background.floor * (1 - 0.5 * (y - FLOOR))[..., None]
    sway, reach = body.stance.sway, 0.3 * body.scale
    shadow = np.exp(-(((x - sway) / reach) ** 2) - ((y - FLOOR + 0.1) / 0.06) ** 2)
    floor = floor * (1 - SHADOW * shadow)[..., None]
    skirting = _lay_over(wall, 0.6 * background.floor, _inside(FLOOR, FLOOR + 0.05, y, pixel))
    return _lay_over(skirting, floor, _inside(-np.inf, FLOOR, y, pixel)).astype(np.float32)


def _inside(low: float, high: float, x: np.ndarray, pixel: np.float32) -> np.ndarray:
    """How much of the pixels at `x` lies between two places, 0 to 1."""
    return (np.minimum(x - low, high - x) / pixel + 0.5).clip(0, 1)


def _lay_over(picture: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return picture + cover[..., None] * (colour - picture)
