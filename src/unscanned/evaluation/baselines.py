"""Two predictions that need no network, and that every network has to beat: the source, and a voxelwise regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from unscanned.errors import DatasetError
from unscanned.formats.evaluation import Curve

__all__ = ["JointSums", "Regression", "fit_regression", "source_as_target"]

_FINE_BINS = 8192
_FINE_LOW, _FINE_HIGH = -0.5, 3.0


def source_as_target(source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the source as a prediction: inside the head with the target's own mean and standard deviation.

    Knowing the target's mean and standard deviation is more than any method has, so the baseline is a generous one.
    Outside the head the source stays as it is.

    Args:
        source: (i, j, k), unit scale (1 = a percentile inside the head).
        target: Acquired target, same shape, unit scale.
        mask: Head, same shape.

    Raises:
        DatasetError: The head is empty, or the source is constant inside it.
    """
    inside = source[mask].astype(np.float64)
    if inside.size == 0 or inside.std() == 0:
        raise DatasetError("the source has no contrast inside the head", found=f"{inside.size} voxels, SD 0")
    wanted = target[mask].astype(np.float64)
    gain = wanted.std() / inside.std()
    return np.where(mask, (source - inside.mean()) * gain + wanted.mean(), source).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Regression:
    """Conditional mean of the target given the source's intensity, interpolated linearly and constant beyond the ends.

    Attributes:
        source: Mean source intensity of each bin, ascending, unit scale.
        target: Mean target intensity of the same voxels, unit scale.
    """

    source: np.ndarray
    target: np.ndarray

    def __call__(self, source: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return the predicted target, unit scale; outside the head the source stays as it is.

        Args:
            source: (i, j, k), unit scale.
            mask: Head, same shape.
        """
        predicted = np.array(source, np.float32)
        predicted[mask] = np.interp(source[mask], self.source, self.target)
        return predicted

    def curve(self) -> Curve:
        """Return what an evaluation stores, which `from_curve` reads back."""
        return Curve(source=self.source.tolist(), target=self.target.tolist())

    @classmethod
    def from_curve(cls, curve: Curve) -> Regression:
        """Return the regression that `curve` stands for."""
        return cls(np.array(curve.source), np.array(curve.target))


@dataclass(frozen=True, eq=False)
class JointSums:
    """All that a regression needs of pairs, and what can be added up over them and taken away again.

    Attributes:
        sums: Of each fine bin of source intensity: voxels, and the sums of their source and target intensities, unit
            scale; float64 (3, bins).
    """

    sums: np.ndarray

    @classmethod
    def of(cls, source: np.ndarray, target: np.ndarray, mask: np.ndarray) -> JointSums:
        """Return the sums of one pair.

        Args:
            source: (i, j, k), unit scale.
            target: Acquired target, same shape, unit scale.
            mask: Head, same shape.
        """
        inside, wanted = source[mask].astype(np.float64), target[mask].astype(np.float64)
        place = (inside - _FINE_LOW) / (_FINE_HIGH - _FINE_LOW) * _FINE_BINS
        fine = np.clip(place, 0, _FINE_BINS - 1).astype(np.intp)
        return cls(np.stack([np.bincount(fine, weights, minlength=_FINE_BINS) for weights in (None, inside, wanted)]))

    @classmethod
    def none(cls) -> JointSums:
        """Return the sums of no pair."""
        return cls(np.zeros((3, _FINE_BINS)))

    def __add__(self, other: JointSums) -> JointSums:
        return JointSums(self.sums + other.sums)

    def __sub__(self, other: JointSums) -> JointSums:
        return JointSums(self.sums - other.sums)

    def fit(self, *, bins: int = 256) -> Regression:
        """Return the regression of these pairs.

        Args:
            bins: Bins with about the same number of voxels each.

        Raises:
            DatasetError: No voxel to fit on.
        """
        counts = self.sums[0]
        if not counts.any():
            raise DatasetError("no voxel to fit the regression on", expected="training pairs with a head")
        # A fine bin goes whole to the quantile bin that holds the middle of its voxels.
        middle = (np.cumsum(counts) - counts / 2) / counts.sum()
        coarse = np.minimum((middle * bins).astype(np.intp), bins - 1)
        count, source_sum, target_sum = (np.bincount(coarse, weights=sums, minlength=bins) for sums in self.sums)
        filled = count > 0
        return Regression(source_sum[filled] / count[filled], target_sum[filled] / count[filled])


def fit_regression(pairs: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], *, bins: int = 256) -> Regression:
    """Fit the target as a function of the source's intensity at the same voxel, on the training subjects.

    The curve need not be monotone: in T1 to T2 it is not. Memory does not grow with the number of pairs.

    Args:
        pairs: (source, target, head mask) of each training subject, same shape, unit scale.
        bins: Bins with about the same number of voxels each.

    Raises:
        DatasetError: No voxel to fit on.

    Example:
        >>> ramp = np.linspace(0, 1, 1000).reshape(10, 10, 10)
        >>> curve = fit_regression([(ramp, 1 - ramp, ramp >= 0)])
        >>> bool(abs(curve(np.array([0.25]), np.array([True]))[0] - 0.75) < 1e-3)
        True
    """
    return sum((JointSums.of(*pair) for pair in pairs), JointSums.none()).fit(bins=bins)
