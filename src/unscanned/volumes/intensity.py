"""From a scan's own intensities to "unit scale" (1 = a percentile inside the head) and z-scores, and exactly back."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from unscanned.errors import VolumeError
from unscanned.volumes.orientation import from_ras, to_ras

__all__ = ["UNIT_PERCENTILE", "Contrast", "Normalization", "head_mask", "head_scale", "largest_component"]


UNIT_PERCENTILE = 99.9
"Percentile inside the head that is 1 in unit scale, unless `prepare.percentile` says otherwise."


def head_mask(array: np.ndarray, affine: np.ndarray | None = None) -> np.ndarray:
    """Return the voxels of the head: the largest bright component, closed and filled.

    The threshold is a tenth of the 99th percentile of the smoothed positive intensities: air and its Rician noise lie
    below it in every MR contrast, and so does a zero background after brain extraction. Bone and air inside are filled
    slice by slice along each axis.

    Args:
        array: (i, j, k), any intensity scale, background near 0.
        affine: (4, 4), voxel to world; the mask is then the same in whatever order the axes are stored. None takes them
            as being in RAS+ order.

    Returns:
        Boolean array of the same shape; all False where nothing is brighter than the background.
    """
    if affine is not None:
        return from_ras(head_mask(to_ras(array, affine)), affine)
    # Work on a coarse copy of large volumes: the mask is smooth, and this is 8 times less work.
    step = tuple(2 if n >= 96 else 1 for n in array.shape)
    coarse = ndimage.gaussian_filter(np.asarray(array[:: step[0], :: step[1], :: step[2]], np.float32), 1.0)
    positive = coarse[coarse > 0]
    if positive.size == 0:
        return np.zeros(array.shape, bool)
    bright = coarse > 0.1 * np.percentile(positive, 99)
    padded = np.pad(largest_component(bright), 2)
    mask = ndimage.binary_closing(padded, iterations=2)[2:-2, 2:-2, 2:-2]
    for axis in range(3):
        for index in range(mask.shape[axis]):
            plane = (slice(None),) * axis + (index,)
            mask[plane] = ndimage.binary_fill_holes(mask[plane])
    for axis, s in enumerate(step):
        mask = np.repeat(mask, s, axis)
    return mask[: array.shape[0], : array.shape[1], : array.shape[2]]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask, of equal ones the first."""
    labels, count = ndimage.label(mask)
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]) if count else np.zeros(mask.shape, bool)


def head_scale(
    array: np.ndarray, mask: np.ndarray, percentile: float = UNIT_PERCENTILE, *, where: object = None
) -> float:
    """Return the intensity that becomes 1: a percentile inside the head, which a few extreme voxels cannot set.

    Args:
        array: (i, j, k), any intensity scale.
        mask: The head, as `head_mask` returns it.
        percentile: From 0 to 100.
        where: The file, for the message.

    Raises:
        VolumeError: The mask is empty, or the percentile inside it is not positive.
    """
    scale = float(np.percentile(array[mask], percentile)) if mask.any() else 0.0
    if scale <= 0:
        raise VolumeError(
            "no contrast inside the head",
            where=where,
            found=f"{int(mask.sum())} head voxels, percentile {percentile} = {scale:g}",
            expected="a head brighter than the background",
            do="Look at the file: is it a magnitude image of a head?",
        )
    return scale


@dataclass(frozen=True)
class Contrast:
    """Constants of one contrast, from the training subjects only.

    Attributes:
        scale: Median over the training scans of the intensity that became 1, in the scans' own units.
        mean: Mean of the training volumes in unit scale.
        std: Their standard deviation in unit scale.
        minimum: Their smallest voxel in unit scale: 0 for magnitude images. None where it is not known, as in models of
            older versions.
    """

    scale: float
    mean: float
    std: float
    minimum: float | None = None

    def standardize(self, unit: np.ndarray) -> np.ndarray:
        """Return z-scores of an array in unit scale."""
        return ((unit - np.float32(self.mean)) / np.float32(self.std)).astype(np.float32)

    def unit(self, z: np.ndarray) -> np.ndarray:
        """Return the unit scale of an array of z-scores."""
        return (z * np.float32(self.std) + np.float32(self.mean)).astype(np.float32)


@dataclass(frozen=True)
class Normalization:
    """The intensity constants that a model stores: how its input is scaled, and how its output is scaled back."""

    percentile: float
    source: Contrast
    target: Contrast

    def of_z_scores(self) -> dict[str, Any]:
        """Return the constants that z-scores depend on, as JSON values: what a training step sees of these."""
        content = asdict(self)
        for contrast in ("source", "target"):
            del content[contrast]["minimum"]
        return content
