"""A synthetic volume as a derived MR series, marked as synthetic, beside the DICOM series that its source came from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unscanned.errors import DatasetError, VolumeError
from unscanned.files import new_folder, sha256
from unscanned.formats.sidecar import STAMP, Sidecar
from unscanned.machine.provenance import NAME
from unscanned.synthesis.sidecar import read_sidecar, read_source
from unscanned.volumes.dicom import IDENTITY, MR_IMAGE_STORAGE, SCANNER, Series, read_series
from unscanned.volumes.nifti import Volume, read_volume

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["write_dicom"]

# What a derived image shares with its source: the patient, the study, the frame of reference, the slice. All other
# elements, such as the timing of the acquisition and private ones, are not true of a synthetic image and are left out.
_SHARED = (
    *IDENTITY,
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns"),
    *("SliceThickness", "SpacingBetweenSlices"),
)
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "SliceThickness"),
)
_UNEXPLAINED = 1e-5
"""Largest share of the variance of the scan's voxels within slices that a linear function of the series' voxels may
leave unexplained. dcm2niix stores them as they are or rescaled, which leaves rounding; a second scan of the same head
leaves its noise, another head most of the variance."""


def write_dicom(
    volume: str | Path,
    source: str | Path,
    out: str | Path,
    *,
    scan: str | Path | None = None,
    series: str | None = None,
    echo_time_ms: float | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a synthetic volume as a derived MR series on the slices of the series that its source came from.

    That series is recognized by its grid and by its voxels, which must be those of the source scan up to a linear scale
    for each slice. The new series belongs to the same patient, study and frame of reference, and gets UIDs of its own,
    always the same ones from the same volume. Every file says that it is synthetic: Synthetic Data (0008,001C) is YES,
    the image type is DERIVED, the content is for research, and the series' description begins with SYNTHETIC. Voxels
    are 16-bit, with a rescale slope.

    Args:
        volume: A file that `synthesize` wrote, with its sidecar beside it.
        source: Folder of the DICOM files that the source scan was converted from; looked through at any depth.
        out: New folder for the series.
        scan: The source scan; None takes the path in the sidecar.
        series: Series Instance UID, to look at no other series.
        echo_time_ms: Echo time, to look at no other echo, ms.
        force: Take the series on the volume's grid without a look at its voxels, and say so in every file.

    Returns:
        One file for each slice.

    Raises:
        VolumeError: The volume was not made by `synthesize`, or was changed since; the source scan is not there.
        DatasetError: No series, or more than one, is that of the source scan, its voxels cannot be read, or `out` is
            there already.
        SettingsError: pydicom is not installed.
        BusyError: Another process is writing `out`.
        ResourceError: The disk is full, or nothing can be written there.

    Source:
        DICOM PS3.3: C.12.1 SOP Common, C.7.6.1 General Image, C.8.3.1 MR Image.
    """
    volume, source, out = Path(volume), Path(source), Path(out)
    synthetic = read_volume(volume, allow_constant=True)
    facts = _facts(volume)
    with warnings.catch_warnings(action="ignore"):  # pydicom's, of odd values: they quote them whole
        found = _on_grid(read_series(source), synthetic, source, series, echo_time_ms)
        if not force:
            found = _of_scan(found, read_source(volume, facts, scan))
        if len(found) > 1:
            raise DatasetError(
                f"several series {'lie on the grid of the volume' if force else 'hold the voxels of the source scan'}",
                where=source,
                found=" and ".join(map(str, found)),
                do="Name the one that the volume was made from with --series, and with --echo-time-ms among echoes.",
            )
        (chosen,) = found
        voxels = chosen.onto(synthetic)
        assert voxels is not None  # the chosen series lies on the volume's grid
        with new_folder(out) as folder:
            for number, image in enumerate(_derive(chosen, voxels, facts, is_compared=not force), 1):
                image.save_as(folder / _name(number), enforce_file_format=True)
    return [out / _name(number) for number in range(1, len(chosen.slices) + 1)]


def _name(number: int) -> str:
    return f"IM{number:04d}.dcm"


def _facts(volume: Path) -> Sidecar:
    facts = read_sidecar(volume)
    try:
        made = datetime.fromisoformat(facts.made)
        is_own = facts.synthetic and facts.sha256 == sha256(volume) and made.tzinfo is not None
    except ValueError:
        is_own = False
    if not is_own:
        raise VolumeError(
            "is not the volume that its sidecar describes",
            where=volume,
            do="Synthesize it again, so that the series can say where it came from.",
        )
    return facts


