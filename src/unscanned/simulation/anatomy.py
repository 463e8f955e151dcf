"""The anatomy that a simulated scan is taken of: a label map, or fractions of tissues, and how it is bent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import ndimage

from unscanned.errors import DatasetError
from unscanned.simulation.tissues import LABELS, TISSUES
from unscanned.volumes.intensity import largest_component
from unscanned.volumes.nifti import Volume, read_volume

__all__ = [
    "Anatomy",
    "Fractions",
    "LabelMap",
    "Warp",
    "draw_warp",
    "find_label_maps",
    "map_name",
    "read_label_map",
    "read_tissues",
    "smooth_field",
]

NAMES = tuple(TISSUES)


class Anatomy(Protocol):
    """A head on a regular grid, made of tissues."""

    @property
    def affine(self) -> np.ndarray:
        """Voxel to world mm, RAS+, float64 (4, 4)."""

    @property
    def vertex_mm(self) -> np.ndarray:
        """The top of the head above the middle of the skull, world mm, (3,)."""

    @property
    def tissues(self) -> np.ndarray:
        """The tissue that has most of each voxel, as an index into the names of `TISSUES`, uint8 (i, j, k)."""

    def mix(self, values: Mapping[str, float]) -> np.ndarray:
        """Return the mean of `values` over the tissues of each voxel, float32 (i, j, k)."""


@dataclass(frozen=True, eq=False)
class Fractions:
    """An anatomy whose voxels hold several tissues in parts that sum to one."""

    parts: Mapping[str, np.ndarray]
    "Share of each tissue, float32 (i, j, k)."
    affine: np.ndarray
    "Voxel to world mm, RAS+, float64 (4, 4)."
    vertex_mm: np.ndarray
    "The top of the head above the middle of the skull, world mm, (3,)."

    @property
    def tissues(self) -> np.ndarray:
        """The tissue that has most of each voxel, as an index into the names of `TISSUES`, uint8 (i, j, k)."""
        shape = next(iter(self.parts.values())).shape
        most, tissues = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        for name, part in self.parts.items():
            tissues[part > most] = NAMES.index(name)
            np.maximum(most, part, out=most)
        return tissues

    def mix(self, values: Mapping[str, float]) -> np.ndarray:
        """Return the mean of `values` weighted by the fractions, float32 (i, j, k)."""
        mixed = np.zeros(next(iter(self.parts.values())).shape, np.float32)
        for name, part in self.parts.items():
            mixed += np.float32(values[name]) * part
        return mixed


@dataclass(frozen=True, eq=False)
class LabelMap:
    """An anatomy with one tissue a voxel."""

    tissues: np.ndarray
    "Index into the names of `TISSUES`, uint8 (i, j, k)."
    affine: np.ndarray
    "Voxel to world mm, RAS+, float64 (4, 4)."

    @property
    def vertex_mm(self) -> np.ndarray:
        """The top of the head above the middle of its bounding box in the uppermost 110 mm, world mm, (3,)."""
        world = np.argwhere(self.tissues[::2, ::2, ::2] > 0) * 2 @ self.affine[:3, :3].T + self.affine[:3, 3]
        top = world[:, 2].max()
        skull = world[world[:, 2] > top - 110]
        middle = (skull.min(axis=0) + skull.max(axis=0)) / 2
        return np.array([middle[0], middle[1], top])

    def mix(self, values: Mapping[str, float]) -> np.ndarray:
        """Return the value of each voxel's tissue, float32 (i, j, k)."""
        return np.array([values[name] for name in NAMES], np.float32)[self.tissues]


@dataclass(frozen=True, eq=False)
class Warp:
    """A smooth invertible map of world points: an affine part and a cubic B-spline displacement."""

    matrix: np.ndarray
    "Rotation and scaling, float64 (3, 3)."
    shift_mm: np.ndarray
    "Translation, (3,)."
    coefficients_mm: np.ndarray
    "Displacement at the knots, (3, knots i, knots j, knots k)."
    origin_mm: np.ndarray
    "World position where the lattice starts, (3,)."
    knot_mm: float
    "Distance between knots."

    def __call__(self, axes_mm: list[np.ndarray]) -> np.ndarray:
        """Return the points that a box of points comes from.

        Args:
            axes_mm: Positions along x, y and z; the box is their product.

        Returns:
            World points in mm, (3, x, y, z).
        """
        points = spline(self.coefficients_mm, axes_mm, self.origin_mm, self.knot_mm)
        for row in range(3):
            for column, axis in enumerate(axes_mm):
                shape = [-1 if other == column else 1 for other in range(3)]
                points[row] += (self.matrix[row, column] * axis).reshape(shape)
            points[row] += self.shift_mm[row]
        return points


