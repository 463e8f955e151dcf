"""A volume with its place in space, and the one reader and writer of NIfTI files.

The reader trusts no file: it checks the header's claims against a budget before it allocates memory, reads to the end
so that gzip's checksum is verified, and turns every failure into one `VolumeError` that names the file. The writer's
files are whole or absent, and the same input gives the same bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np

from unscanned import files
from unscanned.display import in_a_line
from unscanned.errors import ResourceError, VolumeError, in_words
from unscanned.volumes.bytestream import SLACK_BYTES, ByteStream, open_stream
from unscanned.volumes.header import HEADER_BYTES, Header, check_size, corner_distance_mm, parse_header
from unscanned.volumes.orientation import orientation, ras_grid

__all__ = [
    "CONSTANT",
    "FOUR_D",
    "GENERATED",
    "LIMIT_BYTES",
    "NONFINITE",
    "STAMP",
    "SYNTHETIC",
    "Volume",
    "grid_difference",
    "read_volume",
    "write_volume",
]

LIMIT_BYTES = 512 * 2**20

STAMP = "SYNTHETIC - NOT FOR DIAGNOSIS"
"What every synthetic volume, picture and page says of itself."
SYNTHETIC = "SYNTHETIC"
"How the header's description of a synthetic volume begins."
GENERATED = "a generator made this volume, though its name is that of an acquired scan"
"What is wrong with a synthetic volume among acquired scans."

NONFINITE = "some voxels are not finite numbers"
CONSTANT = "the volume has no contrast"
FOUR_D = "the file holds more than one volume"

_SUFFIXES = (".nii", ".nii.gz")
_DAMAGED = "Get the file again from where it came from; this copy cannot be trusted."


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """One 3D image on its grid. A notebook shows three planes of it.

    Attributes:
        array: float32 (i, j, k), true intensities, axes in the file's own order.
        affine: float64 (4, 4), voxel to world, mm, RAS+.
        path: The file it came from.
        sha256: Hash of that file's bytes.
        warnings: What was odd about the file and was accepted.
        synthetic: Whether a generator made it; False where that is not known.
    """

    array: np.ndarray
    affine: np.ndarray
    path: Path | None = None
    sha256: str | None = None
    warnings: tuple[str, ...] = ()
    synthetic: bool = False

    def __repr__(self) -> str:
        kind = "synthetic, " if self.synthetic else ""
        return f"Volume({kind}{self._place})"

    def _repr_png_(self) -> bytes:
        """Return three planes as a notebook shows them."""
        from unscanned.volumes.planes import three_planes  # with SciPy, which a reader does not need

        return three_planes(self.array, self.affine, caption=self._place, synthetic=self.synthetic)

    def save(self, path: str | Path) -> None:
        """Write it as `write_volume` does; the header of a synthetic volume says that it is one.

        Raises:
            VolumeError: As for `write_volume`.
            ResourceError: The disk is full.
        """
        write_volume(path, self.array, self.affine, description=STAMP if self.synthetic else "")

    @property
    def _place(self) -> str:
        voxels, edges = (" x ".join(f"{value:.4g}" for value in values) for values in (self.shape, self.spacing_mm))
        name = f", {in_a_line(self.path.name)}" if self.path else ""
        return f"{voxels} voxels of {edges} mm, {self.orientation}{name}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along i, j, k, mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def orientation(self) -> str:
        """Directions in which i, j, k grow, such as "LPS"."""
        return "".join(nibabel.orientations.ornt2axcodes(orientation(self.affine)))


def read_volume(
    path: str | Path,
    *,
    volume_index: int | None = None,
    replace_nonfinite: bool = False,
    limit_bytes: int = LIMIT_BYTES,
    allow_constant: bool = False,
) -> Volume:
    """Read a `.nii` or `.nii.gz` file (NIfTI-1), or refuse it.

    Args:
        path: The file. Its content decides whether it is compressed.
        volume_index: Which volume of a 4D file, counted from 0. Without it a 4D file is refused.
        replace_nonfinite: Put 0 in the place of NaN and infinity, and count them in the warnings.
        limit_bytes: Budget for the voxels of a volume, as stored and as float32. Memory stays below twice this.
        allow_constant: Accept a volume of one or two distinct values, such as a mask.

    Returns:
        The volume, scaled by the file's slope and intercept.

    Raises:
        VolumeError: The file cannot be read, is damaged, exceeds the budget, or does not hold one usable 3D volume.
        ResourceError: The machine has less memory than the budget.

    Example:
        >>> volume = read_volume("sub-01_T2w.nii.gz")
        >>> volume.array.shape, volume.orientation
        ((256, 256, 48), 'LPS')
    """
    path = Path(path)
    with _open(path) as file:
        stream = open_stream(file)
        header = _read_header(stream)
        index = _choose(header.shape, volume_index, path.name)
        _check_budget(header, limit_bytes)
        check_size(header)
        stored = _read_voxels(stream, header, index)
        warnings = [*header.warnings, *_read_rest(stream)]
        array = _scale(stored.reshape(header.shape[:3], order="F"), header)
        warnings += _check_intensities(
            array, path.name, replace_nonfinite=replace_nonfinite, allow_constant=allow_constant
        )
    synthetic = header.description.startswith(SYNTHETIC)
    return Volume(array, header.affine, path, stream.sha256(), tuple(warnings), synthetic)


def write_volume(path: str | Path, array: np.ndarray, affine: np.ndarray, *, description: str = "") -> None:
    """Write a volume as float32 NIfTI-1; the file is whole or absent, and equal inputs give equal bytes.

    The sform holds the affine. The qform holds it too unless it is sheared, which a qform cannot express.

    Args:
        path: Ends in `.nii` or `.nii.gz`.
        array: (i, j, k), finite.
        affine: (4, 4), voxel to world, mm, RAS+.
        description: For the header's `descrip` field, cut after 79 ASCII characters.

    Raises:
        VolumeError: The array or the affine cannot be stored, or the name has another ending.
        ResourceError: The disk is full.
    """
    path = Path(path)
    if not path.name.endswith(_SUFFIXES):
        raise VolumeError("the name does not say NIfTI", where=path, expected=" or ".join(_SUFFIXES))
    stored = np.asarray(array, dtype="<f4")
    if stored.ndim != 3 or not all(1 <= size <= 32767 for size in stored.shape):
        raise VolumeError(
            "the array is not a volume", where=path, found=f"shape {stored.shape}", expected="3 axes of 1 to 32,767"
        )
    if not (np.isfinite(stored.min()) and np.isfinite(stored.max())):
        raise VolumeError(NONFINITE, where=path, do="Nothing was written.")
    header = _header_for(stored.shape, np.asarray(affine, dtype=np.float64), description, path)
    with files.atomic_path(path) as temporary, open(temporary, "wb") as raw, _sink(raw, path) as sink:
        sink.write(header + b"\0\0\0\0")
        for k in range(stored.shape[2]):
            sink.write(stored[:, :, k].tobytes("F"))


def grid_difference(first: Volume, second: Volume, *, tolerance_mm: float = 1.0) -> str | None:
    """Say how the grids of two volumes differ once both are brought to RAS+, or return None where they agree.

    Args:
        first: A volume.
        second: Another one.
        tolerance_mm: How far apart the same corner of the two grids may lie, mm.
    """
    (shape, affine), (other_shape, other_affine) = (ras_grid(each.shape, each.affine) for each in (first, second))
    if shape != other_shape:
        spacing, other_spacing = (np.linalg.norm(a[:3, :3], axis=0) for a in (affine, other_affine))
        return f"{_grid_text(shape, spacing)} against {_grid_text(other_shape, other_spacing)}"
    distance = corner_distance_mm(affine, other_affine, shape)
    if distance > tolerance_mm:
        return f"the same corner lies up to {distance:.1f} mm apart"
    return None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Yield the file, and turn whatever goes wrong with it into an error that names it."""
    try:
        if not path.name.lower().endswith(_SUFFIXES):
            raise VolumeError(
                "the name does not say NIfTI",
                expected=" or ".join(_SUFFIXES),
                do="Convert the scan to NIfTI-1; pairs of .hdr and .img, Analyze and MGH files are not read.",
            )
        # Looked at before it is opened: opening a named pipe would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise VolumeError("the path is not a file", do="Give the path of a .nii or .nii.gz file.")
        with open(path, "rb", buffering=0) as file:
            yield file  # type: ignore[misc]
    except VolumeError as error:
        raise error.at(path) from error.__cause__
    except (OSError, ValueError) as error:
        raise VolumeError(
            f"the file cannot be read: {in_words(error)}", where=path, do="Check the path and its permissions."
        ) from error
    except zlib.error as error:
        raise VolumeError(
            "the compressed data are damaged", where=path, found=str(error), expected="intact gzip", do=_DAMAGED
        ) from error
    except MemoryError as error:
        raise ResourceError(
            "there is not enough memory for this volume", where=path, do="Close other programs or use a larger machine."
        ) from error


