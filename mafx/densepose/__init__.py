"""DensePose renders: the palette of MagicAnimate's training data, and a check that a motion has it.

A render draws detectron2's fine segmentation (0 is background, 1 to 24 are body parts) with the viridis colour map, on
a canvas of viridis' first colour. Wrong colours are the most frequent cause of bad animations, and hard to see.
"""

import dataclasses
import shlex

import numpy as np

PARTS = 25  # labels, with the background

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
BACKGROUND: tuple[int, int, int] = (68, 1, 84)  # colour of label 0

# The label of each body part after the picture is flipped left to right.
FLIPPED = np.array([0, 1, 2, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15, 18, 17, 20, 19, 22, 21, 24, 23])

# JPEG's luminance and chrominance of RGB. Differences of chrominance count a quarter.
WEIGHTED_YCBCR = np.array([[1.0], [0.25], [0.25]], np.float32) * np.array(
    [[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], np.float32
)

# Limits of check_motion. Published driving videos have 0.89 to 0.95 of their pixels within 6 of a palette colour.
TOLERANCE = 8  # per channel, because video compression moves colours by about 6
FITTING = 0.75  # least share of pixels whose colours fit
PERSON = 0.002  # least share of pixels that show a body part
DARK = 24  # highest channel of a black background
DARK_BACKGROUND = 0.2  # least share of dark pixels that makes a background
DARK_FITTING = 0.6  # least share of fitting pixels before a black background
FEW_COLOURS = 0.85  # least share of pixels that have the most common colours of a label map
CHECKED_FRAMES = 16
CHECKED_SIDE = 128  # pixels; larger frames are thinned out


def draw_labels(labels: np.ndarray) -> np.ndarray:
    """Draw labels with the palette.

    Args:
      labels: Integers of any shape, 0 to 24.

    Returns:
      uint8, the shape of `labels` and a last axis of 3.
    """
    return PALETTE[labels]


def read_labels(colours: np.ndarray, palette: np.ndarray = PALETTE) -> tuple[np.ndarray, np.ndarray]:
    """Find the label whose colour is nearest to each pixel's.

    Where no colour of the palette is within `TOLERANCE`, the pixel lies at a border of body parts and its colour is a
    mixture: videos keep colours at half of the resolution. Its brightness, which they keep at full resolution, tells.

    Args:
      colours: uint8 `... 3`.
      palette: The colours of the labels, uint8 `25 3`.

    Returns:
      The labels, int64 `...`, and the distance to the nearest colour of the palette, int16 `...`: the largest
      difference of a channel.
    """
    # A render has few colours, so comparing each distinct colour once is ten times as fast as comparing every pixel.
    packed = colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    distinct, positions = np.unique(packed, return_inverse=True)
    unpacked = (distinct[:, None] >> np.array([16, 8, 0])).astype(np.uint8)
    differences = unpacked[:, None].astype(np.int16) - palette.astype(np.int16)
    distances = np.abs(differences).max(-1)
    by_brightness = np.square(differences @ WEIGHTED_YCBCR.T).sum(-1).argmin(-1)
    labels = np.where(distances.min(-1) <= TOLERANCE, distances.argmin(-1), by_brightness)
    return labels[positions], distances.min(-1)[positions]


@dataclasses.dataclass(frozen=True)
class MotionReport:
    """The result of `check_motion`.

    Attributes:
      fitting: Share of pixels that have a colour of the palette.
      person: Share of pixels that have the colour of a body part.
      complaint: None where the colours fit, else a sentence that says what to do.
    """

    fitting: float
    person: float
    complaint: str | None


class EvenSample:
    """Evenly spaced frames of a motion that is read frame by frame, for `check_motion`."""

    def __init__(self) -> None:
        self._taken: list[np.ndarray] = []
        self._seen, self._every = 0, 1

    def add(self, frame: np.ndarray) -> None:
        """Take a frame uint8 `H W 3`, or leave it out."""
        if self._seen % self._every == 0:
            self._taken.append(frame)
        self._seen += 1
        if len(self._taken) > 2 * CHECKED_FRAMES:
            self._taken, self._every = self._taken[::2], 2 * self._every

    @property
    def frames(self) -> np.ndarray:
        """At most 32 frames, the first among them, uint8 `f H W 3`."""
        return np.stack(self._taken)


def check_motion(frames: np.ndarray, name: str = "VIDEO") -> MotionReport:
    """Compare the colours of a motion with the palette, on up to 16 evenly spaced frames.

    Args:
      frames: uint8 `f H W 3`.
      name: The file that they come from, for the command that helps.

    Returns:
      How well they fit, and what to do where they do not.
    """
    h, w = frames.shape[1:3]
    chosen = np.unique(np.linspace(0, len(frames) - 1, CHECKED_FRAMES).round().astype(int))
    thinned = frames[chosen][:, :: max(1, h // CHECKED_SIDE), :: max(1, w // CHECKED_SIDE)]
    pixels = thinned.reshape(-1, 3)
    labels, distances = read_labels(pixels)
    fits = distances <= TOLERANCE
    person = fits & (labels > 0)
    return MotionReport(float(fits.mean()), float(person.mean()), _complaint(pixels, fits, person, shlex.quote(name)))


def _complaint(pixels: np.ndarray, fits: np.ndarray, person: np.ndarray, name: str) -> str | None:
    """What is wrong with pixels `p 3`, of which `fits` have palette colours and `person` those of body parts."""
    if fits.mean() >= FITTING:
        if person.mean() >= PERSON:
            return None
        return "The motion shows only background: nobody was found in it. Check the detection, or the frames chosen."
    convert = f"`python -m mafx.densepose {name} --out motion.mkv` converts it."
    dark = pixels.max(-1) <= DARK
    if DARK_BACKGROUND < dark.mean() < 1 and fits[~dark].mean() >= DARK_FITTING:
        return (
            "The motion has the body parts' colours, but a black background where "
            f"RGB {BACKGROUND} is expected. {convert}"
        )
    if (read_labels(pixels[:, ::-1])[1] <= TOLERANCE).mean() >= FITTING:
        return f"The motion has the palette with red and blue swapped. {convert}"
    share = f"only {fits.mean():.0%} of its pixels have colours of the DensePose palette"
    counts = np.unique(pixels >> 4, axis=0, return_counts=True)[1]  # 16 levels of each channel
    common = np.sort(counts)[::-1][: 2 * PARTS]
    if common.sum() / len(pixels) > FEW_COLOURS:
        return f"The motion has few colours, but not these: {share}, as with another colour map. {convert}"
    return (
        f"The motion does not look like DensePose: {share}. To animate by a video of a person, give it as --video: "
        f"`python sample.py --video {name}`."
    )
