"""How visible the borders of patches are in a volume that was put together from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from unscanned.errors import DatasetError
from unscanned.evaluation.metrics import Array, Mask, mse
from unscanned.volumes.patches import axis_starts

__all__ = ["border_planes", "border_ratios", "seam_index"]


def border_planes(shape: Sequence[int], patch: int, stride: int) -> list[list[int]]:
    """Return for each axis the planes where a patch of the reconstruction begins or ends.

    Plane p lies between the voxels p - 1 and p. The grid is that of `unscanned.volumes.patches.starts`, with the last
    patch moved back to end with the volume; the volume's own ends are no borders. An axis that one patch covers, or
    that is shorter and is padded to it, has none.

    Args:
        shape: Of the volume that was cut into patches.
        patch: Edge of a patch, in voxels.
        stride: Voxels between neighbouring patches, at most `patch`.

    Example:
        >>> border_planes((32, 48, 100), 32, 24)
        [[], [16, 32], [24, 32, 48, 56, 68, 80]]
    """
    return [_borders(n, patch, stride) if n > patch else [] for n in shape]


def _borders(n: int, patch: int, stride: int) -> list[int]:
    first = axis_starts(n, patch, stride)
    return sorted({*first.tolist(), *(first + patch).tolist()} - {0, n})


def seam_index(
    target: Array, synthetic: Array, mask: Mask | None = None, *, planes: Sequence[Collection[int]]
) -> float:
    """Return how much more a synthetic volume changes across some planes than elsewhere, relative to the target.

    The index is the synthetic volume's ratio of `border_ratios` divided by the target's, which removes what anatomy
    does at those planes, averaged over the axes that have both. 1 means that steps across the planes are as large, in
    proportion to all other steps, as in the target: there is no seam. 1.2 means that they are 20 % larger than the
    anatomy explains. The index at planes that are no borders tells how far it strays from 1 by chance.

    Args:
        target: Acquired volume, shape (i, j, k).
        synthetic: Synthetic volume, same shape.
        mask: Voxels to count, same shape; all when unset.
        planes: As `border_planes` returns them.

    Raises:
        DatasetError: Different shapes, a voxel that is not finite, an empty mask, or no axis with borders, with other
            planes and with a change of intensity.
    """
    mse(target, synthetic, mask)  # refuses what cannot be scored
    pairs = zip(border_ratios(target, mask, planes=planes), border_ratios(synthetic, mask, planes=planes), strict=True)
    ratios = [after / before for before, after in pairs if before and after is not None]
    if not ratios:
        raise DatasetError(
            "no patch borders to compare with other planes",
            where="seam_index",
            found=f"shape {target.shape}, {' and '.join(str(len(along)) for along in planes)} planes",
        )
    return float(np.mean(ratios))


def border_ratios(volume: Array, mask: Mask | None = None, *, planes: Sequence[Collection[int]]) -> list[float | None]:
    """Return for each axis the mean step across some planes over the mean step across all others.

    A step is |v[p] - v[p - 1]|, where both voxels lie in the mask.

    Args:
        volume: Shape (i, j, k).
        mask: Voxels to count, same shape; all when unset.
        planes: As `border_planes` returns them.

    Returns:
        1 where the planes are like all others; None where there are none, no others, or no change across those.
    """
    return [
        _border_ratio(volume, mask, axis, np.isin(np.arange(1, volume.shape[axis]), [*along]))
        for axis, along in enumerate(planes)
    ]


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
