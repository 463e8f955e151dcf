"""How the two scans of a pair lie to each other: a rigid offset with its uncertainty, mirrored or not, a pair or none.

The contrasts differ, so intensities cannot be compared. The directions of edges can: where the head has an edge, both
contrasts have it, bright to dark or dark to bright. So each scan becomes a field of tensors n nᵀ, n being the
intensity's gradient divided by its length, which a reversal of the contrast does not change (the normalized gradient
fields of Haber and Modersitzki, "Intensity gradient based registration and fusion of multi-modal images", MICCAI
2006). The correlation of two such fields is a sum of six plain correlations, so one FFT tries all shifts. Blocks of the
head are then shifted on their own; a rigid motion is fitted to their shifts, and their disagreement is its uncertainty.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from unscanned.volumes.nifti import Volume
from unscanned.volumes.orientation import ras_grid, to_ras

__all__ = ["AGREES", "SHARP", "Alignment", "measure_alignment"]

SHARP = 7.0
"Least sharpness of a pair, see `Alignment.sharpness`; docs/check.md has what pairs and others reach."
AGREES = 0.2
"Least agreement of a pair: brains of two persons can fit sharply, but only in few of their edges."
FAR_MM = 10.0
"An offset from here on is an error: a patch of 32 mm then shows another part of the head."

_GRID_MM = 2.0
_BLOCK_MM = 48.0
_REACH_MM = 12.0
_RING_MM = 6.0
_COARSEST_MM = 5.0
_FEWEST_BLOCKS = 6
_LEAST_EDGES = 0.1
"Share of what the block with most edges holds."
_SYSTEMATIC = 0.05
"Of a voxel of the grid: what an estimate of a known shift is off by beyond the disagreement of the blocks."
_TINY = 1e-12
_SPACE = (1, 2, 3)
_Scan = tuple[np.ndarray, np.ndarray]
"Intensities and the share of exact zeros."
_OFF_DIAGONAL = {3: (0, 1), 4: (0, 2), 5: (1, 2)}
_AXES = ("left-right", "front-back", "head-foot")
_ENDS = (("right", "left"), ("front", "back"), ("up", "down"))


@dataclass(frozen=True)
class Alignment:
    """Where the target lies, seen from the source. All triples are along the source's axes in RAS+ order.

    Attributes:
        offset_mm: How far to the right, to the front and up the target lies at the middle of the head.
        uncertainty_mm: Standard error of that: the disagreement of the blocks, and a twentieth of a voxel of the grid.
        rotation_deg: Turn about each axis.
        displacement_mm: How far offset and turn together move the head along each axis, root mean square.
        spacing_mm: Voxels of the source, so that offsets can be told in them.
        agreement: Correlation of the two fields of edges at the best offset, from 0 to 1.
        sharpness: By how many standard deviations that exceeds the correlations 6 to 12 mm beside it. Two scans of one
            head have a sharp maximum; those of two persons fit no better in one place than a little beside it.
        mirrored: Axes along which the target had to be flipped to fit.
        blocks: Blocks of the head that were shifted on their own.
    """

    offset_mm: tuple[float, float, float]
    uncertainty_mm: tuple[float, float, float]
    rotation_deg: tuple[float, float, float]
    displacement_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float, float]
    agreement: float
    sharpness: float
    mirrored: tuple[str, ...]
    blocks: int

    @property
    def is_pair(self) -> bool:
        """Whether the two show one head in one position, up to a motion and a flip."""
        return _is_pair(self.agreement, self.sharpness)

    @property
    def is_off(self) -> bool:
        """Whether the target lies more than half a voxel off, beyond twice the standard error."""
        sure = np.subtract(self.displacement_mm, 2 * np.array(self.uncertainty_mm))
        return bool((sure > 0.5 * np.array(self.spacing_mm)).any())

    @property
    def is_far(self) -> bool:
        """Whether the target lies so far off that patches of the two show other parts of the head."""
        return float(np.linalg.norm(self.displacement_mm)) >= FAR_MM

    def __str__(self) -> str:
        parts = [
            f"{abs(mm):.1f} ± {2 * error:.1f} mm ({abs(mm) / size:.1f} voxels) {ends[mm < 0]}"
            for mm, error, size, ends in zip(self.offset_mm, self.uncertainty_mm, self.spacing_mm, _ENDS, strict=True)
        ]
        return ", ".join(parts) + f" and is turned by {float(np.linalg.norm(self.rotation_deg)):.1f} degrees"


def measure_alignment(source: Volume, target: Volume) -> Alignment | None:
    """Estimate the rigid offset of a target from a source of the same head in another contrast.

    Both are looked at in world space, on a grid of about 2 mm; a target on another grid is resampled to the source's.

    Args:
        source: The scan whose grid counts.
        target: The other contrast.

    Returns:
        The offset; None where it cannot be judged: voxels above 5 mm, or too little of a head in the field of view.
    """
    if max(source.spacing_mm) > _COARSEST_MM or max(target.spacing_mm) > _COARSEST_MM:
        return None
    array, empty, affine = _coarse(source)
    moving = _onto((array.shape, affine), *_coarse(target))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    field, moving_field = _edges(array, empty, spacing), _edges(*moving, spacing)
    if not (field.any() and moving_field.any()):
        return None
    blocks = _Blocks(field, spacing)
    if len(blocks.starts) < _FEWEST_BLOCKS:
        return None
    first, *others = (
        _refined(blocks, moving, mirror, start) for mirror, start in _starts(field, moving_field, spacing)
    )
    mirrored = max(others, key=lambda fit: fit.agreement)
    fit = (
        mirrored
        if _is_pair(mirrored.agreement, mirrored.sharpness) and mirrored.agreement > 1.1 * first.agreement
        else first
    )
    _, ras = ras_grid(source.shape, source.affine)
    return Alignment(
        _triple(fit.offset_mm),
        _triple(fit.error_mm),
        _triple(np.degrees(fit.rotation.as_rotvec())),
        _triple(blocks.reach_of(fit.offset_mm, fit.rotation)),
        _triple(np.linalg.norm(ras[:3, :3], axis=0)),
        fit.agreement,
        fit.sharpness,
        tuple(_AXES[axis] for axis in fit.mirror),
        len(blocks.starts),
    )


@dataclass(frozen=True, eq=False)
class _Fit:
    """How one reading of the target fits: as it is, or mirrored. A point x of the source is at c + R (x - c) + t there.

    Attributes:
        mirror: Axes that were flipped.
        offset_mm: t.
        error_mm: Its standard error.
        rotation: R, about the middle c of the source's edges.
        agreement: As in `Alignment`.
        sharpness: As in `Alignment`.
    """

    mirror: tuple[int, ...]
    offset_mm: np.ndarray
    error_mm: np.ndarray
    rotation: Rotation
    agreement: float
    sharpness: float


class _Blocks:
    """Cubes of the source's field that hold much of its edges.

    Args:
        field: (6, i, j, k), as `_edges` returns it.
        spacing: Of its voxels, mm.

    Attributes:
        starts: First voxel of each, (blocks, 3).
        centres_mm: The middle of each one's edges, from the middle of all, (blocks, 3).
        middle: The middle of all edges, voxels.
    """

    def __init__(self, field: np.ndarray, spacing: np.ndarray) -> None:
        self.field, self.spacing = field, spacing
        self.size = np.maximum(4, np.round(_BLOCK_MM / spacing)).astype(int)
        self.reach = np.ceil(_REACH_MM / spacing).astype(int)
        energy = np.square(field).sum(0)
        axes = [_tiles(energy.any((1, 2)), self.size[0])]
        axes += [_tiles(energy.any((0, 2)), self.size[1]), _tiles(energy.any((0, 1)), self.size[2])]
        starts = np.array(list(itertools.product(*axes)), int).reshape(-1, 3)
        held = np.array([energy[_window(start, self.size)].sum() for start in starts])
        self.starts = starts[held > _LEAST_EDGES * held.max()] if len(starts) else starts
        self.middle = np.array(ndimage.center_of_mass(energy))
        own = [ndimage.center_of_mass(energy[_window(start, self.size)]) for start in self.starts]
        self.centres_mm = (self.starts + np.reshape(own, (-1, 3)) - self.middle) * spacing
        steps = np.meshgrid(*(np.arange(-reach, reach + 1) for reach in self.reach), indexing="ij")
        self.distance_mm = np.sqrt(sum(np.square(step * size) for step, size in zip(steps, spacing, strict=True)))

    def fit(self, moving: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
        """Shift each block over the target's field, up to 12 mm from one shift, in voxels.

        Returns:
            Offset, its standard error, turn (rotation vector, radians), agreement and sharpness.
        """
        surfaces = [self._surface(start, moving, around) for start in self.starts]
        total = np.sum(surfaces, 0)
        energies = (
            sum(float(np.square(_padded_window(field, start + shift, self.size)).sum()) for start in self.starts)
            for field, shift in ((self.field, 0), (moving, around))
        )
        ring = total[(self.distance_mm >= _RING_MM) & (self.distance_mm <= _REACH_MM)]
        shifts, weights = zip(*map(_peak, surfaces), strict=True)
        shifts_mm = (np.array(shifts) - self.reach + around) * self.spacing
        return (
            *_rigid(self.centres_mm, shifts_mm, np.array(weights)),
            float(total.max() / max(np.sqrt(np.prod(list(energies))), _TINY)),
            float((total.max() - ring.mean()) / max(ring.std(), _TINY)),
        )

    def centre(self, moving: np.ndarray, around: np.ndarray) -> np.ndarray:
        """Return the shift, in whole voxels, at which all blocks together fit best, within 12 mm of one shift."""
        total = np.sum([self._surface(start, moving, around) for start in self.starts], 0)
        return around + np.array(np.unravel_index(np.argmax(total), total.shape)) - self.reach

    def reach_of(self, offset_mm: np.ndarray, rotation: Rotation) -> np.ndarray:
        """Return how far a motion moves the blocks along each axis, mm, root mean square."""
        moved = rotation.apply(self.centres_mm) + offset_mm - self.centres_mm
        return np.sqrt(np.square(moved).mean(0))

    def undone(self, scan: _Scan, offset_mm: np.ndarray, rotation: Rotation) -> _Scan:
        """Return a scan on the grid of the blocks, moved back by a motion."""
        matrix = rotation.as_matrix() * self.spacing / self.spacing[:, None]
        shift = self.middle - matrix @ self.middle + offset_mm / self.spacing
        return tuple(
            ndimage.affine_transform(each, matrix, shift, order=1, cval=beyond)
            for each, beyond in zip(scan, (0.0, 1.0), strict=True)
        )

    def _surface(self, start: np.ndarray, moving: np.ndarray, around: np.ndarray) -> np.ndarray:
        """Return the correlation of a block with the target at each shift within reach, (2 reach + 1) an axis."""
        block = self.field[(slice(None), *_window(start, self.size))]
        region = _padded_window(moving, start + around - self.reach, self.size + 2 * self.reach)
        shape = [fft.next_fast_len(int(n), real=True) for n in region.shape[1:]]
        product = np.conj(fft.rfftn(block, shape, axes=_SPACE)) * fft.rfftn(region, shape, axes=_SPACE)
        return fft.irfftn(product.sum(0), shape)[tuple(slice(0, 2 * reach + 1) for reach in self.reach)]


def _starts(field: np.ndarray, moving: np.ndarray, spacing: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield the best of all shifts, in voxels, as the target is, mirrored left-right, and mirrored as fits best."""
    pool = np.maximum(1, np.round(2 * _GRID_MM / spacing)).astype(int)
    small, small_moving = _pooled(field, pool), _pooled(moving, pool)
    shape = [fft.next_fast_len(2 * n, real=True) for n in small.shape[1:]]
    transform = np.conj(fft.rfftn(small, shape, axes=_SPACE))
    found = {}
    for mirror in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
        other = fft.rfftn(_mirrored(small_moving, mirror), shape, axes=_SPACE)
        correlation = fft.irfftn((transform * other).sum(0), shape)
        place = np.array(np.unravel_index(np.argmax(correlation), correlation.shape))
        shift = np.where(place > np.array(correlation.shape) // 2, place - correlation.shape, place)
        found[mirror] = float(correlation.max()), shift * pool
    likely = max((mirror for mirror in found if mirror), key=lambda mirror: found[mirror][0])
    for mirror in dict.fromkeys([(), (0,), likely]):
        yield mirror, found[mirror][1]


def _refined(blocks: _Blocks, moving: _Scan, mirror: tuple[int, ...], start: np.ndarray) -> _Fit:
    """Return the motion that fits, found in two steps: the second begins where the first has moved the target back.

    A maximum near 0 is found without the bias that parabolas have between voxels, and a turn no longer blurs it.
    """
    array, empty = (np.asarray(np.flip(each, mirror)) for each in moving)
    field = _edges(array, empty, blocks.spacing)
    offset, _, turn, *_ = blocks.fit(field, blocks.centre(field, start))
    rotation = Rotation.from_rotvec(turn)
    field = _edges(*blocks.undone((array, empty), offset, rotation), blocks.spacing)
    more, error, turn, agreement, sharpness = blocks.fit(field, np.zeros(3, int))
    error = np.hypot(error, _SYSTEMATIC * blocks.spacing)
    return _Fit(
        mirror, rotation.apply(more) + offset, error, rotation * Rotation.from_rotvec(turn), agreement, sharpness
    )


def _is_pair(agreement: float, sharpness: float) -> bool:
    return sharpness >= SHARP and agreement >= AGREES


def _coarse(volume: Volume) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a scan in RAS+ order averaged to about 2 mm, the share of exact zeros in each voxel, and the affine."""
    array, (_, affine) = to_ras(volume.array, volume.affine), ras_grid(volume.shape, volume.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    factor = np.maximum(1, np.floor(_GRID_MM / spacing + 0.45)).astype(int)
    factor = np.minimum(factor, array.shape)
    affine = affine @ nib.affines.from_matvec(np.diag(factor.astype(float)), (factor - 1) / 2)
    return _pooled(array[None], factor)[0], _pooled((array == 0)[None], factor)[0], affine


def _pooled(field: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Return the means of boxes of `factor` voxels of a (channel, i, j, k) array; what is left at the ends is cut."""
    counts = np.array(field.shape[1:]) // factor
    i, j, k = counts * factor
    (a, b, c), (x, y, z) = counts, factor
    boxes = field[:, :i, :j, :k].reshape(len(field), a, x, b, y, c, z)
    return boxes.mean((2, 4, 6), dtype=np.float32)


def _onto(
    grid: tuple[Sequence[int], np.ndarray], array: np.ndarray, empty: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return an array and its share of zeros on another grid; beyond its field of view it is empty."""
    shape, wanted = grid
    to_own = np.linalg.inv(affine) @ wanted
    if tuple(shape) == array.shape and np.allclose(to_own, np.eye(4), atol=0.01):
        return array, empty
    matrix, shift = to_own[:3, :3], to_own[:3, 3]
    moved = ndimage.affine_transform(array, matrix, shift, tuple(shape), order=1)
    return moved, ndimage.affine_transform(empty, matrix, shift, tuple(shape), order=1, cval=1.0)


def _edges(array: np.ndarray, empty: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the field of edges, (6, i, j, k) float32: xx, yy, zz, xy, xz, yz of n nᵀ less its mean over the head.

    Edges between the scan and exact zeros are left out: a mask that both scans were cut with would fit in any case.
    """
    if min(array.shape) < 4:
        return np.zeros((6, *array.shape), np.float32)
    smooth = ndimage.gaussian_filter(array, _GRID_MM / 2 / spacing)
    gradient = np.stack(np.gradient(smooth, *spacing))
    inside = ~ndimage.binary_dilation(ndimage.binary_opening(empty > 0.5), iterations=2)
    for axis in range(3):
        np.moveaxis(inside, axis, 0)[[0, -1]] = False
    squared = np.square(gradient).sum(0)
    if not inside.any() or not (usual := float(np.median(squared[inside]))) > 0:
        return np.zeros((6, *array.shape), np.float32)
    normal = inside * gradient / np.sqrt(squared + usual)
    weight = np.square(normal).sum(0)
    field = np.stack([*np.square(normal), *(normal[p] * normal[q] for p, q in _OFF_DIAGONAL.values())])
    field -= (field.sum((1, 2, 3)) / weight.sum())[:, None, None, None] * weight
    field[3:] *= np.sqrt(2.0)
    return field.astype(np.float32)


def _mirrored(field: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the field of edges of the scan flipped along some axes."""
    if not axes:
        return field
    flipped = np.flip(field, tuple(axis + 1 for axis in axes)).copy()
    for channel, pair in _OFF_DIAGONAL.items():
        if len(set(pair) & set(axes)) == 1:
            flipped[channel] *= -1
    return flipped


def _tiles(is_used: np.ndarray, size: int) -> np.ndarray:
    """Return where blocks begin that lie side by side, centred, over the used part of an axis."""
    places = np.flatnonzero(is_used)
    if len(places) == 0 or len(is_used) < size:
        return np.zeros(0, int)
    length = places[-1] - places[0] + 1
    count = max(1, round(length / size))
    first = np.clip(places[0] + (length - count * size) // 2, 0, None)
    starts = first + size * np.arange(count)
    return starts[starts + size <= len(is_used)]


def _window(start: np.ndarray, size: np.ndarray) -> tuple[slice, ...]:
    return tuple(slice(int(first), int(first + n)) for first, n in zip(start, size, strict=True))


def _padded_window(field: np.ndarray, start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return a window of a (channel, i, j, k) array that may reach beyond it; there it is 0."""
    window = np.zeros((len(field), *size), field.dtype)
    low, high = np.clip([start, start + size], 0, field.shape[1:])
    if (high > low).all():
        inner = _window(low - start, high - low)
        window[(slice(None), *inner)] = field[(slice(None), *_window(low, high - low))]
    return window


def _peak(surface: np.ndarray) -> tuple[np.ndarray, float]:
    """Return where a surface is highest, to parts of a voxel by parabolas, and how far that stands above its rest.

    The height is in standard deviations of the surface, and 0 where the highest place is at the rim.
    """
    place = np.array(np.unravel_index(np.argmax(surface), surface.shape))
    if (place == 0).any() or (place == np.array(surface.shape) - 1).any():
        return place.astype(float), 0.0
    refined = place.astype(float)
    for axis in range(3):
        before, here, after = (surface[tuple(place + step * np.eye(3, dtype=int)[axis])] for step in (-1, 0, 1))
        curvature = before - 2 * here + after
        refined[axis] += 0.5 * (before - after) / curvature if curvature < 0 else 0.0
    return refined, float((surface[tuple(place)] - surface.mean()) / max(float(surface.std()), 1e-12))


def _rigid(centres: np.ndarray, shifts: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return offset, its standard error and rotation (radians) that fit the shifts of blocks, outliers set aside.

    Args:
        centres: (blocks, 3), mm from the middle of the head.
        shifts: (blocks, 3), mm.
        weights: (blocks,).
    """
    count = len(centres)
    design = np.zeros((count, 3, 6))
    design[:, :, :3] = np.eye(3)
    x, y, z = centres.T
    zero = np.zeros(count)
    design[:, :, 3:] = np.stack([np.stack([zero, z, -y], 1), np.stack([-z, zero, x], 1), np.stack([y, -x, zero], 1)], 1)
    kept = weights * 1.0
    for _ in range(20):
        root = np.sqrt(kept)[:, None]
        solution, *_ = np.linalg.lstsq(
            (design * root[..., None]).reshape(-1, 6), (shifts * root).reshape(-1), rcond=None
        )
        residual = shifts - design @ solution
        distance = np.linalg.norm(residual, axis=1)
        scale = max(1.48 * float(np.median(distance)), 0.05)
        kept = weights * np.square(np.clip(1 - np.square(distance / (4.0 * scale)), 0, None))
    if not kept.any():  # no block says anything
        return np.zeros(3), np.full(3, _REACH_MM), np.zeros(3)
    normal = np.einsum("bia,b,bic->ac", design, kept, design)
    effective = max(float(kept.sum() ** 2 / np.square(kept).sum()) - 2, 1.0)
    spread = (kept[:, None] * np.square(residual)).sum(0) / kept.sum()
    inverse = np.linalg.pinv(normal) * kept.sum()
    error = np.sqrt(np.diag(inverse)[:3] * spread / effective)
    return solution[:3], error, solution[3:]


def _triple(numbers: np.ndarray) -> tuple[float, float, float]:
    i, j, k = (float(number) for number in numbers)
    return i, j, k
