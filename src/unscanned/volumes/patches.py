"""Where a patch is: the partition for training, the overlapping grid for reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["axis_starts", "cut", "starts"]

Array = TypeVar("Array", np.ndarray, "Tensor")


def starts(shape: Sequence[int], patch: int, stride: int) -> np.ndarray:
    """Return the first voxel of each patch of a grid that covers a volume with no voxel left out.

    Along each axis the patches begin at 0, stride, 2 stride, ...; the last is moved back so that it ends with the
    volume.

    Args:
        shape: (i, j, k) of the volume, no axis shorter than the patch.
        patch: Edge of the patch, in voxels.
        stride: Voxels between neighbours, at most `patch`; equal to it, the grid is the partition.

    Returns:
        (patches, 3) integers.

    Example:
        >>> len(starts((128, 224, 224), 32, 8)), len(starts((128, 224, 224), 32, 32))
        (8125, 196)
    """
    if min(shape) < patch or not 0 < stride <= patch:
        raise ValueError(f"no grid of patches: shape {tuple(shape)}, patch {patch}, stride {stride}")
    axes = [axis_starts(n, patch, stride) for n in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def axis_starts(n: int, patch: int, stride: int) -> np.ndarray:
    """Return where the patches of `starts` begin along one axis of n voxels."""
    return np.append(np.arange(0, n - patch, stride), n - patch)


def cut(volume: Array, start: Sequence[int] | np.ndarray, patch: int) -> Array:
    """Return the patch of edge `patch` that begins at `start`, of an array or a tensor (..., i, j, k), a view."""
    i, j, k = start
    return volume[..., i : i + patch, j : j + patch, k : k + patch]
