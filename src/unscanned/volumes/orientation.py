"""The order and direction of a grid's axes: to RAS+ and back, by a rule that does not ask how a file stores them.

RAS+ means that the axes run to the right, to the front (anterior) and up (superior). All work on scans is done in that
order, so that a result does not depend on which of the 48 orders and directions of axes a file has.
"""

from __future__ import annotations

import itertools

import nibabel
import numpy as np

__all__ = ["from_ras", "orientation", "ras_grid", "to_ras"]

_EQUAL = 1e-5
"Two assignments of axes whose sums of cosines differ by less fit equally well; float32 affines vary by less."
_PREFERENCE = np.array([[0, 2, 4], [1, 0, 8], [3, 9, 0]]) / 10
"Decides between them: any weights do that give different assignments different sums."


def orientation(affine: np.ndarray) -> np.ndarray:
    """Return the world axis that each voxel axis lies nearest to, and its direction, as nibabel writes orientations.

    The three axes are assigned together, by the largest sum of cosines. Where two assignments fit equally well, as
    after a turn by exactly 45 degrees, one is chosen by what the RAS+ grid looks like afterwards, which is the same
    however the file stores its axes.

    Args:
        affine: (4, 4), voxel to world, mm, RAS+; not singular.

    Returns:
        (3, 2): for each voxel axis the world axis, 0 to 2, and 1 or -1.
    """
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(axes)
    cosines = left @ right  # of the nearest grid at right angles
    orders = np.array(list(itertools.permutations(range(3))))  # the voxel axis for each world axis
    fits = np.abs(cosines[np.arange(3), orders]).sum(1)
    best = orders[fits > fits.max() - _EQUAL]
    turned = [cosines[:, order] * np.sign(np.diag(cosines[:, order])) for order in best]
    order = best[np.argmax([(each * _PREFERENCE).sum() for each in turned])]
    world = np.argsort(order)
    return np.stack([world, np.where(cosines[world, np.arange(3)] < 0, -1, 1)], 1).astype(float)


def ras_grid(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and affine of a grid once its axes are put into RAS+ order and direction; no voxel moves in space.

    Args:
        shape: Voxels along i, j, k.
        affine: (4, 4), voxels to mm.
    """
    axes = orientation(affine)
    i, j, k = (shape[axis] for axis in np.argsort(axes[:, 0]))
    return (i, j, k), affine @ nibabel.orientations.inv_ornt_aff(axes, shape)


def to_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return an array on a grid with its axes in RAS+ order and direction, a view."""
    return nibabel.orientations.apply_orientation(array, orientation(affine))


def from_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return an array in RAS+ with its axes as those of the grid that `affine` is of; undoes `to_ras`."""
    back = nibabel.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], orientation(affine))
    return nibabel.orientations.apply_orientation(array, back)
