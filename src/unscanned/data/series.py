"""A DICOM series of MR images as slices on one grid, and a volume's voxels on those slices."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from unscanned.data.volume import Volume
from unscanned.errors import DatasetError, SettingsError

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["MR_IMAGE_STORAGE", "Series", "read_series"]

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
"SOP class of a classic MR image: one file for each slice."

_NEEDED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "SOPClassUID",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
)
_FITS_VOXELS = 0.05  # how far a corner may lie from the volume's
_EVEN_MM = 0.05  # how far a slice may lie from its place in an even stack


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one MR series with one echo time, in the order in which they lie along their normal.

    Attributes:
        slices: Their headers.
        affine: (column, row, slice) to world, mm, RAS+, (4, 4).
    """

    slices: Sequence[Dataset]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return self.slices[0].Columns, self.slices[0].Rows, len(self.slices)

    def __str__(self) -> str:
        echo = "" if math.isnan(self.echo_time_ms) else f" (echo time {self.echo_time_ms:g} ms)"
        return f"{self.slices[0].SeriesInstanceUID}{echo}"

    @property
    def echo_time_ms(self) -> float:
        """Echo time, NaN where none is stated."""
        return float(self.slices[0].get("EchoTime") or "nan")

    def onto(self, volume: Volume) -> np.ndarray | None:
        """Return the volume's voxels as (column, row, slice) of the series, or None if its grid is another one."""
        try:
            mapping = np.linalg.inv(volume.affine) @ self.affine
        except np.linalg.LinAlgError:
            return None
        axes = np.rint(mapping[:3, :3]).astype(int)
        if not (np.abs(axes).sum(0) == 1).all() or not (np.abs(axes).sum(1) == 1).all():
            return None
        order = tuple(int(axis) for axis in np.abs(axes).argmax(0))  # the volume's axis for each of the series'
        if tuple(volume.shape[axis] for axis in order) != self.shape:
            return None
        signs = axes.sum(0)
        start = np.array([volume.shape[axis] - 1 if axes[axis].sum() < 0 else 0 for axis in range(3)])
        corners = np.stack(np.meshgrid(*((0, size - 1) for size in self.shape)), -1).reshape(-1, 3)
        off = corners @ mapping[:3, :3].T + mapping[:3, 3] - (corners @ axes.T + start)
        if np.abs(off).max() > _FITS_VOXELS:
            return None
        return np.flip(volume.array.transpose(order), tuple(axis for axis in range(3) if signs[axis] < 0))


def read_series(folder: str | Path) -> list[Series]:
    """Return the MR series below a folder whose slices make an even stack, one for each echo time.

    Args:
        folder: Looked through at any depth. Files that are not DICOM, or of no use, are passed over.

    Raises:
        DatasetError: There is none.
        SettingsError: pydicom is not installed.
    """
    pydicom = _pydicom()
    folder = Path(folder)
    groups: dict[tuple[str, str], list[Dataset]] = defaultdict(list)
    lacking: dict[str, int] = defaultdict(int)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            missing = [name for name in _NEEDED if header.get(name) in (None, "")]
            group = str(header.get("SeriesInstanceUID")), f"{float(header.get('EchoTime') or 'nan'):g}"
        except Exception:  # other files lie beside DICOM files, and a damaged one may fail in any way
            lacking["that are no whole DICOM files"] += 1
            continue
        if missing or header.SOPClassUID != MR_IMAGE_STORAGE:
            lacking["without " + missing[0] if missing else f"of the class {header.SOPClassUID.name}"] += 1
            continue
        groups[group].append(header)
    found = [series for headers in groups.values() if (series := _stack(headers)) is not None]
    if not found:
        if groups:
            lacking["in series that are no even stack of parallel slices"] = sum(map(len, groups.values()))
        raise DatasetError(
            "no series of MR images",
            where=folder,
            found=", ".join(f"{count} files {reason}" for reason, count in lacking.items()) or "no files",
            expected="the folder of the DICOM files that the source scan was converted from",
            do="Enhanced, multi-frame files: convert them to classic MR images first.",
        )
    return found


def _stack(headers: list[Dataset]) -> Series | None:
    """Return the slices in order with their affine, or None if they are no even stack of parallel slices."""
    try:
        first = headers[0]
        axes = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(*axes)
        headers = sorted(headers, key=lambda header: float(np.dot(normal, header.ImagePositionPatient)))
        positions = np.array([header.ImagePositionPatient for header in headers], float)
        alike = all(
            np.allclose(header.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-4)
            and np.allclose(header.PixelSpacing, first.PixelSpacing, rtol=1e-4)
            and (header.Rows, header.Columns) == (first.Rows, first.Columns)
            for header in headers
        )
        if len(headers) > 1:
            step = (positions[-1] - positions[0]) / (len(headers) - 1)
        else:
            step = normal * float(first.get("SpacingBetweenSlices") or first.SliceThickness)
        places = positions[0] + step * np.arange(len(headers))[:, None]
        if not alike or np.abs(positions - places).max() > _EVEN_MM or np.linalg.norm(step) < _EVEN_MM:
            return None
        between_rows, between_columns = map(float, first.PixelSpacing)
        affine = np.eye(4)
        affine[:3, 0] = axes[0] * between_columns
        affine[:3, 1] = axes[1] * between_rows
        affine[:3, 2] = step
        affine[:3, 3] = positions[0]
    except (TypeError, ValueError, AttributeError):
        return None
    return Series(headers, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # DICOM's world is LPS+


def _pydicom() -> ModuleType:
    try:
        import pydicom
    except ImportError as error:
        raise SettingsError(
            "DICOM needs pydicom", found="it is not installed", do="Run: pip install pydicom"
        ) from error
    return pydicom
