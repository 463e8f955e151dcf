"""How visible the borders of patches are in a volume that was put together from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unscanned.errors import DatasetError, SettingsError
from unscanned.evaluation.metrics import Array, Mask, mse

__all__ = ["seam_index"]


def seam_index(
    target: Array,
    synthetic: Array,
    mask: Mask | None = None,
    *,
    stride: int,
    offset: tuple[int, int, int] = (0, 0, 0),
) -> float:
    """Return how much more a synthetic volume changes across patch borders than elsewhere, relative to the target.

    Patches that start every `stride` voxels, of an edge that is a multiple of it, have their borders between the voxels
    p - 1 and p for every p with (p - offset) divisible by `stride`. Along each axis,

        ratio = mean |v[p] - v[p - 1]| over border planes / the same mean over all other planes,

    where both voxels lie in the mask. The index is the ratio of the synthetic volume divided by that of the target,
    which removes what anatomy does at those planes, averaged over the axes that have borders. 1 means that there is no
    seam; 1.2 that steps across borders are 20 % larger than the anatomy explains. A last patch that was moved inwards
    to fit adds borders off this grid; they count as other planes.

    Args:
        target: Acquired volume, shape (i, j, k).
        synthetic: Synthetic volume, same shape.
        mask: Voxels to count, same shape; all when unset.
        stride: Voxels between neighbouring patches, at least 2.
        offset: Voxel of each axis at which the first patch starts; may be negative.

    Raises:
        DatasetError: Different shapes, a voxel that is not finite, an empty mask, or a region without borders or
            without any change of intensity.
        SettingsError: `stride` is smaller than 2.
    """
    if stride < 2:
        raise SettingsError("every plane is a border", where="stride", found=stride, expected="at least 2")
    mse(target, synthetic, mask)  # refuses what cannot be scored
    ratios = []
    for axis in range(target.ndim):
        border = (np.arange(1, target.shape[axis]) - offset[axis]) % stride == 0
        before, after = _border_ratio(target, mask, axis, border), _border_ratio(synthetic, mask, axis, border)
        if before is not None and after is not None and before > 0:
            ratios.append(after / before)
    if not ratios:
        raise DatasetError(
            "no patch border to look at", where="seam_index", found=f"shape {target.shape}, stride {stride}"
        )
    return float(np.mean(ratios))


def _border_ratio(volume: Array, mask: Mask | None, axis: int, border: npt.NDArray[np.bool_]) -> float | None:
    """Mean step across the border planes over the mean step across the others; None where one of them is missing."""
    others = tuple(other for other in range(volume.ndim) if other != axis)
    steps = np.abs(np.diff(np.asarray(volume, np.float32), axis=axis))
    if mask is None:
        count = np.full(border.shape, steps.size // max(border.size, 1))
        total = steps.sum(axis=others, dtype=np.float64)
    else:
        length = volume.shape[axis]
        both = np.take(mask, range(1, length), axis) & np.take(mask, range(length - 1), axis)
        count = np.count_nonzero(both, axis=others)
        total = np.sum(steps, axis=others, dtype=np.float64, where=both)
    if not count[border].sum() or not count[~border].sum() or not total[~border].sum():
        return None
    return float(total[border].sum() / count[border].sum() / (total[~border].sum() / count[~border].sum()))
