"""What is drawn anew for each training patch, as a function of (seed, order, step, slot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["draws", "flipped", "shifted"]

TRIES = 8
"Shifts that are drawn until one leaves the patch enough of the head."


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
    """Return a few places around a patch's own, inside the volume, evenly drawn.

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


def flipped(arrays: Sequence[Any]) -> list[Any]:
    """Mirror arrays left to right, along the first of their last three axes in RAS+; None stays None."""
    return [None if array is None else np.flip(array, -3) for array in arrays]
