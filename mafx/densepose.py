"""DensePose renders: the palette of MagicAnimate's training data, and whether a motion video has it.

A render draws detectron2's fine segmentation (0 background, 1..24 body parts) with the viridis colour map on a canvas of viridis' first colour. Wrong
colours are the most frequent cause of bad animations, and a glance does not show them.
"""

import dataclasses

import numpy as np

PARTS = 25  # with the background

# Viridis at trunc(label * 255 / 24).
PALETTE = np.array(
    [
        (68, 1, 84), (71, 16, 99), (72, 31, 112), (71, 44, 122), (68, 57, 131),
        (64, 70, 136), (59, 81, 139), (54, 93, 141), (49, 104, 142), (44, 113, 142),
        (40, 124, 142), (37, 133, 142), (33, 144, 141), (31, 154, 138), (32, 163, 134),
        (39, 173, 129), (53, 183, 121), (70, 192, 111), (92, 200, 99), (115, 208, 86),
        (142, 214, 69), (170, 220, 50), (197, 224, 33), (226, 228, 24), (253, 231, 37),
    ],
    np.uint8,
)  # fmt: skip
BACKGROUND = tuple(int(x) for x in PALETTE[0])

# What a label becomes when the picture is flipped left to right.
FLIPPED = np.array([0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15, 18, 17, 20, 19, 22, 21, 24, 23])

TOLERANCE = 8  # per channel; video compression moves colours by about 6
FITTING = 0.75  # of the pixels; published driving videos have 0.89 to 0.95 within 6
DARK = 24


def draw_labels(labels: np.ndarray) -> np.ndarray:
    """Labels of any shape, 0..24 -> colours with a last axis of 3, uint8."""
    return PALETTE[labels]


def read_labels(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours `... 3`, uint8 -> the nearest label of each pixel and its distance, the largest difference of a channel."""
    packed = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    found, where = np.unique(
        packed, return_inverse=True
    )  # renders have few colours: ten times as fast as to look at every pixel
    found = (found[:, None] >> np.array([16, 8, 0])).astype(np.uint8)
    distance = np.abs(found[:, None].astype(np.int16) - PALETTE.astype(np.int16)).max(-1)
    return distance.argmin(-1)[where], distance.min(-1)[where]


@dataclasses.dataclass(frozen=True)
class MotionReport:
    """What `check_motion` found. `complaint` is None where the colours fit, else a sentence with what to do."""

    fitting: float  # share of pixels that have a colour of the palette
    person: float  # share of pixels that have the colour of a body part
    complaint: str | None


HOW_TO = (
    "Render detectron2's fine segmentation (apply_net.py dump) with the viridis map, alpha 1, on a canvas of RGB (68, 1, 84); "
    "mafx.densepose.PALETTE lists the 25 colours."
)


def check_motion(frames: np.ndarray) -> MotionReport:
    """Compare a motion video `f H W 3`, uint8, with the palette, on up to 16 of its frames."""
    h, w = frames.shape[1:3]
    chosen = np.unique(np.linspace(0, len(frames) - 1, 16).round().astype(int))
    pixels = frames[chosen][:, :: max(1, h // 128), :: max(1, w // 128)].reshape(-1, 3)
    labels, distance = read_labels(pixels)
    fits = distance <= TOLERANCE
    person = fits & (labels > 0)
    return MotionReport(fits.mean(), person.mean(), _complaint(pixels, fits, person))


def _complaint(pixels: np.ndarray, fits: np.ndarray, person: np.ndarray) -> str | None:
    if fits.mean() >= FITTING:
        if person.mean() >= 0.002:
            return None
        return "The motion video shows only background: DensePose found no person in it. Check the detection, or the frames chosen."
    dark = pixels.max(-1) <= DARK
    if dark.mean() > 0.2 and fits[~dark].mean() >= 0.6:
        return f"The motion video has the body parts' colours, but a black background where RGB {BACKGROUND} is expected. Paint it. {HOW_TO}"
    if (read_labels(pixels[:, ::-1])[1] <= TOLERANCE).mean() >= FITTING:
        return "The motion video has the palette with red and blue swapped. Swap its channels (BGR to RGB)."
    common = np.sort(np.unique(pixels >> 4, axis=0, return_counts=True)[1])[::-1][: 2 * PARTS].sum() / len(pixels)
    share = f"only {fits.mean():.0%} of its pixels have colours of the DensePose palette"
    if common > 0.85:
        return f"The motion video has few colours, but not these: {share}, as with another colour map or a visible background. {HOW_TO}"
    return (
        f"The motion video does not look like DensePose: {share}. A video of a person must be converted first. {HOW_TO}"
    )
