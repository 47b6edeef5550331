"""Long videos as overlapping windows: which frames go through the networks together, and how predictions are fused."""

import math

import numpy as np

PLANS = ("closed", "open")
FUSION_WEIGHTS = ("uniform", "tapered")


def window_plan(frames: int, size: int = 16, overlap: int = 4, plan: str = "closed") -> np.ndarray:
    """The frame indices of every window. There is one window of all frames if there are no more than `size`.

    Args:
      frames: Number of frames of the video.
      size: Frames of a window.
      overlap: Frames that neighbouring windows share.
      plan: "closed" is the published plan (`uniform` in AnimateDiff's and MagicAnimate's context.py, at stride 1): a
        window starts every size - overlap frames and wraps around the end, so that the last frames meet the first ones.
        "open" never wraps: its last window ends with the last frame.

    Returns: int `windows size`.

    Raises:
      ValueError: For numbers out of range or an unknown plan.
    """
    if frames < 1 or size < 1:
        raise ValueError(f"expected at least one frame and a window of at least one, found {frames} and {size}")
    if not 0 <= overlap < size:
        raise ValueError(f"expected an overlap from 0 to less than the window of {size} frames, found {overlap}")
    if plan not in PLANS:
        raise ValueError(f"window plan {plan!r} is unknown, expected one of {', '.join(PLANS)}")
    if frames <= size:
        return np.arange(frames)[None]
    if plan == "closed":
        starts = np.arange(0, frames, size - overlap)
    else:
        starts = np.unique(np.minimum(np.arange(0, frames - overlap, size - overlap), frames - size))
    return (starts[:, None] + np.arange(size)) % frames


def fusion_weights(plan: np.ndarray, overlap: int, kind: str = "uniform") -> np.ndarray:
    """The weight of every window's prediction at each of its frames. The weights of a frame sum to 1.

    Args:
      plan: From `window_plan`.
      overlap: Frames that neighbouring windows share.
      kind: "uniform" averages, as published. "tapered" fades a window in and out linearly over the overlap, so that no
        frame is an abrupt border.

    Returns: float32, shaped as the plan.

    Raises:
      ValueError: For an unknown kind.
    """
    size = plan.shape[1]
    if kind == "uniform":
        profile = np.ones(size)
    elif kind == "tapered":
        distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1  # to the nearer border of the window
        profile = np.minimum(distance / (overlap + 1), 1.0)
    else:
        raise ValueError(f"fusion weights {kind!r} are unknown, expected one of {', '.join(FUSION_WEIGHTS)}")
    total = np.bincount(plan.ravel(), weights=np.tile(profile, len(plan)))
    return (profile / total[plan]).astype(np.float32)


def pad_frames(frames: int, size: int, plan: str) -> int:
    """Number of frames to sample for a video of `frames`.

    The closed plan takes a multiple of the window, as published; the open plan takes at least one window.
    """
    return math.ceil(frames / size) * size if plan == "closed" else max(frames, size)


def window_borders(plan: np.ndarray) -> np.ndarray:
    """Where seams could be: bool `frames - 1`, whether a frame and the next one lie in different windows of a plan."""
    inside = np.zeros((len(plan), plan.max() + 1), bool)
    np.put_along_axis(inside, plan, True, axis=1)
    return (inside[:, 1:] != inside[:, :-1]).any(0)
