"""What is drawn anew for each training patch, as a function of (seed, order, step, slot)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unscanned.settings import Augmentation

__all__ = ["TRIES", "Changes", "draws", "flipped", "shifted"]

TRIES = 8
"Places that are drawn until one has enough of the head."


def draws(purpose: int, *place: int) -> np.random.Generator:
    """Return the random numbers for one purpose of one patch; another purpose never changes them.

    Args:
        purpose: A number of its own.
        *place: Seed, order of the patches, step and slot in the batch.
    """
    return np.random.default_rng((*place, purpose))


def shifted(
    start: Sequence[int], shape: Sequence[int], patch: int, share: float, random: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Return a few places around a patch's own, evenly drawn; one beyond the volume's end goes back to that end.

    Args:
        start: Its first voxel along (i, j, k).
        shape: Of the volume.
        patch: Edge, in voxels.
        share: Of the edge that the shift may have.
        random: What to draw with.
    """
    most = round(share * patch)
    moves = random.integers(-most, most + 1, (TRIES, 3))
    places = np.clip(np.add(start, moves), 0, np.subtract(shape, patch))
    return [(i, j, k) for i, j, k in places.tolist()]


def flipped(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Mirror (..., i, j, k) arrays in RAS+ left to right."""
    return [np.flip(array, -3) for array in arrays]


@dataclass(frozen=True, eq=False)
class Changes:
    """What is drawn for one patch. Every part has its own numbers, so that one more changes none of the others.

    The source passes through them as through a scanner: a curve of its contrast, the receive field, slices and blur,
    noise. The target is mirrored and shares the receive field, and is else left as it is: it is what should come out.

    Attributes:
        settings: The strengths; each is the largest that is drawn.
        place: Seed, order of the patches, step and slot in the batch.
    """

    settings: Augmentation
    place: tuple[int, ...]

    def _random(self, name: str) -> np.random.Generator:
        return draws(1 + _PARTS.index(name), *self.place)

    @property
    def is_mirrored(self) -> bool:
        """Whether the patch is mirrored left to right."""
        return bool(self._random("flip").random() < self.settings.flip)

    def field(self, shape: Sequence[int], patch: int) -> np.ndarray | None:
        """Return the receive field that source and target share, for a wide patch of that shape; None: there is none.

        It is e to a polynomial of second order, between 1 - `field` and 1 / (1 - `field`).

        Args:
            shape: Of the source patch with its margin, (i, j, k).
            patch: Edge without the margin, which the field is even over.
        """
        strength = self.settings.field
        if strength == 0:
            return None
        random = self._random("field")
        i, j, k = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * 2 / patch for n in shape), indexing="ij", sparse=True)
        a = random.uniform(-1, 1, 9)
        curve = a[0] * i + a[1] * j + a[2] * k + a[3] * i * i + a[4] * j * j + a[5] * k * k
        curve = curve + a[6] * i * j + a[7] * j * k + a[8] * i * k
        most = -np.log1p(-strength) * random.random()
        return np.exp(curve * (most / np.abs(curve).max())).astype(np.float32)

    def source(self, patch: np.ndarray, field: np.ndarray | None) -> np.ndarray:
        """Return what becomes of a source patch, (i, j, k) in unit scale."""
        own = self.settings
        if own.intensity > 0:
            power = np.exp(self._random("intensity").uniform(-own.intensity, own.intensity))
            patch = np.sign(patch) * np.abs(patch) ** np.float32(power)
        if field is not None:
            patch = patch * field
        if own.resolution > 1:
            random = self._random("resolution")
            patch = _thick_slices(patch, random.uniform(1, own.resolution), int(random.integers(3)), random.random())
        if own.blur > 0:
            patch = ndimage.gaussian_filter(patch, self._random("blur").uniform(0, own.blur), mode="nearest")
        if own.noise > 0:
            random = self._random("noise")
            real, imaginary = random.standard_normal((2, *patch.shape), np.float32) * (own.noise * random.random())
            patch = np.hypot(patch + real, imaginary)
        return np.asarray(patch, np.float32)


def _thick_slices(patch: np.ndarray, thickness: float, axis: int, phase: float) -> np.ndarray:
    """Average across slices of that thickness along an axis, and interpolate between their centres."""
    n = patch.shape[axis]
    centres = np.arange(phase * thickness - thickness, n + thickness, thickness)
    places = centres[:, None] + np.linspace(-0.5, 0.5, max(3, 2 * round(thickness) + 1)) * thickness
    weights = np.zeros((len(centres), n), np.float32)  # of each voxel in each slice
    for row, inside in zip(weights, np.clip(places, 0, n - 1), strict=True):
        low = np.minimum(inside.astype(int), n - 2)
        np.add.at(row, low, 1 - (inside - low))
        np.add.at(row, low + 1, inside - low)
    weights /= weights.sum(1, keepdims=True)
    back = np.stack([np.interp(np.arange(n), centres, column) for column in weights.T], 1).astype(np.float32)
    return np.moveaxis(np.tensordot(back, patch, (1, axis)), 0, axis)


_PARTS = ("flip", "intensity", "field", "resolution", "blur", "noise")