def draw_warp(
    rng: np.random.Generator,
    extent_mm: np.ndarray,
    *,
    deformation_mm: float,
    knot_mm: float = 60.0,
    tilt_deg: float = 3.0,
) -> Warp:
    """Draw a subject's deformation: a few degrees, a few percent, and a smooth displacement.

    A cubic B-spline displacement whose coefficients stay under 0.4 of the distance between knots is injective (Choi
    and Lee, Graphical Models 62, 2000); the coefficients are cut there, so no tissue folds over another.

    Args:
        rng: Source of randomness.
        extent_mm: Edges of the box around the origin that is deformed, (3,).
        deformation_mm: Standard deviation of the displacement along each axis.
        knot_mm: Distance between knots.
        tilt_deg: Standard deviation of the rotation about each axis; it is cut at 7/3 of that.

    Returns:
        The map from the scanner's world to the anatomy's, about the origin.
    """
    most_deg = tilt_deg * 7 / 3
    angles = np.deg2rad(np.clip(rng.normal(0, tilt_deg, 3), -most_deg, most_deg))
    scale = 1 + np.clip(rng.normal(0, 0.025, 3), -0.05, 0.05)
    counts = [int(np.ceil(edge / knot_mm)) + 3 for edge in extent_mm]
    # A cubic B-spline keeps between (1/3) and (1/2) of the variance of its coefficients along each axis.
    amplitude = deformation_mm / 0.4**1.5
    limit = 0.4 * knot_mm
    coefficients = np.clip(rng.normal(0, amplitude, (3, *counts)), -limit, limit)
    return Warp(
        matrix=_rotation(angles) * scale,
        shift_mm=np.clip(rng.normal(0, 2, 3), -5, 5),
        coefficients_mm=coefficients,
        origin_mm=-np.asarray(extent_mm) / 2,
        knot_mm=knot_mm,
    )


def smooth_field(rng: np.random.Generator, axes_mm: list[np.ndarray], knot_mm: float) -> np.ndarray:
    """Draw a smooth random field of about unit standard deviation, float32 (x, y, z).

    Args:
        rng: Source of randomness.
        axes_mm: Positions along x, y and z; the field lives on their product.
        knot_mm: Distance between the knots of the cubic B-spline.
    """
    counts = [int(np.ceil((axis.max() - axis.min()) / knot_mm)) + 3 for axis in axes_mm]
    coefficients = np.clip(rng.standard_normal((1, *counts)), -2.5, 2.5) / 0.4**1.5
    return spline(coefficients, axes_mm, np.array([axis.min() for axis in axes_mm]), knot_mm)[0]


def spline(coefficients: np.ndarray, axes_mm: list[np.ndarray], origin_mm: np.ndarray, knot_mm: float) -> np.ndarray:
    """Evaluate cubic B-splines on a box of points.

    Args:
        coefficients: Values at the knots, (components, knots x, knots y, knots z).
        axes_mm: Positions along x, y and z, within the lattice.
        origin_mm: Where the lattice starts, (3,).
        knot_mm: Distance between knots.

    Returns:
        Values, float32 (components, x, y, z).
    """
    field = coefficients.astype(np.float32)
    for axis, positions in enumerate(axes_mm):
        weights = _spline_weights((positions - origin_mm[axis]) / knot_mm, coefficients.shape[axis + 1])
        # Each step contracts the first lattice axis left and appends the box's, so the order comes out right.
        field = np.tensordot(field, weights, axes=(1, 1))
    return field


