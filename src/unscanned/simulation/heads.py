"""Heads kept in memory, from which subjects are drawn again and again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from unscanned.simulation.anatomy import LabelMap, map_name, read_label_map
from unscanned.simulation.lesions import find_sites
from unscanned.simulation.phantom import draw_head
from unscanned.simulation.relaxation import NAMES
from unscanned.volumes.orientation import ras_grid, to_ras

__all__ = ["Head", "draw_built_in", "read_head"]


@dataclass(frozen=True, eq=False)
class Head:
    """An anatomy cut to its bounding box, with what every subject drawn from it needs.

    Attributes:
        name: The file's name without its endings, or that of a built-in head.
        tissues: Index into `NAMES`, uint8 (i, j, k), axes in RAS+ order.
        affine: Voxel to world mm, (4, 4).
        vertex_mm: The top of the head above the middle of the skull, world mm, (3,).
        eyes_mm: The middle of the eyes, world mm, (3,); in front of the skull's middle where there are none.
        sites: Where lesions can begin, see `find_sites`.
    """

    name: str
    tissues: np.ndarray
    affine: np.ndarray
    vertex_mm: np.ndarray
    eyes_mm: np.ndarray
    sites: Mapping[str, np.ndarray]

    @property
    def spacing_mm(self) -> float:
        """Voxel size, mm."""
        return float(np.mean(np.linalg.norm(self.affine[:3, :3], axis=0)))


def read_head(path: Path, rng: np.random.Generator) -> Head:
    """Read a label map, as `read_label_map` does.

    Args:
        path: NIfTI file.
        rng: Source of randomness of the sheets of fat.
    """
    return _head(map_name(path), read_label_map(path, rng))


def draw_built_in(name: str, rng: np.random.Generator, *, spacing_mm: float = 1.2) -> Head:
    """Draw a head of the package's own; each voxel goes to the tissue that has most of it.

    Args:
        name: What it is called.
        rng: Source of randomness.
        spacing_mm: Voxel size.
    """
    drawn = draw_head(rng, spacing_mm=spacing_mm)
    return _head(name, LabelMap(drawn.tissues, drawn.affine), drawn.vertex_mm)


def _head(name: str, anatomy: LabelMap, vertex_mm: np.ndarray | None = None) -> Head:
    vertex_mm = anatomy.vertex_mm if vertex_mm is None else vertex_mm
    tissues = to_ras(anatomy.tissues, anatomy.affine)
    affine = ras_grid(anatomy.tissues.shape, anatomy.affine)[1].copy()
    [box] = ndimage.find_objects((tissues > 0).astype(np.uint8))
    affine[:3, 3] += affine[:3, :3] @ [along.start for along in box]
    tissues = np.ascontiguousarray(tissues[box])
    eyes = np.argwhere(tissues == NAMES.index("eye fluid"))
    eyes_mm = vertex_mm + np.array([0, 75, -100]) if len(eyes) < 10 else affine[:3, :3] @ eyes.mean(0) + affine[:3, 3]
    spacing_mm = float(np.mean(np.linalg.norm(affine[:3, :3], axis=0)))
    return Head(name, tissues, affine, vertex_mm, eyes_mm, find_sites(tissues, spacing_mm))
