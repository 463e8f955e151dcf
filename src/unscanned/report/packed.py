"""Volumes as text in a page: rounded to levels of a stated precision, and packed so that a browser unpacks them.

A volume becomes integers, `round((value - low) / step)`. Each is predicted from its three neighbours before it, along
i, j and k; what is left is small, and gzip makes it smaller. `viewer.js` does the same backwards.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Packed", "Packing", "pack", "pack_mask", "text"]

_WHOLE_BITS = (12, 11, 10, 9, 8)
"Bits of a level that are tried while the whole grid is kept, the finest first; more would store a scan's noise."
_INSIDE_BITS = (8, 7, 6)
"Bits that are tried once only the head is kept. Below 64 levels a picture shows steps."
_EVERY = 8
"One slice of so many is looked at to foretell a packed size."


@dataclass(frozen=True)
class Packed:
    """A volume as text.

    Attributes:
        data: gzip, base64: for each voxel, i fastest, the difference of its level from the prediction, folded to
            0, -1, 1, -2, ...; first the low bytes of all, then the high bytes.
        shape: Voxels along i, j, k.
        low: Value of level 0.
        step: Value between two levels.
        error: No voxel is off by more than this.
    """

    data: str
    shape: tuple[int, int, int]
    low: float
    step: float
    error: float


@dataclass(frozen=True)
class Packing:
    """Volumes that were packed together.

    Attributes:
        volumes: By name, those that had room.
        bits: Bits of a level.
        inside_only: Whether only the voxels of the mask were kept.
        left_out: Names of those that had none.
        wanted_bytes: What all would have taken at the coarsest precision, where any was left out.
    """

    volumes: Mapping[str, Packed]
    bits: int
    inside_only: bool
    left_out: Sequence[str]
    wanted_bytes: int


def pack(volumes: Mapping[str, np.ndarray], limit_bytes: int, mask: np.ndarray | None = None) -> Packing:
    """Pack volumes at the finest precision at which they fit together.

    The whole grid is kept from 12 bits a voxel down to 8; whole numbers of up to 16 bits stay what they are where there
    is room. Where that is too much, the voxels outside the mask are dropped, and the levels become coarser, down to 6
    bits. Where that is too much still, volumes are left out, the last ones first.

    Args:
        volumes: By name, in the order of their importance; (i, j, k) float32, finite.
        limit_bytes: Room for the text of all of them.
        mask: Voxels that matter, for volumes on one grid; the whole grid is kept when unset.
    """
    tries = [(bits, False) for bits in _WHOLE_BITS]
    tries += [(bits, mask is not None) for bits in _INSIDE_BITS if mask is not None or bits < min(_WHOLE_BITS)]
    kept = dict(volumes)
    wanted = 0
    while kept:
        for bits, inside_only in tries:
            inside = mask if inside_only else None
            if sum(_foretold(array, bits, inside) for array in kept.values()) > 1.05 * limit_bytes:
                continue
            packed = {name: _pack_one(array, bits, inside) for name, array in kept.items()}
            if sum(len(each.data) for each in packed.values()) <= limit_bytes:
                left_out = [name for name in volumes if name not in kept]
                return Packing(packed, bits, inside_only, left_out, wanted)
        bits, inside_only = tries[-1]
        inside = mask if inside_only else None
        if not wanted:
            wanted = sum(_foretold(array, bits, inside) for array in kept.values())
            if wanted < 2 * limit_bytes:  # near the limit a guess could stand below it
                wanted = sum(len(_pack_one(array, bits, inside).data) for array in kept.values())
        kept.popitem()
    return Packing({}, 0, False, list(volumes), wanted)


def pack_mask(mask: np.ndarray) -> str:
    """Return a mask as text: one byte a voxel, i fastest."""
    return text(mask.astype(np.uint8).tobytes("F"))


def text(content: bytes) -> str:
    """Return bytes as gzip and base64, the same text for the same bytes."""
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


def _levels(array: np.ndarray, bits: int, inside: np.ndarray | None) -> tuple[np.ndarray, float, float, float]:
    """The integers that stand for a volume, 0 outside of the mask, the value of level 0, of a step, and the error."""
    known = array if inside is None else array[inside]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    count = 2**bits - 1
    exact = 2**16 - 1 if bits == _WHOLE_BITS[0] else count
    is_whole = high - low <= exact and bool(np.all(known == np.round(known)))
    step = 1.0 if is_whole or high == low else (high - low) / count
    levels = np.round((np.asarray(array, np.float32) - np.float32(low)) / np.float32(step)).astype(np.int32)
    return levels if inside is None else np.where(inside, levels, 0), low, step, 0.0 if is_whole else step / 2


def _folded(levels: np.ndarray, below: np.ndarray) -> np.ndarray:
    """The difference of each level from the mean of its neighbours before it, folded to whole numbers from 0 on.

    Args:
        levels: (i, j, k).
        below: The same volume, one slice lower along k.
    """
    left, front = np.zeros_like(levels), np.zeros_like(levels)
    left[1:], front[:, 1:] = levels[:-1], levels[:, :-1]
    difference = levels - (left + front + below) // 3
    difference = ((difference + 2**15) & (2**16 - 1)) - 2**15  # a level is known by its 16 bits
    return np.where(difference < 0, -2 * difference - 1, 2 * difference)


def _pack_one(array: np.ndarray, bits: int, inside: np.ndarray | None) -> Packed:
    levels, low, step, error = _levels(array, bits, inside)
    below = np.zeros_like(levels)
    below[:, :, 1:] = levels[:, :, :-1]
    folded = _folded(levels, below).ravel("F")
    if inside is not None:
        folded = folded[inside.ravel("F")]
    planes = (folded & 255).astype(np.uint8).tobytes() + (folded >> 8).astype(np.uint8).tobytes()
    i, j, k = array.shape
    return Packed(text(planes), (i, j, k), low, step, error)


def _foretold(array: np.ndarray, bits: int, inside: np.ndarray | None) -> int:
    """About how many bytes of text the volume takes: the entropy of what is left of some slices."""
    chosen = np.arange(min(1, array.shape[2] - 1), array.shape[2], _EVERY)
    both = np.concatenate([chosen, np.maximum(chosen - 1, 0)])
    levels, *_ = _levels(array[:, :, both], bits, None if inside is None else inside[:, :, both])
    folded = _folded(levels[:, :, : len(chosen)], levels[:, :, len(chosen) :])
    voxels = array.size
    if inside is not None:
        folded, voxels = folded[inside[:, :, chosen]], int(inside.sum())
    counts = np.bincount(folded.ravel()) if folded.size else np.ones(1)
    shares = counts[counts > 0] / counts.sum()
    return int(voxels * float(-(shares * np.log2(shares)).sum()) / 8 * 4 / 3)