def find_label_maps(folder: str | Path) -> list[Path]:
    """List the NIfTI files of a folder of label maps, sorted by name.

    Raises:
        DatasetError: The folder is missing or holds none.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*.nii*") if path.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise DatasetError(
            "no label maps",
            where=folder,
            found="no such folder" if not folder.is_dir() else "no file that ends in .nii or .nii.gz",
            expected="NIfTI label maps of whole heads",
            do="Name the folder that holds them, or leave labels out to use the built-in heads.",
        )
    return paths


def map_name(path: Path) -> str:
    """Return what the anatomy of a label map is called: its file's name without `_dseg` and `.nii.gz`."""
    return re.sub(r"(_dseg)?\.nii(\.gz)?$", "", path.name)


def read_label_map(path: Path, rng: np.random.Generator) -> LabelMap:
    """Read a label map and turn its numbers into tissues.

    Specks outside the head are dropped. Label 507 is all soft tissue that has no label of its own, muscle included, so
    what lies deep under the skin becomes muscle with sheets of fat; under the skin and around the eyes it stays fat.

    Args:
        path: NIfTI file with the numbers of `unscanned.simulation.tissues.LABELS`.
        rng: Source of randomness of the sheets of fat.

    Raises:
        VolumeError: The file cannot be read.
        DatasetError: It has numbers that stand for no tissue.
    """
    tissues, volume = read_tissues(path)
    head = largest_component(tissues > 0)
    spacing_mm = float(np.mean(volume.spacing_mm))
    return LabelMap(_divide_soft_tissue(np.where(head, tissues, 0).astype(np.uint8), spacing_mm, rng), volume.affine)


def read_tissues(path: Path) -> tuple[np.ndarray, Volume]:
    """Return the tissue of each voxel of a label map, as an index into the names of `TISSUES`, and the map itself.

    Raises:
        VolumeError: The file cannot be read.
        DatasetError: It has numbers that stand for no tissue.
    """
    volume = read_volume(path)
    known = np.full(max(LABELS) + 2, -1, np.int16)
    for number, name in LABELS.items():
        known[number] = NAMES.index(name)
    numbers = np.clip(volume.array, -1, max(LABELS) + 1).astype(np.int16)
    tissues = known[numbers]
    if tissues.min() < 0 or not np.array_equal(numbers, volume.array):
        odd = np.unique(volume.array[(tissues < 0) | (numbers != volume.array)])
        raise DatasetError(
            "label numbers that stand for no tissue",
            where=path,
            found=", ".join(f"{number:g}" for number in odd[:10]) + (", ..." if len(odd) > 10 else ""),
            expected="numbers of FreeSurfer's aseg and 502 to 530, as in unscanned.simulation.tissues.LABELS",
            do="Renumber them, or add them to that table.",
        )
    return tissues, volume


def _divide_soft_tissue(tissues: np.ndarray, spacing_mm: float, rng: np.random.Generator) -> np.ndarray:
    step = 2
    coarse = tissues[::step, ::step, ::step]
    is_tissue = {name: coarse == NAMES.index(name) for name in ("skin", "eye fluid", "muscle")}
    depth_mm = ndimage.distance_transform_edt(~is_tissue["skin"]) * step * spacing_mm
    orbit = ndimage.binary_dilation(is_tissue["eye fluid"] | is_tissue["muscle"], iterations=4)
    sheets = ndimage.gaussian_filter(rng.standard_normal(coarse.shape).astype(np.float32), 4.0 / (step * spacing_mm))
    deep = (depth_mm > 5) & ~orbit & (np.abs(sheets) > 0.15 * sheets.std())
    for axis, size in enumerate(tissues.shape):
        deep = np.repeat(deep, step, axis=axis).take(np.arange(size), axis=axis)
    return np.where(deep & (tissues == NAMES.index("fat")), np.uint8(NAMES.index("muscle")), tissues)


def _rotation(angles: np.ndarray) -> np.ndarray:
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _spline_weights(positions: np.ndarray, knots: int) -> np.ndarray:
    cell = np.clip(np.floor(positions).astype(int), 0, knots - 4)
    t = positions - cell
    weights = np.zeros((len(positions), knots), np.float32)
    rows = np.arange(len(positions))
    for offset, value in enumerate(
        ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    ):
        weights[rows, cell + offset] = value
    return weights
