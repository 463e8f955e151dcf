"""How a scanner samples a head: slices with a profile, a receive field, noise, ghosts, and the way onto the grid.

The ranges are chosen: those of slices within what public protocols use, the others so that the statistics of simulated
heads hold those of the real scans of docs/simulation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from unscanned.simulation.anatomy import smooth_field
from unscanned.simulation.scanner import add_rician_noise

__all__ = [
    "Axes",
    "Geometry",
    "Receiver",
    "acquire",
    "axes_of",
    "draw_field",
    "draw_geometry",
    "draw_receiver",
    "interpolate",
    "sample",
]

Axes = list[np.ndarray]


@dataclass(frozen=True)
class Geometry:
    """The grid that an image is acquired on, before it is interpolated.

    Attributes:
        slice_axis: Axis across the slices, 0 to 2.
        spacing_mm: Distance of voxels along each axis; across the slices it includes the gap.
        width_mm: Width of the voxel's profile along each axis; across the slices the thickness.
    """

    slice_axis: int
    spacing_mm: tuple[float, float, float]
    width_mm: tuple[float, float, float]

    def axes_mm(self, extent_mm: np.ndarray) -> Axes:
        """Return the positions of the acquired voxels that cover a field of view around the origin."""
        return [
            _centred(max(1, round(edge / spacing)), spacing)
            for edge, spacing in zip(extent_mm, self.spacing_mm, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Receiver:
    """What the scanner adds to a signal.

    Attributes:
        field: Receive field, (i, j, k), about 1.
        slice_gains: Factor of each slice.
        ghost: Part of the signal that motion throws along the phase axis, signed.
        ghost_axis: Phase axis.
        ghost_shift: How far, as a share of the field of view.
    """

    field: np.ndarray
    slice_gains: np.ndarray
    ghost: float
    ghost_axis: int
    ghost_shift: float

    def receive(self, signal: np.ndarray, *, ghosts: bool = True) -> np.ndarray:
        """Return the magnitude before noise."""
        received = signal * self.field
        received *= self.slice_gains
        if ghosts and self.ghost:
            shift = round(self.ghost_shift * signal.shape[self.ghost_axis])
            moved = np.roll(received, shift, self.ghost_axis) + np.roll(received, -shift, self.ghost_axis)
            # What the two ghosts hold is missing where it belongs.
            received = np.abs(np.float32(1 - 2 * abs(self.ghost)) * received + np.float32(self.ghost) * moved)
        return received


def axes_of(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> Axes:
    """Return the positions of voxels along each axis, ascending, around the origin, mm."""
    return [_centred(size, spacing) for size, spacing in zip(shape, spacing_mm, strict=True)]


def draw_geometry(
    rng: np.random.Generator,
    spacing_mm: tuple[float, float, float],
    thickness_mm: tuple[float, float],
    volumetric: float,
) -> Geometry:
    """Draw how a subject is sliced: as a volume, or in slices across any axis.

    Args:
        rng: Source of randomness.
        spacing_mm: Of the grid that the image is brought to.
        thickness_mm: Least and greatest thickness of slices.
        volumetric: Share of subjects with a volume of voxels of about equal edges.
    """
    low, high = thickness_mm
    slice_axis = int(rng.choice(3, p=(0.2, 0.2, 0.6)))
    if rng.random() < volumetric:
        thickness, gap = rng.uniform(low, max(low, min(high, 1.6))), 0.0
    else:
        thickness, gap = rng.uniform(min(high, max(low, 1.6)), high), rng.choice((0.0, rng.uniform(0, 0.25)))
    # Some scans have voxels in plane as fine as the grid; the others are interpolated there too.
    coarser = 1.0 if rng.random() < 0.3 else rng.uniform(1.0, 1.5)
    spacing, width = [coarser * edge for edge in spacing_mm], [rng.uniform(0.7, 1.1) * edge for edge in spacing_mm]
    # Thinner slices than the grid's are averaged or skipped on the way there; the profile alone remembers them.
    spacing[slice_axis] = max(spacing_mm[slice_axis], thickness * (1 + gap))
    width[slice_axis] = thickness
    return Geometry(slice_axis, tuple(map(float, spacing)), tuple(map(float, width)))  # type: ignore[arg-type]


def draw_receiver(
    rng: np.random.Generator, geometry: Geometry, axes: Axes, field: np.ndarray, ghosts: float
) -> Receiver:
    """Draw the imperfections of one image around a receive field.

    Args:
        rng: Source of randomness.
        geometry: How the image is sliced.
        axes: Its voxels' positions.
        field: Receive field on them.
        ghosts: Share of images with ghosts.
    """
    count = len(axes[geometry.slice_axis])
    spread = rng.uniform(0, 0.015) if geometry.width_mm[geometry.slice_axis] > 2 else 0.0
    gains = np.asarray(1 + spread * rng.standard_normal(count), np.float32)
    shape = [count if axis == geometry.slice_axis else 1 for axis in range(3)]
    ghost = rng.uniform(-0.03, 0.03) if rng.random() < ghosts else 0.0
    phase_axis = int(rng.choice([axis for axis in range(3) if axis != geometry.slice_axis]))
    return Receiver(field, gains.reshape(shape), float(ghost), phase_axis, float(rng.uniform(0.08, 0.45)))


def draw_field(rng: np.random.Generator, axes: Axes, strength: float) -> np.ndarray:
    """Draw a receive field: smooth, with a geometric mean of about 1, float32.

    Args:
        rng: Source of randomness.
        axes: Positions of the voxels.
        strength: Standard deviation of its logarithm.
    """
    return np.exp(np.float32(strength) * np.clip(smooth_field(rng, axes, float(rng.uniform(70, 130))), -2, 2))


def sample(fine: np.ndarray, fine_axes: Axes, geometry: Geometry, axes: Axes) -> np.ndarray:
    """Return what the voxels of a geometry hold of a signal on a fine grid: partial volume by the slice's profile.

    A profile is a box of the voxel's width with edges softened by a tenth of it, as pulses that select slices have,
    and by what hides the voxels of the label map.
    """
    matrices = [_profile(at, of, width) for at, of, width in zip(axes, fine_axes, geometry.width_mm, strict=True)]
    return _apply(matrices, fine)


def interpolate(acquired: np.ndarray, axes: Axes, to: Axes) -> np.ndarray:
    """Return an acquired image on the axes of another grid, linearly; beyond its last voxel it keeps that value."""
    matrices = [None if _same(of, at) else _linear(at, of) for at, of in zip(to, axes, strict=True)]
    return _apply(matrices, acquired)


def acquire(
    signal: np.ndarray, receiver: Receiver, sigma: float, rng: np.random.Generator, axes: Axes, to: Axes
) -> np.ndarray:
    """Return the magnitude image of a sampled signal on the axes `to`, float32."""
    return interpolate(add_rician_noise(receiver.receive(signal), sigma, rng), axes, to)


def _apply(matrices: Sequence[np.ndarray | None], volume: np.ndarray) -> np.ndarray:
    """Multiply each axis of a volume by its matrix, the one that shrinks it most first."""
    order = sorted(range(3), key=lambda axis: 1 if (m := matrices[axis]) is None else m.shape[0] / m.shape[1])
    for axis in order:
        matrix = matrices[axis]
        if matrix is None:
            continue
        if axis == 0:
            volume = (matrix @ volume.reshape(len(volume), -1)).reshape(len(matrix), *volume.shape[1:])
        else:
            volume = matrix @ volume if axis == 1 else volume @ matrix.T
    return volume


def _profile(at: np.ndarray, of: np.ndarray, width_mm: float) -> np.ndarray:
    step = abs(of[1] - of[0])
    softness = np.hypot(0.35 * step, 0.1 * width_mm)
    distance = of[None, :] - at[:, None]
    weights = special.ndtr((distance + width_mm / 2) / softness) - special.ndtr((distance - width_mm / 2) / softness)
    # Each voxel's weights sum to one, or a narrow profile would leave a grid of bright and dark voxels.
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _linear(at: np.ndarray, of: np.ndarray) -> np.ndarray:
    step = of[1] - of[0] if len(of) > 1 else 1.0
    place = np.clip((at - of[0]) / step, 0, len(of) - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(len(of))[None, :])).astype(np.float32)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return len(one) == len(other) and bool(np.allclose(one, other))


def _centred(size: int, spacing: float) -> np.ndarray:
    return (np.arange(size) - (size - 1) / 2) * spacing