def _read_header(stream: ByteStream) -> Header:
    block = bytearray(HEADER_BYTES)
    count = stream.readinto(memoryview(block))
    if count < HEADER_BYTES:
        raise _cut_short(count, HEADER_BYTES, "header")
    return parse_header(bytes(block))


def _choose(shape: tuple[int, ...], volume_index: int | None, name: str) -> int:
    count = math.prod(shape[3:])
    if volume_index is None and count > 1:
        raise VolumeError(
            FOUR_D,
            found=f"shape {shape}",
            expected="one 3D volume",
            do=f"Choose one: unscanned mend {name} -o OUT --volume-index 0 to {count - 1}.",
        )
    if not 0 <= (volume_index or 0) < count:
        raise VolumeError("there is no volume of this number", found=volume_index, expected=f"0 to {count - 1}")
    return volume_index or 0


def _check_budget(header: Header, limit_bytes: int) -> None:
    claimed = max(math.prod(header.shape[:3]) * max(header.dtype.itemsize, 4), header.offset)
    if claimed > limit_bytes:
        raise VolumeError(
            "the header claims more than the budget for one volume",
            found=f"{claimed:,} bytes for shape {header.shape[:3]}",
            expected=f"at most {limit_bytes:,}",
            do="If the file is right, crop it or store it with fewer bytes a voxel.",
        )


