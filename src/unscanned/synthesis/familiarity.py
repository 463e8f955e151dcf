"""What a scan is like to a model, on the model's grid and in its network, and whether the training scans were so."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from unscanned.contrast.familiarity import UNKNOWN, Familiarity, FamiliarityProfile, Traits, judge
from unscanned.models.base import GeneratorBase
from unscanned.models.hidden import hidden
from unscanned.models.wrappers import inner
from unscanned.synthesis.model import Model
from unscanned.volumes.grid import frame
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import Volume

__all__ = ["check_familiarity", "measure_prepared", "measure_scan", "some", "with_familiarity"]

T = TypeVar("T")

_EDGE = 32
"Voxels of a patch whose features are taken, or the next multiple that the network takes."

_PLACES = (0.25, 0.75)
"Where the middles of the patches lie between the two ends of the head, along each axis: eight in all."

_MOST = 40
"Training scans that a profile is made from; of more, so many are taken at equal distances."


def check_familiarity(model: Model, volume: Volume, *, in_doubt: bool = False, force: bool = False) -> Familiarity:
    """Check that a scan is like the training scans of a model, or refuse it.

    Args:
        model: Its profile says what they were like. Without one, nothing is known and nothing is refused.
        volume: The scan.
        in_doubt: As for `judge`.
        force: Return what would have been refused.

    Warns:
        UserWarning: As for `judge`.

    Raises:
        VolumeError: As for `judge`; or there is no head in the scan.
    """
    if model.familiarity is None:
        return UNKNOWN
    return judge(measure_scan(model, volume), model.familiarity, where=volume.path, in_doubt=in_doubt, force=force)


def with_familiarity(model: Model, scans: Iterable[Volume]) -> Model:
    """Return a model with a profile of what its training scans were like.

    `train` makes one by itself. This is for a model that has none, such as one of an older release; the profile changes
    its hash, so do it before the model is handed on.

    Args:
        model: That was trained on the scans.
        scans: Its training scans of the source contrast, eight or more.

    Raises:
        VolumeError: There is no head in a scan.
    """
    return dataclasses.replace(model, familiarity=FamiliarityProfile.of([measure_scan(model, scan) for scan in scans]))


def some(scans: Sequence[T]) -> list[T]:
    """Return the training scans that a profile is made from: all, or some at equal distances where they are many."""
    if len(scans) <= _MOST:
        return list(scans)
    return [scans[round(index)] for index in np.linspace(0, len(scans) - 1, _MOST)]


def measure_scan(model: Model, volume: Volume) -> Traits:
    """Return what a scan is like to a model.

    Args:
        model: On whose grid and with whose first generator it is measured.
        volume: A scan of the source contrast.

    Raises:
        VolumeError: There is no head in the scan.
    """
    prepare = model.settings.prepare
    mask = head_mask(volume.array, volume.affine)
    scale = head_scale(volume.array, mask, model.normalization.percentile, where=volume.path)
    # As in training, whatever is mapped in the end.
    onto = frame(volume, shape=prepare.shape, spacing_mm=prepare.spacing_mm, head=mask, averages=prepare.averages)
    unit, head = onto.forward(volume.array) / np.float32(scale), onto.forward(mask.astype(np.float32)) > 0.5
    return measure_prepared(model, unit, head, onto.working_affine)


def measure_prepared(model: Model, unit: np.ndarray, head: np.ndarray, affine: np.ndarray) -> Traits:
    """Return what a scan that lies on the model's grid is like to the model.

    Args:
        model: As for `measure_scan`.
        unit: (i, j, k) float32, unit scale, on the model's grid.
        head: Mask of the head on it.
        affine: Of that grid or of any that it was cut from, (4, 4), mm.
    """
    edges = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    box = _box(head)
    extents = [(along.stop - along.start) * edge for along, edge in zip(box, edges, strict=True)]
    return Traits(
        _triple(sorted(edges)),
        _triple(extents),
        _triple([_detail(np.moveaxis(unit, axis, 0), np.moveaxis(head, axis, 0)) for axis in range(3)]),
        _features(model, unit, head, box),
    )


def _features(model: Model, unit: np.ndarray, head: np.ndarray, box: Sequence[slice]) -> tuple[tuple[float, ...], ...]:
    """Return mean and standard deviation of each channel of the hidden layers, over the head voxels of the patches."""
    network = inner(model.generators[0])
    multiple = network.multiple if isinstance(network, GeneratorBase) else 1
    edge = -(-_EDGE // multiple) * multiple
    padding = [(0, max(0, edge - n)) for n in head.shape]
    z = np.pad(model.normalization.source.standardize(unit), padding, mode="edge")
    head = np.pad(head, padding)
    sums: list[list[torch.Tensor]] = []
    for start in itertools.product(*(_starts(along, n, edge) for along, n in zip(box, z.shape, strict=True))):
        cube = tuple(slice(first, first + edge) for first in start)
        patch, inside = (
            torch.from_numpy(np.ascontiguousarray(array[cube], np.float32)).to(model.device)[None, None]
            for array in (z, head)
        )
        sums.append([_moments(layer, inside) for layer in hidden(model.generators[0], patch)])
    features = []
    for layers in zip(*sums, strict=True):
        weight, first, second = torch.stack(layers).sum(0).split([1, *2 * [(layers[0].numel() - 1) // 2]])
        mean = first / weight
        deviation = (second / weight - mean.square()).clamp(min=0).sqrt()
        features.append(tuple(torch.cat([mean, deviation]).tolist()))
    return tuple(features)


def _moments(layer: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Return head voxels, sums and sums of squares over them of a layer's channels, in one row, float64."""
    i, j, k = layer.shape[2:]
    weight = F.adaptive_avg_pool3d(inside, (i, j, k)).double().flatten()
    values = layer[0].double().flatten(1)
    return torch.cat([weight.sum()[None], values @ weight, values.square() @ weight]).cpu()


def _starts(along: slice, n: int, edge: int) -> list[int]:
    middles = (along.start + place * (along.stop - along.start) for place in _PLACES)
    return sorted({min(max(0, round(middle - edge / 2)), n - edge) for middle in middles})


def _detail(unit: np.ndarray, head: np.ndarray) -> float:
    """Return the root mean square difference of neighbours along the first axis, over that of next neighbours."""
    inside = head[:-2] & head[1:-1] & head[2:]
    steps = unit[1:-1] - unit[:-2], unit[2:] - unit[:-2]
    near, far = (float(np.square(step[inside], dtype=float).sum()) for step in steps)
    return math.sqrt(near / far) if far > 0 else 0.0


def _box(head: np.ndarray) -> Sequence[slice]:
    """Return the bounding box of a mask, or all of the array where nothing is set."""
    found = ndimage.find_objects(head, max_label=1)
    return found[0] or [slice(0, n) for n in head.shape]


def _triple(numbers: Sequence[float]) -> tuple[float, float, float]:
    i, j, k = map(float, numbers)
    return i, j, k