def _on_grid(
    found: Sequence[Series], volume: Volume, folder: Path, uid: str | None, echo_time_ms: float | None
) -> list[Series]:
    """Return the series on the volume's grid; at least one."""
    named = [
        series
        for series in found
        if uid in (None, str(series.slices[0].SeriesInstanceUID))
        and (echo_time_ms is None or math.isclose(series.echo_time_ms, echo_time_ms, rel_tol=1e-3))
    ]
    fitting = [series for series in named if series.onto(volume) is not None]
    if not fitting:
        raise DatasetError(
            "no series lies on the volume's grid",
            where=folder,
            found="; ".join(f"{series} with {' x '.join(map(str, series.shape))} voxels" for series in named)
            or "no series with that UID and echo time",
            expected=f"the series that {volume.path} was made from, {' x '.join(map(str, volume.shape))} voxels",
            do="Convert the series to NIfTI without resampling or cropping (dcm2niix), and synthesize from that.",
        )
    return fitting


def _of_scan(found: Sequence[Series], scan: Volume) -> list[Series]:
    """Return those of the series whose voxels are the scan's; at least one."""
    unexplained = {series: _unexplained(scan, series) for series in found}
    fitting = [series for series in found if unexplained[series] <= _UNEXPLAINED]
    if not fitting:
        raise DatasetError(
            "the series on the volume's grid is not the scan that the volume was made from",
            where=found[0].files[0].parent,
            found="; ".join(
                f"{series}, whose voxels leave {100 * share:.3g} % of the scan's variance within slices unexplained"
                for series, share in unexplained.items()
            ),
            expected=f"at most {100 * _UNEXPLAINED:g} %, for the series that {scan.path} was converted from",
            do="Give the folder of that series. If it is the right one, and the scan was changed before the synthesis "
            "(bias field, face), --force takes it without this comparison and says so in every file.",
        )
    return fitting


def _unexplained(scan: Volume, series: Series) -> float:
    """Return the share of the scan's variance within slices that no line through the series' voxels explains."""
    voxels = series.onto(scan)
    assert voxels is not None  # a synthetic volume lies on its scan's grid
    wanted, found = (array.reshape(-1, array.shape[2]).astype(np.float64) for array in (voxels, series.read_voxels()))
    wanted, found = wanted - wanted.mean(0), found - found.mean(0)
    both, squares = (wanted * found).sum(0), (found**2).sum(0)
    explained = np.divide(both**2, squares, out=np.zeros_like(both), where=squares > 0)
    return float(1 - explained.sum() / (wanted**2).sum())


