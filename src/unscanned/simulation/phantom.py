"""Heads of the package's own, from signed distances and noise, so that a demonstration needs no data.

World coordinates are mm, RAS+, with the origin in the middle of the brain. A signed distance is negative inside. Paired
structures are drawn once, over |x|; what makes the two sides differ is the folding and the subject's deformation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy import ndimage

from unscanned.simulation.anatomy import Fractions, smooth_field

__all__ = ["draw_head"]

Field = np.ndarray
Grid = tuple[Field, Field, Field]
Point = tuple[float, float, float]
Layer = tuple[str, Field]
Noise = Callable[[float], Field]

_LOW_MM, _HIGH_MM = (-92.0, -116.0, -118.0), (92.0, 120.0, 90.0)


def draw_head(rng: np.random.Generator, *, spacing_mm: float = 1.6) -> Fractions:
    """Draw a head: skin, fat, muscle, skull with marrow, CSF, folded cortex, white matter, ventricles, nuclei, eyes.

    Args:
        rng: Source of randomness; another state gives another head.
        spacing_mm: Voxel size of the head's grid.

    Returns:
        Fractions of all tissues on a grid of 184 x 236 x 208 mm.
    """
    axes = [np.arange(low, high, spacing_mm, dtype=np.float32) for low, high in zip(_LOW_MM, _HIGH_MM, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)

    def noise(knot_mm: float) -> Field:
        return smooth_field(rng, axes, knot_mm)

    cerebrum = _cerebrum((x, y, z)) + 0.8 * noise(60)
    cerebellum = _ellipsoid((np.abs(x), y, z), (20, -56, -40), (31, 29, 21)) + 0.5 * noise(30)
    vault = _union(cerebrum, cerebellum, 12) - np.clip(2.5 + 0.7 * noise(35), 1.2, 4)
    thickness = np.clip(6.5 + 0.8 * noise(50), 4.5, 8.5)
    head = _head((x, y, z), vault - thickness) + 0.6 * noise(60)

    layers = [
        *_vessels((x, y, z), cerebrum),
        *_deep((x, y, z), ventricle_mm=float(rng.uniform(-1.0, 1.5))),
        *_cerebellar_cortex((x, y, z), cerebellum, 2 * noise(25)),
        *_cerebral_cortex(rng, (x, y, z), np.maximum(cerebrum, 2.0 - cerebellum), noise, spacing_mm),
        ("cerebrospinal fluid", np.minimum(vault, _spine((x, y, z)) - 11)),
        ("bone", vault - 1.8),
        *_orbits((x, y, z)),
        *_airways((x, y, z), noise(10)),
        ("marrow", vault - thickness + np.clip(2.2 - 0.5 * noise(20), 1, 4)),
        ("bone", vault - thickness),
        *_face_and_neck((x, y, z)),
        ("fat", np.maximum(head + 2, 3 * (np.abs(noise(9)) - 0.22))),
        ("muscle", head + 2 + np.clip(4.5 + 1.5 * noise(30), 2, 8)),
        ("fat", head + 2),
        ("skin", head),
    ]
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = _LOW_MM
    rows = np.flatnonzero((head < 0).any(axis=(0, 1)))
    return Fractions(_paint(layers, head.shape, spacing_mm), affine, np.array([0.0, 3.0, float(axes[2][rows[-1]])]))


def _paint(layers: Iterable[Layer], shape: tuple[int, ...], spacing_mm: float) -> dict[str, Field]:
    """Lay tissues over one another, the topmost first; a voxel that a surface crosses is shared."""
    free = np.ones(shape, np.float32)
    parts: dict[str, Field] = {}
    for name, distance in layers:
        share = np.clip(0.5 - distance / spacing_mm, 0, 1, dtype=np.float32)
        share *= free
        free -= share
        parts[name] = parts[name] + share if name in parts else share
    parts["air"] = parts["air"] + free if "air" in parts else free
    return parts


def _cerebrum(grid: Grid) -> Field:
    x, y, z = grid
    base = np.maximum(_ellipsoid(grid, (0, 0, 6), (64, 81, 59), power=2.15), -24 - z)
    temporal = _ellipsoid((np.abs(x), y, z), (41, 8, -20), (24, 41, 21))
    return _union(base, temporal, 6)


def _head(grid: Grid, skull: Field) -> Field:
    x, y, z = grid
    face = _ellipsoid(grid, (0, 42, -62), (57, 55, 72))
    neck = _capsule(grid, (0, -28, -50), (0, -36, -150), 57)
    nose = _ellipsoid(grid, (0, 93, -54), (12, 14, 18))
    ears = _ellipsoid((np.abs(x), y, z), (76, -14, -28), (6, 15, 25))
    return _union(_union(_union(_union(skull - 5.5, face, 22), neck, 25), nose, 8), ears, 5)


def _cerebral_cortex(rng: np.random.Generator, grid: Grid, hull: Field, noise: Noise, step_mm: float) -> list[Layer]:
    """Fold a ribbon of grey matter: sulci are sheets that run inwards from the surface to depths of their own."""
    x, y, z = grid
    midline = np.hypot(x, np.maximum(_ellipse_depth(y, z), 0)) - 0.7
    end = np.hypot(np.maximum(40 - np.abs(x), 0), np.maximum(np.abs(y - 4) - 34, 0))
    sylvian = np.hypot(z + 8 + 0.3 * y, end) - 0.8
    pial = np.minimum(-hull, np.minimum(midline, sylvian))
    near = (pial > -2) & (pial < 28)
    depth = pial[near]
    normal = [component[near] for component in np.gradient(pial, step_mm)]
    surface = [
        np.broadcast_to(axis, hull.shape)[near] - 0.65 * depth * part for axis, part in zip(grid, normal, strict=True)
    ]
    bottom = np.clip(14 + 4 * noise(25)[near], 3, 24)
    pial[near] = np.minimum(
        depth, np.hypot(_distance_to_sheets(rng, surface, 4.8), np.maximum(depth - bottom, 0)) - 0.6
    )
    thickness = 2.6 + 0.25 * noise(25)
    return [("white matter", thickness - pial), ("grey matter", -pial)]


def _distance_to_sheets(rng: np.random.Generator, points: list[Field], fold_mm: float) -> Field:
    """Return the distance of points to the zero set of band-pass noise, mm; its sheets lie about 3 folds apart."""
    step = 2.0
    size = [int((high - low) / step) for low, high in zip(_LOW_MM, _HIGH_MM, strict=True)]
    white = rng.standard_normal(size).astype(np.float32)
    band = ndimage.gaussian_filter(white, fold_mm / step) - ndimage.gaussian_filter(white, 2 * fold_mm / step)
    slope = np.sqrt(sum(component**2 for component in np.gradient(band, step)))
    sheets = band / (slope + 0.3 * slope.mean())
    where = [(point - low) / step for point, low in zip(points, _LOW_MM, strict=True)]
    return np.abs(ndimage.map_coordinates(sheets, where, order=1, mode="nearest"))


def _ellipse_depth(y: Field, z: Field) -> Field:
    """Distance into the ellipse around the corpus callosum, where the fissure between the hemispheres ends."""
    return 24 * (1 - np.sqrt(((y - 0) / 42) ** 2 + ((z - 4) / 26) ** 2))


def _cerebellar_cortex(grid: Grid, hull: Field, wobble: Field) -> list[Layer]:
    _, y, z = grid
    fold_mm, deepest = 7.0, 9.0
    height = (z + 0.5 * y + wobble) / fold_mm
    to_sheet = np.abs(height - np.round(height)) * fold_mm
    pial = np.minimum(-hull, np.hypot(to_sheet, np.maximum(-hull - deepest, 0)) - 0.4)
    return [("white matter", 2.2 - pial), ("grey matter", -pial), ("cerebrospinal fluid", hull)]


def _deep(grid: Grid, *, ventricle_mm: float) -> list[Layer]:
    x, y, z = grid
    side = (np.abs(x), y, z)
    lateral = _capsule(side, (7, 26, 8), (10, -12, 19), 4.5)
    lateral = _union(lateral, _capsule(side, (10, -12, 19), (25, -42, 7), 5.5), 4)
    lateral = _union(lateral, _capsule(side, (25, -42, 7), (24, -64, 4), 3.5), 4)
    lateral = _union(lateral, _capsule(side, (28, -38, 2), (32, -6, -18), 2.2), 4)
    midline = np.minimum(_ellipsoid(grid, (0, -8, 1), (2.2, 13, 10)), _ellipsoid(grid, (0, -43, -30), (6, 5, 9)))
    septum = 0.8 - np.abs(x)
    ventricles = np.minimum(np.maximum(lateral - ventricle_mm, septum), midline - 0.3 * ventricle_mm)
    nuclei = np.minimum(_ellipsoid(side, (12, -16, 6), (9, 14, 9)), _ellipsoid(side, (25, 4, 3), (6, 17, 11)))
    caudate = _capsule(side, (13, 22, 7), (19, -16, 20), 4.0)
    stem = _union(_capsule(grid, (0, -18, -6), (0, -30, -48), 11), _ellipsoid(grid, (0, -22, -28), (16, 12, 13)), 5)
    stem = _union(stem, _spine(grid) - 6.5, 5)
    return [
        ("cerebrospinal fluid", ventricles),
        ("deep grey matter", np.minimum(nuclei, caudate)),
        ("brain stem", stem),
    ]


def _vessels(grid: Grid, hull: Field) -> list[Layer]:
    x, y, z = grid
    sagittal = np.maximum(np.hypot(x, hull - 1.0) - 3.2, 10 - z)
    basilar = _capsule(grid, (0, -9, -16), (0, -11, -46), 1.8)
    carotids = _capsule((np.abs(x), y, z), (22, 2, -30), (30, 0, -130), 3.0)
    return [("vessels", np.minimum(np.minimum(sagittal, basilar), carotids))]


def _orbits(grid: Grid) -> list[Layer]:
    x, y, z = grid
    side = (np.abs(x), y, z)
    globe = _ellipsoid(side, (32, 76, -30), (12, 12, 12))
    nerve = _capsule(side, (31, 62, -30), (12, 32, -28), 2.0)
    muscles = np.minimum(
        _capsule(side, (43, 68, -30), (18, 36, -30), 1.9), _capsule(side, (21, 72, -30), (15, 38, -30), 1.9)
    )
    fat = np.maximum(
        _union(_ellipsoid(side, (32, 70, -30), (19, 18, 17)), _capsule(side, (31, 62, -30), (14, 34, -29), 8), 6),
        y - 86,
    )
    return [
        ("eye fluid", globe),
        ("muscle", np.minimum(globe - 1.2, muscles)),
        ("white matter", nerve),
        ("fat", fat),
        ("bone", fat - 1.5),
    ]


def _airways(grid: Grid, wobble: Field) -> list[Layer]:
    x, y, z = grid
    side = (np.abs(x), y, z)
    nasal = _ellipsoid(grid, (0, 62, -56), (16, 30, 20))
    passages = np.maximum(np.maximum(nasal + 3, 1.5 - np.abs(x)), 2.5 * (0.3 - wobble))
    maxillary = _ellipsoid(side, (29, 60, -62), (13, 15, 15))
    sphenoid = _ellipsoid(grid, (0, 26, -36), (14, 11, 8))
    sinuses = np.minimum(maxillary, sphenoid)
    pharynx = _capsule(grid, (0, 24, -62), (0, 10, -130), 7)
    return [
        ("air", np.minimum(np.minimum(passages, sinuses + 1.2), pharynx + 2)),
        ("mucosa", np.minimum(np.minimum(nasal, sinuses), pharynx - 1)),
        ("bone", np.minimum(nasal, sinuses) - 1.6),
    ]


def _face_and_neck(grid: Grid) -> list[Layer]:
    x, y, z = grid
    side = (np.abs(x), y, z)
    jaw = np.minimum(_capsule(side, (50, 14, -46), (46, 20, -94), 5), _capsule(side, (46, 20, -94), (8, 88, -108), 6))
    cheek = _capsule(side, (52, 66, -48), (68, 18, -40), 4)
    vertebrae = _capsule(grid, (0, -14, -64), (0, -16, -140), 11)
    arch = _spine(grid) - 12
    spongy = np.minimum(np.minimum(jaw, vertebrae), cheek)
    return [("marrow", spongy + 1.6), ("bone", np.minimum(spongy, arch - 3))]


def _spine(grid: Grid) -> Field:
    """Distance to the axis of the spinal cord."""
    return _capsule(grid, (0, -34, -46), (0, -38, -150), 0)


def _ellipsoid(grid: Grid, centre: Point, radii_mm: Point, power: float = 2.0) -> Field:
    """First-order signed distance to an ellipsoid; a power above 2 makes it boxier."""
    scaled = [np.abs(axis - middle) / radius for axis, middle, radius in zip(grid, centre, radii_mm, strict=True)]
    level = sum(axis**power for axis in scaled) ** np.float32(1 / power)
    slope = np.sqrt(sum((axis ** (power - 1) / radius) ** 2 for axis, radius in zip(scaled, radii_mm, strict=True)))
    return (level - 1) * level ** np.float32(power - 1) / (slope + 1e-6)


def _capsule(grid: Grid, start: Point, end: Point, radius_mm: float) -> Field:
    """Signed distance to a segment with a radius."""
    along = np.subtract(end, start)
    offsets = [axis - np.float32(first) for axis, first in zip(grid, start, strict=True)]
    dot = sum(offset * np.float32(part) for offset, part in zip(offsets, along, strict=True))
    t = np.clip(dot / np.float32(along @ along), 0, 1)
    return (
        np.sqrt(sum((offset - t * np.float32(part)) ** 2 for offset, part in zip(offsets, along, strict=True)))
        - radius_mm
    )


def _union(first: Field, second: Field, blend_mm: float) -> Field:
    """Union of two bodies whose seam is rounded over `blend_mm`."""
    t = np.clip(0.5 + 0.5 * (second - first) / blend_mm, 0, 1)
    return second + t * (first - second) - blend_mm * t * (1 - t)
