"""How far a video is from the truth."""

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of uint8 videos `f H W 3`, over all their pixels or those of `mask`, `f H W`."""
    error = np.square(a.astype(np.float64) - b) / 255**2
    return float(-10 * np.log10(max(error.mean() if mask is None else error[mask].mean(), 1e-10)))
