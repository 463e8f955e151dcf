"""What of a head is left in an image: whole, without its face, the brain alone, or what the field of view held.

Distances, angles and shares are chosen.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from unscanned.simulation.acquisition import Axes
from unscanned.simulation.lesions import BRAIN, FLUID
from unscanned.simulation.relaxation import LESION
from unscanned.volumes.intensity import largest_component

__all__ = ["brain_mask", "deface", "draw_window"]


def brain_mask(rng: np.random.Generator, tissues: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return a mask such as brain extraction leaves: the brain, closed over its sulci, with a tight or a loose edge.

    Args:
        rng: Source of randomness.
        tissues: Index into the names of tissues, (i, j, k).
        spacing_mm: Voxel size along each axis.
    """
    brain = np.isin(tissues, BRAIN) | (tissues >= LESION)
    # A blur of 6 mm closes sulci; on a flat surface its half is the surface itself. Wide ventricles are open through
    # the cisterns below, but closed in planes.
    near = ndimage.gaussian_filter(brain.astype(np.float32), np.divide(6.0, spacing_mm), truncate=2.5)
    level = rng.uniform(0.3, 0.5)
    hull = brain | (near > level)
    for axis in range(3):
        for plane in np.moveaxis(hull, axis, 0):
            plane |= ndimage.binary_fill_holes(plane)
    return largest_component(hull & (brain | (tissues == FLUID) | (near > level + rng.uniform(0.1, 0.4))))


def deface(rng: np.random.Generator, axes: Axes, eyes_mm: np.ndarray) -> np.ndarray:
    """Return the voxels that a defacing tool keeps: those behind or above an oblique plane in front of the brain.

    Args:
        rng: Source of randomness.
        axes: Positions of the voxels, mm.
        eyes_mm: The middle of the eyes, mm.
    """
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    tilt = np.deg2rad(rng.uniform(20, 50))
    # The plane passes behind the eyes or in front of them, and leaves the forehead.
    forward = (y - eyes_mm[1] - rng.uniform(-12, 6)) * np.cos(tilt) - (z - eyes_mm[2] - rng.uniform(8, 22)) * np.sin(
        tilt
    )
    return np.asarray((forward < 0) | (z > eyes_mm[2] + 40)) & np.ones_like(x, bool)


def draw_window(rng: np.random.Generator, tissues: np.ndarray, slice_axis: int) -> tuple[slice, slice, slice]:
    """Return the part of the grid that a field of view too small for the head holds.

    Slices are missing at one or both ends of the head, or the field of view in plane is narrow.

    Args:
        rng: Source of randomness.
        tissues: Index into the names of tissues; 0 is air.
        slice_axis: Axis across the slices.
    """
    window = [slice(0, size) for size in tissues.shape]
    for axis in {slice_axis, int(rng.integers(3))}:
        inside = np.flatnonzero(tissues.any(axis=tuple(other for other in range(3) if other != axis)))
        if len(inside) == 0:
            continue
        length = inside[-1] - inside[0] + 1
        low, high = rng.uniform(0, 0.30) if axis == 2 else rng.uniform(0, 0.08), rng.uniform(0, 0.08)
        window[axis] = slice(inside[0] + int(low * length), inside[-1] + 1 - int(high * length))
    return window[0], window[1], window[2]
