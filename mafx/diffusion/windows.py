"""Long videos as overlapping windows: which frames go through the network together, and how their predictions are fused."""

import numpy as np

PLANS = ("closed", "open")
FUSION_WEIGHTS = ("uniform", "tapered")


def window_plan(frames: int, size: int = 16, overlap: int = 4, plan: str = "closed") -> np.ndarray:
    """Frame indices of every window, int `windows size` (one window of all frames where there are no more than `size`).

    "closed" is the published plan (`uniform` of AnimateDiff's and MagicAnimate's context.py at stride 1): a window starts every size - overlap
    frames and wraps around the end, so that the last frames meet the first. "open" never wraps: its last window ends with the last frame.
    """
    if frames < 1 or size < 1:
        raise ValueError(f"expected at least one frame and a window of at least one, found {frames} and {size}")
    if not 0 <= overlap < size:
        raise ValueError(
            f"expected an overlap of at least 0 and less than the window of {size} frames, found {overlap}"
        )
    if frames <= size:
        return np.arange(frames)[None]
    if plan == "closed":
        starts = np.arange(0, frames, size - overlap)
    elif plan == "open":
        starts = np.unique(np.minimum(np.arange(0, frames - overlap, size - overlap), frames - size))
    else:
        raise ValueError(f"window plan {plan!r} is unknown, expected one of {', '.join(PLANS)}")
    return (starts[:, None] + np.arange(size)) % frames


def fusion_weights(plan: np.ndarray, overlap: int, kind: str = "uniform") -> np.ndarray:
    """Weight of every window's prediction at each of its frames, float32 shaped as the plan; over all windows a frame's weights sum to 1.

    "uniform" averages, as published; "tapered" lets a window fade in and out linearly over the overlap, so that no frame is an abrupt border.
    """
    size = plan.shape[1]
    if kind == "uniform":
        profile = np.ones(size)
    elif kind == "tapered":
        distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1  # to the window's nearer border
        profile = np.minimum(distance / (overlap + 1), 1.0)
    else:
        raise ValueError(f"fusion weights {kind!r} are unknown, expected one of {', '.join(FUSION_WEIGHTS)}")
    total = np.bincount(plan.ravel(), weights=np.tile(profile, len(plan)))
    return (profile / total[plan]).astype(np.float32)


def pad_frames(frames: int, size: int, plan: str) -> int:
    """How many frames to sample for a video of `frames`: whole windows' worth in the closed plan, as published, else at least one window."""
    return -(-frames // size) * size if plan == "closed" else max(frames, size)


def window_borders(plan: np.ndarray) -> np.ndarray:
    """Where seams could be: bool `frames - 1`, whether a frame and the one behind it lie in different windows of a plan."""
    inside = np.zeros((len(plan), plan.max() + 1), bool)
    np.put_along_axis(inside, plan, True, axis=1)
    return (inside[:, 1:] != inside[:, :-1]).any(0)
