"""Whether a scan shows a whole head or a brain alone, measured."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from unscanned.volumes.intensity import head_mask

__all__ = ["looks_skull_stripped"]

_LARGEST_BRAIN_ML = 1900.0
"Brain and the fluid around it: 1,180 to 1,340 ml in the brains that this was tried on, 2,330 ml and more in heads."
_MARGIN_MM = 6.0
"Interpolation and closing blur the edge of the head by less."
_EMPTY = 1e-3
"Share of the head's 99th percentile; the noise of air is above it."
_LEAST_EMPTY = 0.9
"Share of the background."


def looks_skull_stripped(array: np.ndarray, affine: np.ndarray, head: np.ndarray | None = None) -> bool:
    """Return whether a scan shows a brain without skull and scalp.

    Two things have to come together: the background is empty, since extraction leaves no noise of air, and what is left
    has no more volume than a brain. The empty background alone does not say so: defacing and some scanners leave one
    around a whole head. The volume alone does not either: a scan may show a part of a head.

    Args:
        array: (i, j, k), any intensity scale.
        affine: (4, 4), voxel to world, mm.
        head: Mask of what is bright, as `head_mask` returns it; None computes it.

    Returns:
        False where that cannot be seen: nothing is bright, or nothing is dark.
    """
    if head is None:
        head = head_mask(array, affine)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not head.any() or head.sum() * spacing_mm.prod() / 1000 > _LARGEST_BRAIN_ML:
        return False
    # A coarse copy of large volumes will do, as for the mask.
    coarse = tuple(slice(None, None, 2 if n >= 96 else 1) for n in array.shape)
    distance_mm = ndimage.distance_transform_edt(
        ~head[coarse], [s * c.step for s, c in zip(spacing_mm, coarse, strict=True)]
    )
    background = array[coarse][distance_mm > _MARGIN_MM]
    if background.size == 0:
        return False
    empty = np.abs(background - np.median(background)) <= _EMPTY * np.percentile(array[head], 99)
    return bool(empty.mean() >= _LEAST_EMPTY)
