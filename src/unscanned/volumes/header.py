"""The header of a NIfTI-1 file, checked before any memory is allocated for its voxels."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass

import nibabel
import numpy as np

from unscanned.errors import VolumeError

__all__ = ["HEADER_BYTES", "IMPLAUSIBLE", "Header", "check_size", "corner_distance_mm", "corners", "parse_header"]

HEADER_BYTES = 348
IMPLAUSIBLE = "the size of the voxels is not that of a scan of a head"

_VOXEL_MM, _FIELD_MM = (0.05, 20.0), 1000.0
"Far beyond what any scanner makes of a head; memory and time for a scan grow with its field of view."
_UNITS = {1: "metres", 3: "micrometres"}

_FIRST_VOXEL_BYTE = 352
_TRANSFORM_CODES = 6
_TRANSFORM_TOLERANCE_MM = 0.1
_CONVERT = "Convert the file to a single NIfTI-1 file, for example with `nibabel.save` or `mri_convert`."

_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_REFUSED_TYPES = {1: "one bit a voxel", 128: "RGB colours", 1536: "128-bit floats", 2304: "RGBA colours"}
_REFUSED_TYPES |= dict.fromkeys((32, 1792, 2048), "complex numbers")


@dataclass(frozen=True, eq=False)
class Header:
    """The facts of a NIfTI-1 header that hold after all checks.

    Attributes:
        shape: Number of voxels along each axis, three or more axes, those behind the third possibly 1.
        dtype: Type of a stored voxel, with its byte order.
        offset: Position of the first voxel in the decompressed file, bytes.
        slope: Factor from the stored to the true intensity; 1 where the file states none.
        intercept: Added after the factor; 0 where the file states none.
        affine: float64 (4, 4), voxel to world, mm, RAS+.
        unit: The unit that the header states where that is not millimetres.
        description: What the header says of the volume, in its own words.
        warnings: What is odd and was accepted.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray
    unit: str | None = None
    description: str = ""
    warnings: tuple[str, ...] = ()


def parse_header(block: bytes) -> Header:
    """Read the 348 bytes of a NIfTI-1 header.

    Args:
        block: The first 348 bytes of the decompressed file.

    Raises:
        VolumeError: The header is not one of a single NIfTI-1 file, contradicts itself, or has no usable transform.
    """
    fields = nibabel.Nifti1Header(block, endianness=_byte_order(block), check=False)
    if bytes(fields["magic"]) != b"n+1\0":
        raise VolumeError(
            "the file is not a single NIfTI-1 file",
            found=f"magic {bytes(fields['magic'])!r}",
            expected=r"b'n+1\x00'",
            do=_CONVERT,
        )
    shape = _shape(fields)
    slope, intercept = _scaling(fields)
    affine, warnings = _affine(fields, shape)
    unit = _UNITS.get(int(fields["xyzt_units"]) & 7)
    if unit:
        warnings += (f"the header says {unit}; its numbers are taken as millimetres, as other software does",)
    description = bytes(fields["descrip"]).partition(b"\0")[0].decode("ascii", "replace")
    return Header(shape, _dtype(fields), _offset(fields), slope, intercept, affine, unit, description, warnings)


def check_size(header: Header) -> None:
    """Refuse voxels and fields of view that no scan of a head has, with the unit that their numbers are likely in.

    Raises:
        VolumeError: A voxel's edge or the field of view is far too long or short.
    """
    shape, stated = header.shape, header.unit
    spacing = np.linalg.norm(header.affine[:3, :3], axis=0)
    if _is_plausible(spacing, shape):
        return
    in_mm = {"metres": 1e3, "centimetres": 10.0, "micrometres": 1e-3, "nanometres": 1e-6}
    likely = [unit for unit, factor in in_mm.items() if _is_plausible(spacing * factor, shape)]
    unit = stated if stated in likely else next(iter(likely), None)
    do = "Export the scan again with its true voxel size."
    if unit is not None:
        says = "the header says so" if unit == stated else "they are likely in that unit"
        do = f"Write the numbers in millimetres: as {unit} ({says}) they are {_times(spacing * in_mm[unit])} mm."
    raise VolumeError(
        IMPLAUSIBLE,
        found=f"voxels of {_times(spacing)} mm, a field of view of {_times(spacing * shape[:3])} mm",
        expected=f"voxels of {_VOXEL_MM[0]:g} to {_VOXEL_MM[1]:g} mm, at most {_FIELD_MM:g} mm in all",
        do=do,
    )


