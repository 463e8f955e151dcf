"""What a contrast looks like in a head, in three numbers that need no intensity scale, no atlas and no segmentation.

They are measured in the middle of the head above the skull base, on a coarse grid, after a smooth field was divided
out. So they depend little on scanner units, voxel size, the receive field, the skull and the neck.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from scipy import ndimage
from scipy.stats import rankdata

from unscanned.volumes.intensity import head_mask
from unscanned.volumes.orientation import ras_grid, to_ras

__all__ = ["Appearance", "measure_appearance"]

_GRID_MM = 3.0
_BLUR_MM = 1.5
# Distances are in units of the head's radius in the axial plane, 60 to 90 mm. The region lies between the vertex and
# the skull base and leaves out scalp, skull and, mostly, cortex; its middle holds the ventricles.
_REGION_BELOW_VERTEX, _REGION_INWARD = (0.35, 1.15), 0.4
_MIDDLE_BELOW_VERTEX, _MIDDLE_INWARD = (0.6, 1.1), 0.6
_FEWEST_VOXELS = 1000


@dataclass(frozen=True)
class Appearance:
    """How the tissues and the fluid of a head look beside each other.

    Attributes:
        balance: (bright + dark) / (bright - dark) of the logarithmic intensities in the middle of the head, where 0 is
            the bulk of the tissue: toward 1 where the fluid is bright as in T2w, toward -1 where it is dark.
        order: Rank correlation of intensity and gradient magnitude in the bulk: negative where even tissue, white
            matter, is brighter than what lies between it and the fluid, as in T1w.
        strength: Logarithm of (bright - dark): small in PDw, where all tissues are much alike.
    """

    balance: float
    order: float
    strength: float

    @property
    def vector(self) -> np.ndarray:
        """The three numbers, (3,)."""
        return np.array(astuple(self))


def measure_appearance(array: np.ndarray, affine: np.ndarray) -> Appearance | None:
    """Return the appearance of a scan, or None where no head of usable size and contrast is found.

    Args:
        array: (i, j, k), any positive scale, background near 0; a whole head or an extracted brain.
        affine: (4, 4), voxel to world, mm, RAS+.
    """
    scan = _coarse(array, affine)
    region, middle = _zones(head_mask(scan))
    if region.sum() < _FEWEST_VOXELS or middle.sum() < _FEWEST_VOXELS / 5 or np.median(scan[region]) <= 0:
        return None
    relative, spread = _flatten(scan, region)
    dark, bright = np.percentile(relative[middle], [5, 95])
    order = _order(relative, spread, region)
    if bright - dark < 1e-3 or order is None:
        return None
    return Appearance(float((bright + dark) / (bright - dark)), order, float(np.log(bright - dark)))


def _coarse(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Bring a scan to RAS+, to one resolution whatever its voxels were, and to the coarse grid."""
    ras = to_ras(np.asarray(array, np.float32), affine)
    spacing = np.linalg.norm(ras_grid(array.shape, affine)[1][:3, :3], axis=0)
    own_blur_mm = 0.3 * spacing
    ras = ndimage.gaussian_filter(ras, np.sqrt(np.maximum(_BLUR_MM**2 - own_blur_mm**2, 0)) / spacing, truncate=3.0)
    step = _GRID_MM / spacing
    shape = np.maximum(1, np.round(np.array(ras.shape) / step)).astype(int)
    return ndimage.affine_transform(ras, step, offset=(step - 1) / 2, output_shape=tuple(shape), order=1)


def _zones(head: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the masks of the region and of its middle, from the depth in each axial slice and below the vertex."""
    area = head.sum((0, 1))
    if not area.any():
        return head, head
    # In the plane, so that a field of view that ends in the neck is not taken for a surface.
    depth = np.stack(
        [ndimage.distance_transform_edt(np.pad(plane, 1))[1:-1, 1:-1] for plane in np.moveaxis(head, 2, 0)], axis=2
    )
    vertex = int(np.flatnonzero(area > 0.02 * area.max())[-1])
    upper = depth.max((0, 1))[max(0, vertex - round(96 / _GRID_MM)) : vertex + 1]
    radius = float(np.percentile(upper, 90))
    below = (vertex - np.arange(head.shape[2])) / radius

    def zone(below_vertex: tuple[float, float], inward: float) -> np.ndarray:
        low, high = below_vertex
        return head & (depth >= inward * radius) & (below >= low) & (below <= high)

    return zone(_REGION_BELOW_VERTEX, _REGION_INWARD), zone(_MIDDLE_BELOW_VERTEX, _MIDDLE_INWARD)


def _flatten(scan: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, float]:
    """Return log intensities relative to the bulk's smooth field, 0 outside the region, and the bulk's spread."""
    values = scan[region].astype(float)
    values = np.log(np.maximum(values, 0.02 * np.median(values)))
    x = np.argwhere(region).astype(float)
    x = (x - x.mean(0)) / x.std(0).max()
    quadratic = [x[:, i] * x[:, j] for i in range(3) for j in range(i, 3)]
    design = np.stack([np.ones(len(x)), *x.T, *quadratic], axis=1)
    weight = np.ones(len(x))
    # Cauchy weights: fluid, air and lesions are outliers to the field of the bulk.
    for _ in range(15):
        fit = np.linalg.lstsq(design * weight[:, None], values * weight, rcond=None)[0]
        rest = values - design @ fit
        rest -= np.median(rest)
        spread = max(1.4826 * float(np.median(np.abs(rest))), 1e-4)
        weight = np.sqrt(1 / (1 + (rest / (2 * spread)) ** 2))
    relative = np.zeros(scan.shape)
    relative[region] = np.clip(rest, -1.6, 1.2)
    return relative, spread


def _order(relative: np.ndarray, spread: float, region: np.ndarray) -> float | None:
    far = np.abs(relative) > 4 * spread
    bulk = ndimage.binary_erosion(region, iterations=2) & (np.abs(relative) < 2.5 * spread)
    # What touches fluid is a mixture with it, and says nothing about the order of the tissues.
    bulk &= ~ndimage.binary_dilation(far)
    if bulk.sum() < _FEWEST_VOXELS / 5:
        return None
    gradient = ndimage.gaussian_gradient_magnitude(np.clip(relative, -2.5 * spread, 2.5 * spread), 1.0)
    a, b = rankdata(relative[bulk]), rankdata(gradient[bulk])
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else None
