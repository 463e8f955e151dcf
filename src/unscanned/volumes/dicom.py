"""A DICOM series of MR images as slices on one grid, and a volume's voxels on those slices."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import nibabel
import numpy as np

from unscanned.errors import DatasetError, SettingsError
from unscanned.volumes.header import corners
from unscanned.volumes.nifti import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["IDENTITY", "MR_IMAGE_STORAGE", "SCANNER", "Series", "read_series"]

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
"SOP class of a classic MR image: one file for each slice."

IDENTITY = (
    "SpecificCharacterSet",
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize"),
    *("PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod", "BodyPartExamined", "PatientPosition"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "StudyDescription"),
    *("ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator", "TimezoneOffsetFromUTC"),
)
"Elements that say whose a slice is, of which study and in which space; the same in all slices of a series."

SCANNER = ("Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber")
"Elements that name the scanner."

_NEEDED = (
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
)
_READ = (*IDENTITY, *SCANNER, *_NEEDED, "SeriesNumber", "EchoTime", "SliceThickness", "SpacingBetweenSlices")
_FITS_VOXELS = 0.05  # how far a corner may lie from the volume's
_EVEN_MM = 0.05  # how far a slice may lie from its place in an even stack


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one MR series with one echo time, in the order in which they lie along their normal.

    Attributes:
        slices: Of their headers, what is read here.
        files: Where they are.
        affine: (column, row, slice) to world, mm, RAS+, (4, 4).
    """

    slices: Sequence[Dataset]
    files: Sequence[Path]
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
            turn = nibabel.orientations.io_orientation(np.linalg.inv(self.affine) @ volume.affine)
            turned = nibabel.orientations.apply_orientation(volume.array, turn)
            affine = volume.affine @ nibabel.orientations.inv_ornt_aff(turn, volume.shape)
            off = np.linalg.inv(affine) @ self.affine - np.eye(4)  # from the series' voxels, in those of the volume
        except (np.linalg.LinAlgError, nibabel.orientations.OrientationError):
            return None
        is_other = turned.shape != self.shape or np.abs(off[:3, :3]).max() > 0.5
        return None if is_other or np.abs(off[:3] @ corners(self.shape)).max() > _FITS_VOXELS else turned

    def read_voxels(self) -> np.ndarray:
        """Return the voxels as (column, row, slice), in the series' intensities (rescale slope and intercept applied).

        Raises:
            DatasetError: Those of a file cannot be read.
        """
        from pydicom.pixels import apply_rescale

        planes = []
        for path in self.files:
            try:
                image = _pydicom().dcmread(path)
                planes.append(np.asarray(apply_rescale(image.pixel_array, image), np.float64).T)
                if planes[-1].shape != self.shape[:2]:
                    raise ValueError(f"{planes[-1].shape} voxels")
            except Exception as error:  # each of pydicom's decoders fails in its own way
                raise DatasetError(
                    "the voxels of the series cannot be read",
                    where=path,
                    found=error,
                    do="Compressed files: pip install python-gdcm. Damaged ones: get them again.",
                ) from error
        return np.stack(planes, -1)


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
    groups: dict[tuple[str, str], list[tuple[Path, Dataset]]] = defaultdict(list)
    lacking: dict[str, int] = defaultdict(int)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            header = _header(pydicom, path)
            missing = [name for name in _NEEDED if header.get(name) in (None, "")]
            group = str(header.get("SeriesInstanceUID")), f"{float(header.get('EchoTime') or 'nan'):g}"
        except Exception:  # other files lie beside DICOM files, and a damaged one may fail in any way
            lacking["that are no whole DICOM files"] += 1
            continue
        if missing or header.SOPClassUID != MR_IMAGE_STORAGE:
            lacking["without " + missing[0] if missing else f"of the class {header.SOPClassUID.name}"] += 1
            continue
        groups[group].append((path, header))
    found = [series for images in groups.values() if (series := _stack(images)) is not None]
    if not found:
        if groups:
            lacking["in series that are no even stack of parallel slices of one patient and study"] = sum(
                map(len, groups.values())
            )
        raise DatasetError(
            "no series of MR images",
            where=folder,
            found=", ".join(f"{count} files {reason}" for reason, count in lacking.items()) or "no files",
            expected="the folder of the DICOM files that the source scan was converted from",
            do="Enhanced, multi-frame files: convert them to classic MR images first.",
        )
    return found


def _header(pydicom: ModuleType, path: Path) -> Dataset:
    """Return the elements that are used, each decoded and fit to be written, so that what is damaged shows here."""
    whole = pydicom.dcmread(path, stop_before_pixels=True)
    header = pydicom.Dataset()
    for name in _READ:
        if name in whole:
            header[name] = whole[name]
    pydicom.dcmwrite(io.BytesIO(), header, implicit_vr=False, little_endian=True)
    int(header.get("SeriesNumber") or 0)
    datetime.strptime(header.get("TimezoneOffsetFromUTC") or "+0000", "%z")
    return header


def _stack(images: list[tuple[Path, Dataset]]) -> Series | None:
    """Return the slices in order with their affine, or None if they are no even stack of one patient's slices."""
    try:
        first = images[0][1]
        axes = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(*axes)
        images = sorted(images, key=lambda image: float(np.dot(normal, image[1].ImagePositionPatient)))
        files, headers = zip(*images, strict=True)
        positions = np.array([header.ImagePositionPatient for header in headers], float)
        alike = all(
            np.allclose(header.ImageOrientationPatient, first.ImageOrientationPatient, atol=1e-4)
            and np.allclose(header.PixelSpacing, first.PixelSpacing, rtol=1e-4)
            and (header.Rows, header.Columns) == (first.Rows, first.Columns)
            and all(header.get(name) == first.get(name) for name in IDENTITY)
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
        affine[:3] = np.stack([axes[0] * between_columns, axes[1] * between_rows, step, positions[0]], 1)
    except (TypeError, ValueError, AttributeError):
        return None
    return Series(headers, files, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # DICOM's world is LPS+


def _pydicom() -> ModuleType:
    try:
        import pydicom
    except ImportError as error:
        raise SettingsError(
            "DICOM needs pydicom", found="it is not installed", do="Run: pip install pydicom"
        ) from error
    return pydicom