def corner_distance_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return how far apart two affines put the same corner voxel of a grid, at most, in mm."""
    return float(np.linalg.norm(((first - second) @ corners(shape))[:3], axis=0).max())


def corners(shape: tuple[int, ...]) -> np.ndarray:
    """Return the eight corner voxels of a grid, (4, 8), as an affine takes them."""
    return np.array([[*corner, 1] for corner in itertools.product(*((0, size - 1) for size in shape[:3]))]).T


def _byte_order(block: bytes) -> str:
    size = {order: struct.unpack_from(f"{order}i", block)[0] for order in "<>"}
    for order, found in size.items():
        if found == HEADER_BYTES:
            return order
    is_nifti2 = 540 in size.values()
    raise VolumeError(
        "the file is NIfTI-2, which this program does not read" if is_nifti2 else "the file is not NIfTI",
        found=f"a header size of {540 if is_nifti2 else size['<']}",
        expected=HEADER_BYTES,
        do=_CONVERT,
    )


def _shape(fields: nibabel.Nifti1Header) -> tuple[int, ...]:
    dim = [int(value) for value in fields["dim"]]
    shape = tuple(dim[1 : 1 + dim[0]]) if 1 <= dim[0] <= 7 else ()
    if len(shape) < 3 or min(shape) < 1:
        raise VolumeError(
            "the header's dimensions cannot be those of a volume",
            found=f"dim = {dim}",
            expected="3 to 7 axes of 1 to 32,767 voxels",
            do="Export the scan again as one 3D volume.",
        )
    return shape


def _dtype(fields: nibabel.Nifti1Header) -> np.dtype:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in _DTYPES:
        raise VolumeError(
            "the voxels' type cannot be used",
            found=_REFUSED_TYPES.get(code, f"the unknown datatype {code}"),
            expected="integers of 8 to 64 bits, or floats of 32 or 64",
            do="Save the volume as int16 or float32.",
        )
    dtype = np.dtype(fields.endianness + _DTYPES[code])
    if bits != 8 * dtype.itemsize:
        raise VolumeError(
            "the header contradicts itself about the size of a voxel",
            found=f"bitpix {bits} with datatype {code} ({dtype.name})",
            expected=f"bitpix {8 * dtype.itemsize}",
            do="Export the scan again; this header is damaged.",
        )
    return dtype


def _offset(fields: nibabel.Nifti1Header) -> int:
    offset = float(fields["vox_offset"])
    if not (math.isfinite(offset) and offset.is_integer() and offset >= _FIRST_VOXEL_BYTE):
        raise VolumeError(
            "the header's position of the first voxel cannot be",
            found=f"vox_offset {offset:g}",
            expected=f"a whole number of at least {_FIRST_VOXEL_BYTE}",
            do="Export the scan again; this header is damaged.",
        )
    return int(offset)


def _scaling(fields: nibabel.Nifti1Header) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if (slope == 0 or math.isnan(slope)) and (intercept == 0 or math.isnan(intercept)):
        return 1.0, 0.0  # The standard's 0 and nibabel's NaN both say that no scaling is stored.
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        raise VolumeError(
            "the header's intensity scaling cannot be applied",
            found=f"slope {slope:g} with intercept {intercept:g}",
            expected="finite numbers and a slope other than 0",
            do="Export the scan again, or write its true slope and intercept into the header.",
        )
    return slope, intercept


def _is_plausible(spacing_mm: np.ndarray, shape: tuple[int, ...]) -> bool:
    low, high = _VOXEL_MM
    return bool(spacing_mm.min() >= low and spacing_mm.max() <= high and (spacing_mm * shape[:3]).max() <= _FIELD_MM)


def _times(numbers: np.ndarray) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)


def _affine(fields: nibabel.Nifti1Header, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    warnings = [
        f"{name} {int(fields[name])} is not of the standard; its transform was not used"
        for name in ("sform_code", "qform_code")
        if int(fields[name]) not in range(_TRANSFORM_CODES)
    ]
    with np.errstate(all="ignore"):
        sform = np.array(fields.get_sform(), dtype=np.float64) if _is_set(fields, "sform_code") else None
        qform = _qform(fields) if _is_set(fields, "qform_code") else None
    chosen = qform if sform is None else sform
    if chosen is None or not _is_usable(chosen):
        raise VolumeError(
            "the file does not say where its voxels lie in space"
            if chosen is None
            else "the transform from voxels to space is singular or not finite",
            found=f"sform {_text(sform)} and qform {_text(qform)}",
            expected="an invertible sform or qform",
            do="Export the scan again from DICOM, or copy the header of a scan on the same grid.",
        )
    if sform is not None and qform is not None:
        distance = corner_distance_mm(sform, qform, shape) if _is_usable(qform) else math.inf
        if distance > _TRANSFORM_TOLERANCE_MM:
            warnings.append(
                f"sform and qform differ by up to {distance:.3g} mm; the sform is used: "
                f"sform {_text(sform)}, qform {_text(qform)}"
            )
    if _is_sheared(chosen):
        warnings.append(f"the voxels' axes are not at right angles: {_text(chosen)}")
    return chosen, tuple(warnings)


def _is_set(fields: nibabel.Nifti1Header, code: str) -> bool:
    return 0 < int(fields[code]) < _TRANSFORM_CODES


def _qform(fields: nibabel.Nifti1Header) -> np.ndarray:
    if float(fields["pixdim"][0]) == 0:
        fields["pixdim"][0] = 1  # The standard's reading of a handedness that was never set.
    try:
        return np.array(fields.get_qform(), dtype=np.float64)
    except (ValueError, ArithmeticError, nibabel.spatialimages.HeaderDataError):
        return np.full((4, 4), np.nan)


def _is_usable(affine: np.ndarray) -> bool:
    if not np.isfinite(affine).all():
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(lengths.min() > 0 and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-6)


def _is_sheared(affine: np.ndarray) -> bool:
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)


def _text(affine: np.ndarray | None) -> str:
    if affine is None:
        return "not set"
    return "[" + "; ".join(" ".join(f"{value:.6g}" for value in row) for row in affine[:3]) + "]"
