"""The scores of one case: every arm, in every region, with every metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unscanned.datasets.pairs import Pair
from unscanned.errors import DatasetError
from unscanned.evaluation.cases import Images
from unscanned.evaluation.metrics import METRICS, Metric, slice_mse
from unscanned.formats.evaluation import Constants, Failure, Score, SliceErrors
from unscanned.machine.crash import of_one

__all__ = ["PLANES", "REGIONS", "case_constants", "score", "score_case"]

PLANES = ("sagittal", "coronal", "axial")
"Planes by the RAS+ axis that their slices are counted along."

REGIONS = {
    "head": "voxels inside the head of the acquired target, the same for every arm",
    "volume": "all voxels of the target's grid, background included",
}


def score(
    target: np.ndarray,
    synthetic: np.ndarray,
    head: np.ndarray,
    *,
    mean: float,
    std: float,
    tissues: Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Score one volume in every region with every metric.

    Args:
        target: Acquired target, (i, j, k), unit scale.
        synthetic: Synthetic volume, same shape, unit scale.
        head: Head of the target, same shape.
        mean: Mean of the target contrast in unit scale, which becomes 0.
        std: Its standard deviation, which becomes 1.
        tissues: Further regions, for the metrics that have a meaning there.

    Returns:
        {region: {metric: value}} for the `REGIONS` and the `METRICS`, and for the tissues. None is what cannot be
        computed, such as SSIM of ten slices.

    Raises:
        DatasetError: No metric can be computed; see `unscanned.evaluation.metrics`.
    """
    volumes = {"unit scale": (target, synthetic)}
    z_target, z_synthetic = ((array - np.float32(mean)) / np.float32(std) for array in (target, synthetic))
    volumes["z-scores"] = z_target, z_synthetic
    found = {
        region: _values(METRICS, {scale: (*pair, mask) for scale, pair in volumes.items()})
        for region, mask in (("head", head), ("volume", None))
    }
    few = {name: metric for name, metric in METRICS.items() if metric.by_tissue}
    flat = {scale: [array.ravel() for array in pair] for scale, pair in volumes.items()} if tissues else {}
    for region, mask in (tissues or {}).items():
        voxels = np.flatnonzero(mask)  # few of all, and taking them is faster than masking
        taken = {scale: [array[voxels] for array in pair] for scale, pair in flat.items()}
        found[region] = _values(few, taken)
    return found


def _values(metrics: Mapping[str, Metric], volumes: Mapping[str, Sequence[Any]]) -> dict[str, float | None]:
    """Return the value of each metric, None where it cannot be computed; where none can, the last error is raised."""
    found: dict[str, float | None] = {}
    refusal = None
    for name, metric in metrics.items():
        try:
            found[name] = metric(*volumes[metric.scale])
        except DatasetError as error:
            found[name], refusal = None, error
    if refusal is not None and all(value is None for value in found.values()):
        raise refusal
    return found


def case_constants(images: Images, constants: Constants) -> tuple[float, float]:
    """Return the mean and SD that make z-scores of a case: the evaluation's, or the target's own inside its head."""
    if constants.mean is not None and constants.std is not None:
        return constants.mean, constants.std
    inside = images.target[images.head].astype(np.float64)
    return float(inside.mean()), float(inside.std())


def score_case(
    pair: Pair,
    images: Images,
    constants: Constants,
    scores: list[Score],
    slices: list[SliceErrors],
    failures: list[Failure],
) -> None:
    """Score every arm of a case, and add the rows to the three lists, and what lacks to the images' warnings."""
    failures += [Failure(case=pair.case, arm=arm, reason=reason) for arm, reason in images.failures.items()]
    mean, std = case_constants(images, constants)
    for arm, image in images.arms.items():
        try:
            regions = score(images.target, image, images.head, mean=mean, std=std, tissues=images.tissues)
            rows = [_slice_errors(pair, arm, images, std, axis) for axis in range(len(PLANES))]
        except Exception as error:
            failures.append(Failure(case=pair.case, arm=arm, reason=str(of_one(error, where=f"{pair.case}, {arm}"))))
            continue
        lacking = [name for name, value in regions["head"].items() if value is None]
        if lacking:
            images.warnings.append(f"{arm}: cannot be computed: {', '.join(lacking)}")
        scores += [
            Score(case=pair.case, subject=pair.subject, session=pair.session, arm=arm, region=region, values={**values})
            for region, values in regions.items()
        ]
        slices += rows


def _slice_errors(pair: Pair, arm: str, images: Images, std: float, axis: int) -> SliceErrors:
    # A mean squared error in unit scale becomes that of z-scores by the square of the standard deviation.
    head = (slice_mse(images.target, images.arms[arm], images.head, axis=axis) / std**2).tolist()
    whole = (slice_mse(images.target, images.arms[arm], axis=axis) / std**2).tolist()
    inside = [value if math.isfinite(value) else None for value in head]
    return SliceErrors(case=pair.case, arm=arm, plane=PLANES[axis], mse_head=inside, mse_volume=whole)
