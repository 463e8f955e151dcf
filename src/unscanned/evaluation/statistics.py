"""From scores of cases to statements about subjects: mean (SD), and paired differences with an interval.

The subject is the unit: sessions of one subject, and trainings of one arm with several seeds, are averaged first, and
arms are compared on the same subjects.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from unscanned.formats.evaluation import Difference, Spread, Summary

__all__ = ["compare", "spread_of", "subject_means", "summarize"]

_LEAST_FOR_WILCOXON = 6


def subject_means(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Average the values of each subject, so that one with two sessions does not count twice.

    Args:
        values: (subject, value) for every case.

    Example:
        >>> subject_means([("01", 1.0), ("02", 5.0), ("01", 3.0)])
        {'01': 2.0, '02': 5.0}
    """
    groups: dict[str, list[float]] = {}
    for subject, value in values:
        groups.setdefault(subject, []).append(value)
    return {subject: math.fsum(group) / len(group) for subject, group in groups.items()}


def summarize(values: Collection[float], of: int) -> Summary:
    """Return the mean (SD) of one value a subject.

    Args:
        values: One value for each subject that was scored; infinity is kept as it is.
        of: Subjects that should have been scored.
    """
    array = np.asarray(list(values), np.float64)
    with_sd = array.size > 1 and np.isfinite(array).all()
    return Summary(
        mean=float(array.mean()) if array.size else None,
        sd=float(array.std(ddof=1)) if with_sd else None,
        n=array.size,
        of=of,
    )


def spread_of(means: Iterable[float]) -> Spread:
    """Return how far the seeds of an arm lie apart.

    Args:
        means: Of each seed, the mean over subjects.

    Example:
        >>> spread_of([20.0, 22.0]).sd
        1.4142135623730951
    """
    array = np.asarray(list(means), np.float64)
    with_sd = array.size > 1 and np.isfinite(array).all()
    return Spread(
        sd=float(array.std(ddof=1)) if with_sd else None,
        low=float(array.min()) if array.size else None,
        high=float(array.max()) if array.size else None,
        n=array.size,
    )


def compare(first: Mapping[str, float], second: Mapping[str, float], *, confidence: float = 0.95) -> Difference:
    """Compare two arms on the subjects that both have.

    The interval is Student's, of the mean of the paired differences; it assumes that those are roughly normal. The
    Wilcoxon signed-rank test does not, and needs six subjects before it can reach 0.05. Neither is adjusted for the
    number of comparisons.

    Args:
        first: Value of each subject in the arm to compare with.
        second: Value of each subject in the arm that is compared.
        confidence: Level of the interval, between 0 and 1.

    Example:
        >>> result = compare({"01": 1.0, "02": 2.0, "03": 3.0}, {"01": 2.0, "02": 3.5, "03": 3.5})
        >>> result.difference, result.n
        (1.0, 3)
    """
    from scipy import stats

    shared = [(first[subject], second[subject]) for subject in first if subject in second]
    differences = np.array([after - before for before, after in shared if math.isfinite(before + after)])
    n, notes = differences.size, []
    sd = low = high = p = None
    if n < len(shared):
        notes.append(f"{len(shared) - n} subject(s) with an infinite score left out")
    if n < 2:
        notes.append(f"no interval: {n} subject(s), and an interval needs two")
    else:
        sd = float(differences.std(ddof=1))
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # SciPy's, of equal differences
            low, high = map(float, stats.ttest_1samp(differences, 0).confidence_interval(confidence))
        if n < _LEAST_FOR_WILCOXON:
            notes.append(f"no Wilcoxon test: {n} subjects, and it needs {_LEAST_FOR_WILCOXON}")
        else:
            p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return Difference(
        difference=float(differences.mean()) if n else None,
        sd=sd,
        n=n,
        low=low,
        high=high,
        confidence=confidence,
        wilcoxon_p=p,
        note="; ".join(notes),
    )