def _read_voxels(stream: ByteStream, header: Header, index: int) -> np.ndarray:
    """Return the voxels of one volume, as stored; the others of a 4D file are passed over and take no memory."""
    stored = np.empty(math.prod(header.shape[:3]), dtype=header.dtype)
    count = math.prod(header.shape[3:])
    _skip(stream, header.offset - HEADER_BYTES)
    read = _skip(stream, index * stored.nbytes)
    read += stream.readinto(stored.view(np.uint8).data)
    read += _skip(stream, (count - 1 - index) * stored.nbytes)
    if read < count * stored.nbytes:
        raise _cut_short(read, count * stored.nbytes, "voxels")
    return stored


def _skip(stream: ByteStream, count: int) -> int:
    """Pass over so many bytes, and return how many there were."""
    passed = 0
    while passed < count:
        read = stream.readinto(memoryview(bytearray(min(count - passed, SLACK_BYTES))))
        if not read:
            break
        passed += read
    return passed


def _read_rest(stream: ByteStream) -> list[str]:
    extra = stream.readinto(memoryview(bytearray(SLACK_BYTES + 1))) + stream.garbage_bytes
    if extra > SLACK_BYTES:
        raise VolumeError(
            "too many bytes follow the last voxel",
            found=f"more than {SLACK_BYTES:,}",
            expected="the end of the file",
            do="The header and the data do not belong together. " + _DAMAGED,
        )
    if not stream.complete:
        raise VolumeError("the file is cut short", found="all voxels but no gzip checksum behind them", do=_DAMAGED)
    return [f"{extra:,} bytes follow the last voxel; they were ignored"] if extra else []


def _cut_short(count: int, expected: int, what: str) -> VolumeError:
    share = math.floor(100 * count / expected)
    return VolumeError(f"the file is cut short (read {share} % of {expected:,} bytes of {what})", do=_DAMAGED)


def _scale(stored: np.ndarray, header: Header) -> np.ndarray:
    if (header.slope, header.intercept) == (1.0, 0.0):
        with np.errstate(over="ignore", invalid="ignore"):
            return stored.astype(np.float32, copy=False)
    # Integers of up to 16 bits are exact in float32; wider types may lose digits in the sum.
    working = np.float32 if stored.dtype.itemsize <= 2 else np.float64
    array = np.empty(stored.shape, dtype=np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(stored.shape[2]):
            plane: np.ndarray = stored[:, :, k].astype(working)
            array[:, :, k] = plane * header.slope + header.intercept
    return array


def _check_intensities(array: np.ndarray, name: str, *, replace_nonfinite: bool, allow_constant: bool) -> list[str]:
    warnings = []
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        finite = np.isfinite(array)
        count = finite.size - np.count_nonzero(finite)
        if not replace_nonfinite:
            raise VolumeError(
                NONFINITE,
                found=f"{count:,} of {finite.size:,} voxels NaN or infinite in float32",
                expected="none",
                do="Find out where they come from, or put 0 in their place: "
                f"unscanned mend {name} -o OUT --replace-nonfinite.",
            )
        array[~finite] = 0
        low, high = array.min(), array.max()
        warnings.append(f"{count:,} of {finite.size:,} voxels were NaN or infinite and were replaced by 0")
    if not allow_constant and not _has_third_value(array, low, high):
        raise VolumeError(
            CONSTANT,
            found=f"only the value {low:g}" if low == high else f"only the values {low:g} and {high:g}",
            expected="at least three different values",
            do="This is an empty volume or a mask, not a scan; give the scan.",
        )
    return warnings


def _has_third_value(array: np.ndarray, low: np.float32, high: np.float32) -> bool:
    slices = (array[:, :, k] for k in range(array.shape[2]))
    return any(bool(((plane > low) & (plane < high)).any()) for plane in slices)


def _header_for(shape: tuple[int, ...], affine: np.ndarray, description: str, path: Path) -> bytes:
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise VolumeError(
            "the affine cannot be stored", where=path, found=affine.tolist(), expected="invertible (4, 4)"
        )
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["descrip"] = description.encode("ascii", "replace")[:79]
    header.set_xyzt_units("mm")
    header.set_qform(affine, code="aligned")
    if corner_distance_mm(header.get_qform(), affine, shape) > 0.01:
        header["qform_code"] = 0
    header.set_sform(affine, code="aligned")
    return header.binaryblock


def _sink(raw: BinaryIO, path: Path) -> contextlib.AbstractContextManager[Any]:
    if not path.name.endswith(".gz"):
        return contextlib.nullcontext(raw)
    # No name and no time in the gzip header: equal volumes are equal files.
    return gzip.GzipFile("", "wb", compresslevel=4, fileobj=raw, mtime=0)


def _grid_text(shape: tuple[int, ...], spacing: np.ndarray) -> str:
    return f"{'x'.join(map(str, shape))} of {'x'.join(f'{value:.3g}' for value in spacing)} mm"
