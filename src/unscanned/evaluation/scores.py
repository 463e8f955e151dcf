"""The scores of one case: every arm, in every region, with every metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unscanned.datasets.pairs import Pair
from unscanned.errors import UnscannedError
from unscanned.evaluation.cases import Images
from unscanned.evaluation.metrics import METRICS, slice_mse

__all__ = [
    "DEFINITIONS",
    "PLANES",
    "REGIONS",
    "Failure",
    "Score",
    "SliceErrors",
    "case_constants",
    "score",
    "score_case",
]

PLANES = ("sagittal", "coronal", "axial")
"Planes by the RAS+ axis that their slices are counted along."

REGIONS = {
    "head": "voxels inside the head of the acquired target, the same for every arm",
    "volume": "all voxels of the target's grid, background included",
}

DEFINITIONS = {
    "mae": "mean absolute error of z-scores; lower is better",
    "mse": "mean squared error of z-scores; lower is better",
    "psnr_nie": "20 log10(largest z-score of either volume / root mean squared error), dB, as the authors of the "
    "method and the report compute it; higher is better, but a bright synthetic voxel raises it",
    "psnr": "20 log10(1 / root mean squared error) in unit scale (1 = a percentile of the target inside the head), "
    "dB; higher is better",
    "ssim": "structural similarity in unit scale, data range 1, Gaussian window of sigma 1.5 voxels; at most 1, higher "
    "is better",
}

_UNIT_SCALE = {"psnr", "ssim"}


@dataclass(frozen=True)
class Score:
    """One value for each metric of one arm's image of one case in one region."""

    case: str
    subject: str
    session: str | None
    arm: str
    region: str
    values: dict[str, float]


@dataclass(frozen=True)
class Failure:
    """An arm's image of a case that has no scores, and why. The arm is `target` when the whole case has none."""

    case: str
    arm: str
    reason: str


@dataclass(frozen=True)
class SliceErrors:
    """Mean squared error of z-scores in every slice of a plane; the index counts along the plane's axis in RAS+.

    Attributes:
        case: Case.
        arm: Arm.
        plane: One of `PLANES`.
        mse_head: Inside the head; None where a slice holds none of it.
        mse_volume: Of all voxels of the slice.
    """

    case: str
    arm: str
    plane: str
    mse_head: list[float | None]
    mse_volume: list[float]


def score(
    target: np.ndarray, synthetic: np.ndarray, head: np.ndarray, *, mean: float, std: float
) -> dict[str, dict[str, float]]:
    """Score one volume in every region with every metric.

    Args:
        target: Acquired target, (i, j, k), unit scale.
        synthetic: Synthetic volume, same shape, unit scale.
        head: Head of the target, same shape.
        mean: Mean of the target contrast in unit scale, which becomes 0.
        std: Its standard deviation, which becomes 1.

    Returns:
        {region: {metric: value}} for the `REGIONS` and the `METRICS`.

    Raises:
        DatasetError: A volume cannot be scored; see `unscanned.evaluation.metrics`.
    """
    z_target, z_synthetic = ((array - np.float32(mean)) / np.float32(std) for array in (target, synthetic))
    return {
        region: {
            name: metric(target, synthetic, mask, data_range=1.0)
            if name in _UNIT_SCALE
            else metric(z_target, z_synthetic, mask)
            for name, metric in METRICS.items()
        }
        for region, mask in (("head", head), ("volume", None))
    }


def case_constants(images: Images, constants: Mapping[str, Any]) -> tuple[float, float]:
    """Return the mean and SD that make z-scores of a case: the evaluation's, or the target's own inside its head."""
    if constants["std"] is not None:
        return constants["mean"], constants["std"]
    inside = images.target[images.head].astype(np.float64)
    return float(inside.mean()), float(inside.std())


def score_case(
    pair: Pair,
    images: Images,
    constants: Mapping[str, Any],
    scores: list[Score],
    slices: list[SliceErrors],
    failures: list[Failure],
) -> None:
    """Score every arm of a case, and add the rows to the three lists."""
    failures += [Failure(pair.case, arm, reason) for arm, reason in images.failures.items()]
    mean, std = case_constants(images, constants)
    for arm, image in images.arms.items():
        try:
            regions = score(images.target, image, images.head, mean=mean, std=std)
        except UnscannedError as error:
            failures.append(Failure(pair.case, arm, str(error)))
            continue
        scores += [
            Score(pair.case, pair.subject, pair.session, arm, region, values) for region, values in regions.items()
        ]
        # A mean squared error in unit scale becomes that of z-scores by the square of the standard deviation.
        for axis, plane in enumerate(PLANES):
            head = slice_mse(images.target, image, images.head, axis=axis) / std**2
            whole = slice_mse(images.target, image, axis=axis) / std**2
            inside = [value if math.isfinite(value) else None for value in head.tolist()]
            slices.append(SliceErrors(pair.case, arm, plane, inside, whole.tolist()))