def _derive(series: Series, voxels: np.ndarray, facts: Sidecar, *, is_compared: bool) -> list[Dataset]:
    """Return one image for each slice; `voxels` is (column, row, slice)."""
    from pydicom.uid import generate_uid

    stored, slope, intercept = _quantize(voxels)
    low, high = (float(value) for value in np.percentile(voxels, [0.5, 99.5]))
    first = series.slices[0]
    made = datetime.fromisoformat(facts.made)
    offset = first.get("TimezoneOffsetFromUTC")
    # Times without an offset of their own are in the source's offset, which the shared times have too.
    local = made.astimezone(datetime.strptime(offset, "%z").tzinfo if offset else None)
    notes = "" if is_compared else " The series was taken by its grid, not compared with the source scan."
    if facts.input_contrast_verified is False:
        notes += f" The source scan was not verified to be {facts.source_scans[0].contrast}."
    if facts.input_familiarity.verdict == "forced":
        notes += " The source scan is unlike those that the model was trained on."
    identity = [facts.sha256, str(first.SeriesInstanceUID), str(first.get("EchoTime")), notes]
    common: dict[str, Any] = {
        "SOPClassUID": MR_IMAGE_STORAGE,
        "SyntheticData": "YES",
        "ImageType": ["DERIVED", "SECONDARY", "OTHER"],
        "ContentQualification": "RESEARCH",
        "Modality": "MR",
        "SeriesInstanceUID": generate_uid(entropy_srcs=identity),
        "SeriesNumber": _series_number(int(first.get("SeriesNumber") or 0)),
        "SeriesDescription": f"SYNTHETIC {facts.contrast} - NOT FOR DIAGNOSIS"[:64],
        "Manufacturer": NAME,
        "ManufacturerModelName": NAME,
        "SoftwareVersions": facts.generated_by[0].version,
        "ImageComments": STAMP,
        "DerivationDescription": (
            f"{facts.contrast} made from {facts.source_scans[0].contrast} by a neural network; model sha256 "
            f"{facts.model.sha256}, volume sha256 {facts.sha256}. Research only." + notes
        ),
        "DerivationCodeSequence": [_code("synthesis", "99UNSCANNED", "MR contrast synthesized by a neural network")],
        "DerivationAlgorithmSequence": [
            _item(
                AlgorithmFamilyCodeSequence=[_code("123110", "DCM", "Artificial Intelligence")],
                AlgorithmName=NAME,
                AlgorithmVersion=facts.generated_by[0].version,
            )
        ],
        "ContributingEquipmentSequence": _equipment(first, facts, made),
        "ScanningSequence": "RM",  # research mode: no sequence acquired this
        "SequenceVariant": "NONE",
        "ScanOptions": None,
        "MRAcquisitionType": None,
        "RepetitionTime": None,
        "EchoTime": None,
        "EchoTrainLength": None,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleSlope": slope,
        "RescaleIntercept": intercept,
        "RescaleType": "US",
        "WindowCenter": f"{(low + high) / 2:.9g}",
        "WindowWidth": f"{max(high - low, 1.0):.9g}",
        "BurnedInAnnotation": "NO",
        "PositionReferenceIndicator": None,
    }
    for what in ("Series", "Content", "InstanceCreation"):
        common |= {f"{what}Date": local.strftime("%Y%m%d"), f"{what}Time": local.strftime("%H%M%S")}
    return [
        _image(header, common, stored[:, :, number].T, number + 1, generate_uid(entropy_srcs=[*identity, str(number)]))
        for number, header in enumerate(series.slices)
    ]


def _series_number(source: int) -> int:
    """Return a number after the source's: 201 for 2, as scanners number what they derive, or one beside it."""
    least, most = -(2**31), 2**31 - 1  # of the value representation IS
    fitting = (number for number in (100 * source + 1, source + 1, source - 1) if least <= number <= most)
    return next(fitting, 1)


def _image(header: Dataset, common: dict[str, Any], pixels: np.ndarray, number: int, uid: str) -> Dataset:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    image = _item(**common)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name in _SHARED:
        if name in header:
            image[name] = header[name]
    for name in _MAY_BE_EMPTY:
        image.setdefault(name, None)
    image.SOPInstanceUID = uid
    image.InstanceNumber = number
    image.SourceImageSequence = [
        _item(
            ReferencedSOPClassUID=header.SOPClassUID,
            ReferencedSOPInstanceUID=header.SOPInstanceUID,
            PurposeOfReferenceCodeSequence=[_code("121322", "DCM", "Source image for image processing operation")],
        )
    ]
    image.PixelData = np.ascontiguousarray(pixels).astype("<u2").tobytes()
    return image


def _equipment(first: Dataset, facts: Sidecar, made: datetime) -> list[Dataset]:
    """Return what contributed: the scanner as far as the source names it, and this software."""
    scanner = {name: first.get(name) for name in SCANNER if first.get(name)}
    software = _item(
        PurposeOfReferenceCodeSequence=[_code("109102", "DCM", "Processing Equipment")],
        Manufacturer=NAME,
        ManufacturerModelName=NAME,
        SoftwareVersions=facts.generated_by[0].version,
        ContributionDateTime=made.strftime("%Y%m%d%H%M%S+0000"),
        ContributionDescription=f"synthesis of {facts.contrast} by a neural network",
    )
    if not scanner:
        return [software]
    acquisition = _code("109101", "DCM", "Acquisition Equipment")
    return [_item(PurposeOfReferenceCodeSequence=[acquisition], **{"Manufacturer": None} | scanner), software]


def _quantize(voxels: np.ndarray) -> tuple[np.ndarray, str, str]:
    """Return 16-bit integers, and the slope and intercept that bring them back, as DICOM writes numbers."""
    low, high = float(voxels.min()), float(voxels.max())
    intercept = f"{low:.9g}"
    slope = f"{(high - float(intercept)) / 65535:.9g}" if high > low else "1"
    stored = np.rint((voxels.astype(np.float64) - float(intercept)) / float(slope))
    return np.clip(stored, 0, 65535).astype(np.uint16), slope, intercept


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _item(**elements: Any) -> Dataset:
    from pydicom import Dataset

    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return item
