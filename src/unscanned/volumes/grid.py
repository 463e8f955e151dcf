"""Where a scan's voxels go on the way to the model's grid, and back: axes to RAS+, resampling if asked, crop or pad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import nibabel.processing
import numpy as np
from scipy import ndimage

from unscanned.errors import DatasetError, SettingsError
from unscanned.volumes.nifti import LIMIT_BYTES, Volume, grid_difference
from unscanned.volumes.orientation import from_ras, ras_grid, to_ras

__all__ = ["Frame", "frame", "onto_grid"]

Triple = tuple[int, int, int]

_TIE = 1e-6
"Voxels: what lies exactly between two voxels goes the same way, whatever its last digits are."

_SIGMA = 0.3
"Voxels: standard deviation of a Gaussian that stands for a voxel's profile, about that of a box of its width."


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
        averages: Whether a voxel of a coarser working grid averages the scan's, as a scanner's would.
    """

    shape: Triple
    affine: np.ndarray
    working_shape: Triple
    working_affine: np.ndarray
    start: Triple
    crop: Triple
    averages: bool = False

    @property
    def zoom(self) -> np.ndarray:
        """Voxels of the working grid for each of the scan's along its axes in RAS+ order, (3,)."""
        affine = ras_grid(self.shape, self.affine)[1]
        return np.linalg.norm(affine[:3, :3], axis=0) / np.linalg.norm(self.working_affine[:3, :3], axis=0)

    @property
    def resampled(self) -> bool:
        """Whether the working grid has another spacing than the scan."""
        shape, affine = ras_grid(self.shape, self.affine)
        return self.working_shape != shape or not np.allclose(self.working_affine, affine)

    def holds(self, head: np.ndarray) -> bool:
        """Return whether the crop holds the bounding box of a head, a mask on the scan's grid."""
        if not head.any():
            return True
        to_working = np.linalg.inv(self.working_affine) @ ras_grid(self.shape, self.affine)[1]
        first, last = nib.affines.apply_affine(to_working, _box(head, self.affine)) - self.start
        return bool((first >= -0.5 - _TIE).all() and (last <= np.array(self.crop) - 0.5 + _TIE).all())

    def forward(self, array: np.ndarray) -> np.ndarray:
        """Bring an array on the scan's grid to the model's grid; outside the scan it is 0."""
        array = to_ras(array, self.affine)
        if self.resampled:
            affine = ras_grid(self.shape, self.affine)[1]
            if self.averages:
                array = _averaged(array, 1 / self.zoom)
            array = _resample(array, affine, self.working_shape, self.working_affine)
        return _window(array, self.start, self.crop)

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """Bring an array on the model's grid back to the scan's own grid; outside the crop it is 0."""
        array = _window(array, tuple(-s for s in self.start), self.working_shape)
        shape, affine = ras_grid(self.shape, self.affine)
        if self.resampled:
            array = _resample(array, self.working_affine, shape, affine)
        return from_ras(array, self.affine)

    def interpolate(self, array: np.ndarray, *, order: int) -> np.ndarray:
        """Bring an array on the model's grid back to the scan's own grid by splines, which keep more than `inverse`.

        Args:
            array: On the model's grid.
            order: Of the splines: 1 is linear, 3 cubic.

        Returns:
            float32 on the scan's grid; outside the crop it is 0.
        """
        shape, _ = ras_grid(self.shape, self.affine)
        # Continued by its edge, and cut afterwards: a spline through a step to 0 would ring.
        array = ndimage.affine_transform(
            np.asarray(array, np.float32),
            self.zoom,
            offset=np.negative(self.start),
            output_shape=shape,
            order=order,
            mode="nearest",
        )
        for axis, (n, zoom) in enumerate(zip(shape, self.zoom, strict=True)):
            start, stop = self.start[axis], self.start[axis] + self.crop[axis]
            first = 0 if start <= 0 else math.ceil((start - 0.5) / zoom - _TIE)
            last = n if stop >= self.working_shape[axis] else math.ceil((stop - 0.5) / zoom - _TIE)
            along = np.moveaxis(array, axis, 0)
            along[:first], along[last:] = 0, 0
        return from_ras(array, self.affine)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads back."""
        return {k: np.asarray(v).tolist() for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Frame:
        """Return the frame that `to_json` wrote."""
        values: dict[str, Any] = {
            k: np.array(v, float) if k.endswith("affine") else tuple(v) if isinstance(v, list) else v
            for k, v in content.items()
        }
        return cls(**values)


def frame(
    volume: Volume,
    *,
    shape: Triple | None = None,
    spacing_mm: float | None = None,
    head: np.ndarray | None = None,
    pads: bool = True,
    averages: bool = False,
) -> Frame:
    """Return the frame that brings a scan to RAS+, to an isotropic spacing if asked, and to a shape if asked.

    Args:
        volume: The scan.
        shape: Voxels of the model's grid; None keeps the whole scan.
        spacing_mm: Isotropic voxel size of the working grid; None keeps the scan's own.
        head: Mask of the head on the scan's grid; the crop is centred on its bounding box. None centres on the grid.
        pads: Whether the crop may reach beyond the scan. If not, it is moved inside, and no axis is longer than the
            scan's.
        averages: Whether a voxel of a coarser grid averages the scan's voxels; else it is interpolated between the
            nearest of them.

    Raises:
        SettingsError: A grid of this shape or spacing has more voxels than the budget for one volume.
    """
    grid_shape, affine = ras_grid(volume.shape, volume.affine)
    zoom = np.ones(3)
    if spacing_mm is not None:
        zoom = np.linalg.norm(affine[:3, :3], axis=0) / spacing_mm
        grid_shape = _triple(np.maximum(1, np.ceil(np.multiply(grid_shape, zoom) - _TIE)))
        affine = affine @ np.diag([*(1 / zoom), 1.0])
    start, crop = (0, 0, 0), grid_shape
    if shape is not None:
        centre = np.subtract(grid_shape, 1) / 2
        if head is not None and head.any():
            centre = _box(head, volume.affine).mean(0) * zoom
        start, crop = _triple(np.floor(centre - np.subtract(shape, 1) / 2 + 0.5 + _TIE)), shape
    if not pads:
        crop = _triple(np.minimum(crop, grid_shape))
        start = _triple(np.clip(start, 0, np.subtract(grid_shape, crop)))
    for name, size in {"prepare.shape": crop, "prepare.spacing_mm": grid_shape}.items():
        if math.prod(size) * 4 > LIMIT_BYTES:
            raise SettingsError(
                "the grid has more voxels than the budget for one volume",
                where=name,
                found=f"{' x '.join(map(str, size))} voxels",
                expected=f"at most {LIMIT_BYTES // 4:,} in all",
                do="Choose a smaller shape or a larger spacing.",
            )
    return Frame(volume.shape, np.asarray(volume.affine, float), grid_shape, affine, start, crop, averages)


_SAME = 0.05
"Voxels by which the corners of two grids may differ, and no voxel is interpolated."


def onto_grid(source: Volume, target: Volume, case: str, *, resample: bool = False) -> np.ndarray:
    """Return the target's array on the source's grid: its axes in the source's order, resampled only when asked.

    Args:
        source: The scan whose grid counts.
        target: The other scan, which may have another order or direction of axes.
        case: For the message.
        resample: Whether a target on another grid is resampled, linearly; then a twentieth of a voxel is another grid.

    Raises:
        DatasetError: The grids differ by more than 1 mm at a corner and `resample` is not set.
    """
    difference = grid_difference(source, target, tolerance_mm=_SAME * min(source.spacing_mm) if resample else 1.0)
    target_ras = to_ras(target.array, target.affine)
    if difference is None:
        return from_ras(target_ras, source.affine)
    if not resample:
        raise DatasetError(
            "source and target lie on different grids",
            where=case,
            found=difference,
            do="If the two are aligned in world space, set prepare.resample = true; if not, register them first.",
        )
    shape, affine = ras_grid(source.shape, source.affine)
    _, target_affine = ras_grid(target.shape, target.affine)
    return from_ras(_resample(target_ras, target_affine, shape, affine), source.affine)


def _triple(numbers: np.ndarray) -> Triple:
    i, j, k = (int(number) for number in numbers)
    return i, j, k


def _box(head: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the first and the last voxel of a mask along each axis in RAS+ order, (2, 3)."""
    [extent] = ndimage.find_objects(to_ras(head, affine), max_label=1)
    return np.array([[along.start, along.stop - 1] for along in extent]).T


def _resample(array: np.ndarray, affine: np.ndarray, shape: Triple, to_affine: np.ndarray) -> np.ndarray:
    # The edge counts for one voxel more, so that no boundary is lost to rounding; further out there is nothing.
    outward = nib.affines.from_matvec(np.eye(3), (-1, -1, -1))
    image = nib.Nifti1Image(np.pad(np.asarray(array, np.float32), 1, mode="edge"), affine @ outward)
    resampled = nibabel.processing.resample_from_to(image, (shape, to_affine), order=1, mode="constant")
    return np.asarray(resampled.dataobj, np.float32)


def _averaged(array: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return an array blurred by what a voxel is larger after resampling by some factors: sigmas add as squares do."""
    sigmas = _SIGMA * np.sqrt(np.maximum(factors**2 - 1, 0))
    return ndimage.gaussian_filter(np.asarray(array, np.float32), sigmas, mode="nearest")


def _window(array: np.ndarray, start: Sequence[int], shape: Triple) -> np.ndarray:
    result = np.zeros(shape, array.dtype)
    low, high = np.clip([start, np.add(start, shape)], 0, array.shape)
    result[tuple(map(slice, low - start, high - start))] = array[tuple(map(slice, low, high))]
    return result
