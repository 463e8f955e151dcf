"""Both scans of a pair on one grid, with their heads and scales: what preparation begins with, and `check` tries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unscanned.datasets.pairs import Pair
from unscanned.volumes.grid import onto_grid
from unscanned.volumes.intensity import UNIT_PERCENTILE, head_mask, head_scale
from unscanned.volumes.nifti import Volume

__all__ = ["Aligned", "align"]


@dataclass(frozen=True, eq=False)
class Aligned:
    """A pair on the source's grid.

    Attributes:
        source: (i, j, k) float32, the scan's own intensities.
        target: The same.
        head: The source's head, bool.
        source_scale: The intensity that becomes 1 in unit scale.
        target_scale: The same of the target.
    """

    source: np.ndarray
    target: np.ndarray
    head: np.ndarray
    source_scale: float
    target_scale: float


def align(
    pair: Pair, source: Volume, target: Volume, *, resample: bool = False, percentile: float = UNIT_PERCENTILE
) -> Aligned:
    """Bring the target onto the source's grid, and find the heads and scales of both.

    Args:
        pair: Whose scans these are, for messages.
        source: The source scan.
        target: The target scan.
        resample: Whether a target on another grid is resampled.
        percentile: Percentile inside the head that becomes 1.

    Raises:
        DatasetError: The two lie on different grids and `resample` is not set.
        VolumeError: There is no head in one of them.
    """
    moved = onto_grid(source, target, pair.case, resample=resample)
    head = head_mask(source.array, source.affine)
    return Aligned(
        source.array,
        moved,
        head,
        head_scale(source.array, head, percentile, where=pair.source),
        head_scale(moved, head_mask(moved, source.affine), percentile, where=pair.target),
    )
