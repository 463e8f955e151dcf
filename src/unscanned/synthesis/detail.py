"""Detail of the source where a synthetic volume comes back from a coarser grid than the scan's.

What a grid cannot hold, its interpolation cannot give back; the scan still has it, in its own contrast. How source and
target go together in detail is measured where both are known, on the model's grid, and used where the source alone is.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from unscanned.volumes.grid import Frame

__all__ = ["restore_detail"]

_SIGMA = 0.7
"Voxels of the model's grid: detail is what a Gaussian of this width takes away, and the slope is that of its window."
_NOISE = 1e-3
"Variance of detail of the source, in unit scale squared, below which it is held for noise and the slope goes to 0."


def restore_detail(where: Frame, source: np.ndarray, reduced: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Return a synthetic volume on the scan's grid, with the detail of the source that the model's grid lost.

    The volume is interpolated by cubic splines. Added is what the source lost on the same way there and back, times
    the slope of a local linear regression of the detail of the synthetic volume on that of the source:

        slope = blur(d(synthetic) d(reduced)) / (blur(d(reduced)^2) + noise),   d(x) = x - blur(x).

    It follows the guided filter, whose slope comes from all frequencies and whose output is the guide's alone; here
    the slope is that of the finest detail which both have, and the network's own output stays.

    Args:
        where: Between the scan's grid and the model's.
        source: On the scan's grid, unit scale.
        reduced: What the network saw of it: on the model's grid, unit scale.
        synthetic: What it made: on the model's grid, unit scale.

    Returns:
        float32 on the scan's grid, unit scale; outside the crop it is 0.

    References:
        K. He, J. Sun and X. Tang, Guided image filtering, IEEE TPAMI 35(6), 2013; K. He and J. Sun, Fast guided
        filter, arXiv:1505.00996, 2015.
    """
    detail = reduced - _blur(reduced)
    slope = _blur(detail * (synthetic - _blur(synthetic)))
    slope /= _blur(np.square(detail)) + np.float32(_NOISE)
    lost = source - where.interpolate(reduced, order=3)
    lost *= where.interpolate(slope, order=1)
    lost += where.interpolate(synthetic, order=3)
    return lost


def _blur(array: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.gaussian_filter(np.asarray(array, np.float32), _SIGMA, mode="nearest", truncate=3))
