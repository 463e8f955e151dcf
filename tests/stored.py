"""One scan in the 48 orders and directions of axes that a file may have."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from unscanned.volumes.nifti import Volume

ORDERS = [
    np.column_stack([order, signs])
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def head(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], degrees: tuple[float, float, float]):
    """A lopsided head with noise around it, its grid turned about the world's axes."""
    index = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    radius = np.linalg.norm((index - (0.1, -0.07, 0.13)) / (0.6, 0.75, 0.7), axis=-1)
    noise = np.random.default_rng(0).uniform(0, 20, shape)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing_mm
    affine[:3, 3] = (31.7, -40.3, 12.9)
    return Volume((900 * np.clip(1.2 - radius, 0, None) + noise).astype(np.float32), affine)


def stored(volume: Volume, order: np.ndarray) -> Volume:
    """The same scan with its axes in another order and direction."""
    array = nib.orientations.apply_orientation(volume.array, order)
    return Volume(np.ascontiguousarray(array), volume.affine @ nib.orientations.inv_ornt_aff(order, volume.shape))


def back(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """An array on the grid of `stored`, on the grid that it was made of."""
    inverse = np.empty_like(order)
    inverse[order[:, 0]] = np.column_stack([range(3), order[:, 1]])
    return nib.orientations.apply_orientation(array, inverse)


def all_stored(volume: Volume) -> Iterator[tuple[np.ndarray, Volume]]:
    """Every order with the scan in it."""
    for order in ORDERS:
        yield order, stored(volume, order)
