"""White-matter lesions: where they can sit in an anatomy, and how a subject's are painted into its tissues.

The kinds are those that readers grade (F. Fazekas et al., AJR 149, 1987): punctate, beginning to flow together and
confluent in deep white matter, caps at the ventricles; juxtacortical ones beside. Shares, numbers, sizes and distances
are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from unscanned.simulation.relaxation import LESION, LESION_LEVELS, NAMES

__all__ = ["draw_lesions", "find_sites"]

WHITE, FLUID = NAMES.index("white matter"), NAMES.index("cerebrospinal fluid")
GREY = NAMES.index("grey matter")
BRAIN = tuple(map(NAMES.index, ("white matter", "grey matter", "deep grey matter", "brain stem")))

_STEP = 2
_LOADS = {"none": 0.25, "few": 0.35, "many": 0.25, "confluent": 0.15}
"How often a subject has which load of lesions."


def find_sites(tissues: np.ndarray, spacing_mm: float) -> Mapping[str, np.ndarray]:
    """Return the voxels where lesions can begin, by kind: periventricular, deep and juxtacortical, (n, 3) each.

    Fluid that lies deeper than 25 mm under the skull counts as ventricle.

    Args:
        tissues: Index into `NAMES`, (i, j, k).
        spacing_mm: Voxel size.
    """
    coarse = tissues[::_STEP, ::_STEP, ::_STEP]
    step_mm = _STEP * spacing_mm

    def distance_mm(mask: np.ndarray) -> np.ndarray:
        return ndimage.distance_transform_edt(~mask) * step_mm if mask.any() else np.full(mask.shape, np.inf)

    white, fluid = coarse == WHITE, coarse == FLUID
    ventricle = fluid & (distance_mm(~(np.isin(coarse, BRAIN) | fluid)) > 25)
    to_ventricle, to_grey = distance_mm(ventricle), distance_mm(coarse == GREY)
    # Without a layer of white matter between them, sulci of the insula would pass for ventricles.
    chosen = {
        "periventricular": white & (to_ventricle < 7) & (to_grey > 4),
        "deep": white & (to_ventricle > 8) & (to_grey > 4) & (to_ventricle < 60),
        "juxtacortical": white & (to_grey <= 2.5 * spacing_mm) & (to_ventricle > 15) & (to_ventricle < 60),
    }
    return {kind: np.argwhere(mask) * _STEP for kind, mask in chosen.items()}


def draw_lesions(
    rng: np.random.Generator, tissues: np.ndarray, sites: Mapping[str, np.ndarray], spacing_mm: float
) -> np.ndarray:
    """Return the tissues with one subject's lesions in their white matter; the same array where it has none.

    A quarter of the subjects have none. Others have punctate lesions, ovoids and caps at the ventricles, and in the
    worst case chains of them that flow together. Each has a core of its own severity and fades to its rim.

    Args:
        rng: Source of randomness.
        tissues: Index into `NAMES`, uint8 (i, j, k).
        sites: As `find_sites` returns them.
        spacing_mm: Voxel size.
    """
    load = rng.choice(list(_LOADS), p=list(_LOADS.values()))
    if load == "none" or not all(len(places) for places in sites.values()):
        return tissues
    painted = tissues.copy()
    punctate, ovoids = {"few": (8, 2), "many": (20, 10), "confluent": (25, 12)}[load]
    for _ in range(rng.integers(1, punctate)):
        kind = "deep" if rng.random() < 0.6 else "juxtacortical"
        _paint(rng, painted, sites[kind], spacing_mm, radius_mm=rng.uniform(1.2, 3.5))
    for _ in range(rng.integers(1, ovoids + 1)):
        kind = "periventricular" if rng.random() < 0.75 else "deep"
        _paint(rng, painted, sites[kind], spacing_mm, radius_mm=rng.uniform(2.5, 6.5))
    if load == "confluent":
        for _ in range(rng.integers(20, 90)):
            _paint(rng, painted, sites["periventricular"], spacing_mm, radius_mm=rng.uniform(3, 8))
    return painted


def _paint(
    rng: np.random.Generator, painted: np.ndarray, places: np.ndarray, spacing_mm: float, *, radius_mm: float
) -> None:
    """Paint one lesion: an ellipsoid with an uneven edge, whose severity falls from its core to its rim."""
    centre = places[rng.integers(len(places))]
    radii = radius_mm / spacing_mm * np.exp(rng.uniform(-0.35, 0.35, 3))
    reach = np.ceil(1.3 * radii).astype(int)
    low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, painted.shape)
    box = tuple(map(slice, low, high))
    axes = np.ogrid[box]
    distance = sum(((axis - at) / radius) ** 2 for axis, at, radius in zip(axes, centre, radii, strict=True)) ** 0.5
    uneven = ndimage.gaussian_filter(rng.standard_normal(distance.shape, np.float32), 1.5) * 1.5
    core = rng.uniform(0.3, 1.0)
    depth = 1 - (distance + uneven)
    level = LESION + np.clip(LESION_LEVELS * core * np.minimum(1, 0.4 + 2 * depth), 0, LESION_LEVELS - 0.01)
    area = painted[box]
    able = (area == WHITE) | (area >= LESION)
    painted[box] = np.where(able & (depth > 0), np.maximum(area, level.astype(np.uint8)), area)
