"""From scores to tables: rows for programs, summaries and paired comparisons for readers."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from unscanned.evaluation.cases import BASELINES
from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.statistics import compare, subject_means, summarize
from unscanned.formats.evaluation import Comparison, Failure, Score, SliceErrors, Summary

__all__ = ["comparisons", "mean_sd", "scores_csv", "slices_csv", "summaries"]


def summaries(
    arms: Sequence[str], scores: Sequence[Score], subjects: Collection[str]
) -> dict[str, dict[str, dict[str, Summary]]]:
    """Return {arm: {region: {metric: summary}}}, sessions of a subject averaged first.

    Args:
        arms: Arms in order.
        scores: All scores.
        subjects: Subjects that should have been scored.
    """
    regions = _metrics(scores)
    return {
        arm: {
            region: {
                metric: summarize(_by_subject(scores, arm, region, metric).values(), len(subjects))
                for metric in metrics
            }
            for region, metrics in regions.items()
        }
        for arm in arms
    }


def comparisons(arms: Sequence[str], first: str, scores: Sequence[Score]) -> list[Comparison]:
    """Return the paired difference of every arm from the first arm and from each baseline, per region and metric.

    A difference is that of `arm` minus `against`, over the subjects that both have.

    Args:
        arms: Arms in order, baselines included.
        first: The arm that the others are compared with.
        scores: All scores.
    """
    rows = []
    for region, metrics in _metrics(scores).items():
        for metric in metrics:
            values = {arm: _by_subject(scores, arm, region, metric) for arm in arms}
            for against in (first, *(baseline for baseline in BASELINES if baseline in arms)):
                for arm in arms:
                    if arm != against and (arm not in BASELINES or against == "source"):
                        found = dict(compare(values[against], values[arm]))
                        rows.append(Comparison(arm=arm, against=against, region=region, metric=metric, **found))
    return rows


def mean_sd(summary: Summary, digits: int) -> str:
    """Return a summary as text, such as "0.514 (0.021)"; a hyphen where there is no mean."""
    if summary.mean is None:
        return "-"
    return f"{summary.mean:.{digits}f}" + ("" if summary.sd is None else f" ({summary.sd:.{digits}f})")


def scores_csv(scores: Iterable[Score], failures: Iterable[Failure]) -> str:
    """Return one line for each case, arm and region with a column for each metric; a failure has its reason instead.

    An evaluation of an older release has no columns of metrics that came later.
    """
    scores = list(scores)
    metrics = [name for name in METRICS if not scores or any(name in row.values for row in scores)]
    rows: list[Sequence[Any]] = [
        (row.case, row.subject, row.session, row.arm, row.region, "ok", *(row.values.get(m) for m in metrics), None)
        for row in scores
    ]
    blank = (None,) * len(metrics)
    rows += [(row.case, None, None, row.arm, None, "failed", *blank, row.reason) for row in failures]
    return _csv(("case", "subject", "session", "arm", "region", "status", *metrics, "reason"), rows)


def slices_csv(slices: Iterable[SliceErrors]) -> str:
    """Return one line for each slice; `mse_head` is empty where a slice holds none of the head."""
    rows = (
        (plane.case, plane.arm, plane.plane, index, *values)
        for plane in slices
        for index, values in enumerate(zip(plane.mse_head, plane.mse_volume, strict=True))
    )
    return _csv(("case", "arm", "plane", "index", "mse_head", "mse_volume"), rows)


def _metrics(scores: Iterable[Score]) -> dict[str, list[str]]:
    """Return the metrics that each region has, in the order of `METRICS`."""
    found: dict[str, set[str]] = {}
    for row in scores:
        found.setdefault(row.region, set()).update(row.values)
    return {region: [name for name in METRICS if name in names] for region, names in found.items()}


def _by_subject(scores: Iterable[Score], arm: str, region: str, metric: str) -> dict[str, float]:
    return subject_means(
        (row.subject, value)
        for row in scores
        if row.arm == arm and row.region == region and (value := row.values.get(metric)) is not None
    )


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue()
