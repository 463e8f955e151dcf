"""Where a scan's voxels go on the way to the model's grid, and back: axes to RAS+, resampling if asked, crop or pad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import nibabel.processing
import numpy as np
from scipy import ndimage

from unscanned.errors import DatasetError
from unscanned.volumes.nifti import Volume, grid_difference, ras_grid

__all__ = ["Frame", "frame", "onto_grid"]

Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Frame:
    """Where a scan's voxels go on the way to the model's grid, and back.

    Attributes:
        shape: The scan's own grid.
        affine: Its affine, (4, 4), mm.
        working_shape: The grid after reorientation to RAS+ and resampling.
        working_affine: Its affine.
        start: First voxel of the crop in the working grid; negative where the crop pads.
        crop: Shape of the crop: the model's grid.
    """

    shape: Triple
    affine: np.ndarray
    working_shape: Triple
    working_affine: np.ndarray
    start: Triple
    crop: Triple

    @property
    def resampled(self) -> bool:
        """Whether the working grid has another spacing than the scan."""
        return self.working_shape != ras_grid(self.shape, self.affine)[0] or not np.allclose(
            self.working_affine, ras_grid(self.shape, self.affine)[1]
        )

    def holds(self, head: np.ndarray) -> bool:
        """Return whether the crop holds the bounding box of a head, a mask on the scan's grid."""
        if not head.any():
            return True
        corners = nib.affines.apply_affine(
            np.linalg.inv(self.working_affine) @ ras_grid(self.shape, self.affine)[1], _box(head, self.affine)
        )
        return bool((corners[0] >= np.subtract(self.start, 0.5)).all()) and bool(
            (corners[1] <= np.add(self.start, self.crop) - 0.5).all()
        )

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Bring an array on the scan's grid to the model's grid; outside the scan it is 0."""
        array = _to_ras(array, self.affine)
        if self.resampled:
            affine = ras_grid(self.shape, self.affine)[1]
            array = _resample(array, affine, self.working_shape, self.working_affine)
        return _window(array, self.start, self.crop)

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """Bring an array on the model's grid back to the scan's own grid; outside the crop it is 0."""
        array = _window(array, tuple(-s for s in self.start), self.working_shape)
        shape, affine = ras_grid(self.shape, self.affine)
        if self.resampled:
            array = _resample(array, self.working_affine, shape, affine)
        return _from_ras(array, self.affine)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads back."""
        return {k: np.asarray(v).tolist() for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Frame:
        """Return the frame that `to_json` wrote."""
        values: dict[str, Any] = {
            k: np.array(v, float) if k.endswith("affine") else tuple(v) for k, v in content.items()
        }
        return cls(**values)


def frame(
    volume: Volume,
    *,
    shape: Triple | None = None,
    spacing_mm: float | None = None,
    head: np.ndarray | None = None,
    pads: bool = True,
) -> Frame:
    """Return the frame that brings a scan to RAS+, to an isotropic spacing if asked, and to a shape if asked.

    Args:
        volume: The scan.
        shape: Voxels of the model's grid; None keeps the whole scan.
        spacing_mm: Isotropic voxel size of the working grid; None keeps the scan's own.
        head: Mask of the head on the scan's grid; the crop is centred on its bounding box. None centres on the grid.
        pads: Whether the crop may reach beyond the scan. If not, it is moved inside, and no axis is longer than the
            scan's.
    """
    native = volume.shape
    grid_shape, affine = ras_grid(native, volume.affine)
    if spacing_mm is not None:
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        zoom = spacing / spacing_mm
        grid_shape = tuple(max(1, int(np.ceil(n * z - 1e-6))) for n, z in zip(grid_shape, zoom, strict=True))  # type: ignore[assignment]
        affine = affine @ np.diag([*(1 / zoom), 1.0])
    start, crop = (0, 0, 0), grid_shape
    if shape is not None:
        centre = [(n - 1) / 2 for n in grid_shape]
        if head is not None and head.any():
            middle = np.append(_box(head, volume.affine).mean(0), 1)
            centre = list((np.linalg.inv(affine) @ ras_grid(native, volume.affine)[1] @ middle)[:3])
        start = tuple(int(np.floor(c - (n - 1) / 2 + 0.5)) for c, n in zip(centre, shape, strict=True))  # type: ignore[assignment]
        crop = shape
    if not pads:
        crop = tuple(min(n, m) for n, m in zip(crop, grid_shape, strict=True))  # type: ignore[assignment]
        start = tuple(min(max(0, s), n - m) for s, n, m in zip(start, grid_shape, crop, strict=True))  # type: ignore[assignment]
    return Frame(native, np.asarray(volume.affine, float), grid_shape, affine, start, crop)


def onto_grid(source: Volume, target: Volume, case: str, *, resample: bool = False) -> np.ndarray:
    """Return the target's array on the source's grid: its axes in the source's order, resampled only when asked.

    Args:
        source: The scan whose grid counts.
        target: The other scan, which may have another order or direction of axes.
        case: For the message.
        resample: Whether a target on another grid is resampled, linearly.

    Raises:
        DatasetError: The grids differ by more than 1 mm at a corner and `resample` is not set.
    """
    difference = grid_difference(source, target)
    target_ras = _to_ras(target.array, target.affine)
    if difference is None:
        return _from_ras(target_ras, source.affine)
    if not resample:
        raise DatasetError(
            "source and target lie on different grids",
            where=case,
            found=difference,
            do="If the two are aligned in world space, set prepare.resample = true; if not, register them first.",
        )
    shape, affine = ras_grid(source.shape, source.affine)
    _, target_affine = ras_grid(target.shape, target.affine)
    return _from_ras(_resample(target_ras, target_affine, shape, affine), source.affine)


def _box(head: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the first and the last voxel of a mask along each axis in RAS+ order, (2, 3)."""
    [extent] = ndimage.find_objects(_to_ras(head, affine), max_label=1)
    return np.array([[along.start, along.stop - 1] for along in extent]).T


def _to_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.orientations.apply_orientation(array, nib.io_orientation(affine))


def _from_ras(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    ras = np.array([[0, 1], [1, 1], [2, 1]], float)
    return nib.orientations.apply_orientation(array, nib.orientations.ornt_transform(ras, nib.io_orientation(affine)))


def _resample(array: np.ndarray, affine: np.ndarray, shape: Triple, to_affine: np.ndarray) -> np.ndarray:
    # The edge counts for one voxel more, so that no boundary is lost to rounding; further out there is nothing.
    outward = nib.affines.from_matvec(np.eye(3), (-1, -1, -1))
    image = nib.Nifti1Image(np.pad(np.asarray(array, np.float32), 1, mode="edge"), affine @ outward)
    resampled = nibabel.processing.resample_from_to(image, (shape, to_affine), order=1, mode="constant")
    return np.asarray(resampled.dataobj, np.float32)


def _window(array: np.ndarray, start: Sequence[int], shape: Triple) -> np.ndarray:
    result = np.zeros(shape, array.dtype)
    inside, outside = [], []
    for first, size, have in zip(start, shape, array.shape, strict=True):
        low, high = max(first, 0), min(first + size, have)
        if low >= high:
            return result
        inside.append(slice(low - first, high - first))
        outside.append(slice(low, high))
    result[tuple(inside)] = array[tuple(outside)]
    return result
