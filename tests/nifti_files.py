"""NIfTI files of chosen facts, right and wrong, built byte by byte on nibabel's header."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

AFFINE = np.array([[-1.5, 0, 0, 30], [0, 1.25, 0, -40], [0, 0, 2, 50], [0, 0, 0, 1]])


def some_voxels(shape: tuple[int, ...] = (8, 9, 10), dtype: str = "<i2", seed: int = 0) -> np.ndarray:
    """Integers from 0 to 999 (0 to 119 for one byte), of any voxel type."""
    highest = 120 if np.dtype(dtype).itemsize == 1 else 1000
    return np.random.default_rng(seed).integers(0, highest, shape).astype(dtype)


def nifti_bytes(
    voxels: np.ndarray | None = None,
    *,
    affine: np.ndarray | None = AFFINE,
    qform: np.ndarray | None = None,
    fields: dict[str, Any] | None = None,
    tail: bytes = b"",
) -> bytes:
    """A single NIfTI-1 file.

    Args:
        voxels: The array, any number of axes; its byte order becomes the file's.
        affine: The sform; None leaves it unset.
        qform: The qform; None leaves it unset.
        fields: Header fields to overwrite at the end, right or wrong. A `vox_offset` beyond 352 moves the voxels.
        tail: Bytes behind the last voxel.
    """
    voxels = some_voxels() if voxels is None else voxels
    endianness = ">" if voxels.dtype.byteorder == ">" else "<"
    header = nibabel.Nifti1Header(endianness=endianness)
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, 1, 0
    if affine is not None:
        header.set_sform(affine, code=1)
    if qform is not None:
        header.set_qform(qform, code=1)
    for name, value in (fields or {}).items():
        header[name] = value
    with np.errstate(all="ignore"):
        offset = float(header["vox_offset"])
    gap = int(offset) - 348 if 352 <= offset < 2**20 else 4
    return header.binaryblock + bytes(gap) + voxels.tobytes("F") + tail


def write_nifti(path: Path, voxels: np.ndarray | None = None, *, level: int = 6, **facts: Any) -> Path:
    """Write the file that `nifti_bytes` describes, compressed where the name says so."""
    content = nifti_bytes(voxels, **facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, level, mtime=0) if path.name.endswith(".gz") else content)
    return path
