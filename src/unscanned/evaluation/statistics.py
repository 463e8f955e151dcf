"""From scores of cases to statements about subjects: mean (SD), and paired differences with an interval.

The subject is the unit: sessions of one subject are averaged first, and arms are compared on the same subjects.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Comparison", "Summary", "compare", "subject_means", "summarize"]

_LEAST_FOR_WILCOXON = 6


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation over subjects, and how many of them there are.

    Attributes:
        mean: Over the subjects that have a value; None when there is none.
        sd: Sample standard deviation (n - 1); None below two subjects.
        n: Subjects with a value.
        of: Subjects that should have one.
    """

    mean: float | None
    sd: float | None
    n: int
    of: int


@dataclass(frozen=True)
class Comparison:
    """Paired difference of two arms over the subjects that both have.

    Attributes:
        difference: Mean over subjects of second - first; None when they share no subject.
        sd: Sample standard deviation of the differences; None below two subjects.
        n: Subjects that both have.
        low: Lower end of the t-interval of the mean difference; None below two subjects.
        high: Upper end.
        confidence: Level of the interval.
        wilcoxon_p: Two-sided p of the Wilcoxon signed-rank test; None below six subjects.
        note: What cannot be said, and why; empty when all can.
    """

    difference: float | None
    sd: float | None
    n: int
    low: float | None
    high: float | None
    confidence: float
    wilcoxon_p: float | None
    note: str = ""


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
    if array.size == 0:
        return Summary(None, None, 0, of)
    finite = bool(np.isfinite(array).all())
    sd = float(array.std(ddof=1)) if array.size > 1 and finite else None
    return Summary(float(array.mean()), sd, array.size, of)


def compare(first: Mapping[str, float], second: Mapping[str, float], *, confidence: float = 0.95) -> Comparison:
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

    shared = [subject for subject in first if subject in second]
    differences = np.array([second[subject] - first[subject] for subject in shared if _finite(first, second, subject)])
    n = differences.size
    notes = []
    if n < len(shared):
        notes.append(f"{len(shared) - n} subject(s) with an infinite score left out")
    if n < 2:
        notes.append(f"no interval: {n} subject(s), and an interval needs two")
        mean = float(differences[0]) if n else None
        return Comparison(mean, None, n, None, None, confidence, None, "; ".join(notes))
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * sd / math.sqrt(n)
    p = None
    if n < _LEAST_FOR_WILCOXON:
        notes.append(f"no Wilcoxon test: {n} subjects, and it needs {_LEAST_FOR_WILCOXON}")
    else:
        p = float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0
    return Comparison(mean, sd, n, mean - half, mean + half, confidence, p, "; ".join(notes))


def _finite(first: Mapping[str, float], second: Mapping[str, float], subject: str) -> bool:
    return math.isfinite(first[subject]) and math.isfinite(second[subject])
