"""From scores to tables: rows for programs, summaries and paired comparisons for readers."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from unscanned.display import html_table
from unscanned.evaluation.cases import BASELINES, CEILINGS
from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.scores import REGIONS
from unscanned.evaluation.statistics import compare, spread_of, subject_means, summarize
from unscanned.formats.evaluation import (
    Comparison,
    Difference,
    EvaluationRecord,
    Failure,
    Score,
    SliceErrors,
    Spread,
    Summary,
)

__all__ = [
    "comparisons",
    "html_scores",
    "mean_interval",
    "mean_sd",
    "over_seeds",
    "scores_csv",
    "seed_range",
    "slices_csv",
    "spreads",
    "summaries",
    "tissues",
]

_Cases = Mapping[str, tuple[str, float]]
"Subject and value by case."


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
                metric: summarize(subject_means(_by_case(scores, arm, region, metric).values()).values(), len(subjects))
                for metric in metrics
            }
            for region, metrics in regions.items()
        }
        for arm in arms
    }


def over_seeds(scores: Iterable[Score], seeds: Mapping[str, Sequence[str]]) -> list[Score]:
    """Return the scores, and those of the arms of each seed once more as scores of their arm.

    So a subject's value in the arm is the mean over its seeds: seeds of one subject are no further subjects.

    Args:
        scores: All scores.
        seeds: The arms of its seeds by arm.
    """
    of = {member: arm for arm, members in seeds.items() for member in members}
    rows = list(scores)
    return rows + [row.model_copy(update={"arm": of[row.arm]}) for row in rows if row.arm in of]


def spreads(
    arms: Mapping[str, Mapping[str, Mapping[str, Summary]]], seeds: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, dict[str, Spread]]]:
    """Return {arm: {region: {metric: spread over its seeds}}}.

    Args:
        arms: The summaries, those of the arms of each seed included.
        seeds: The arms of its seeds by arm.
    """
    return {
        arm: {
            region: {
                metric: spread_of(
                    found.mean for member in members if (found := arms[member][region][metric]).mean is not None
                )
                for metric in metrics
            }
            for region, metrics in arms[arm].items()
        }
        for arm, members in seeds.items()
    }


def comparisons(arms: Sequence[str], first: str, scores: Sequence[Score]) -> list[Comparison]:
    """Return the paired difference of each arm from the first, the baselines and ceilings, by region and metric.

    A difference is that of `arm` minus `against`, over the cases that both have, averaged by subject.

    Args:
        arms: Arms in order, baselines and ceilings included.
        first: The arm that the others are compared with.
        scores: All scores.
    """
    rows = []
    for region, metrics in _metrics(scores).items():
        for metric in metrics:
            values = {arm: _by_case(scores, arm, region, metric) for arm in arms}
            for against in (first, *(known for known in (*BASELINES, *CEILINGS) if known in arms)):
                for arm in arms:
                    if arm not in (against, *CEILINGS) and (arm not in BASELINES or against == "source"):
                        found = dict(_paired(values[against], values[arm]))
                        rows.append(Comparison(arm=arm, against=against, region=region, metric=metric, **found))
    return rows


def _paired(first: _Cases, second: _Cases) -> Difference:
    """Compare two arms on the cases that both have, and say where one of them has others."""
    shared = [case for case in first if case in second]
    found = compare(*(subject_means(values[case] for case in shared) for values in (first, second)))
    left_out = len(first) + len(second) - 2 * len(shared)
    note = f"{left_out} case(s) that one of the two lacks left out" if left_out else ""
    return found.model_copy(update={"note": "; ".join(filter(None, (note, found.note)))})


def tissues(content: EvaluationRecord) -> dict[str, str]:
    """Return the regions of an evaluation that are tissues, with their names; empty where there were no labels."""
    return {region: region.removeprefix("tissue: ") for region in content.regions if region not in REGIONS}


def mean_sd(summary: Summary, digits: int) -> str:
    """Return a summary as text, such as "0.514 (0.021)"; a hyphen where there is no mean."""
    if summary.mean is None:
        return "-"
    return f"{summary.mean:.{digits}f}" + ("" if summary.sd is None else f" ({summary.sd:.{digits}f})")


def mean_interval(difference: Difference, digits: int) -> str:
    """Return a paired difference with its interval as text, such as "+1.20 [+0.31, +2.09]"; a hyphen where none is."""
    if difference.difference is None:
        return "-"
    ends = [] if difference.low is None or difference.high is None else [difference.low, difference.high]
    interval = f" [{', '.join(f'{end:+.{digits}f}' for end in ends)}]" if ends else ""
    return f"{difference.difference:+.{digits}f}{interval}"


def seed_range(spread: Spread, digits: int) -> str:
    """Return a spread over seeds as text, such as "0.12 [20.31, 20.55]": SD, lowest, highest; a hyphen for none."""
    if spread.low is None or spread.high is None:
        return "-"
    sd = "-" if spread.sd is None else f"{spread.sd:.{digits}f}"
    return f"{sd} [{spread.low:.{digits}f}, {spread.high:.{digits}f}]"


def html_scores(content: EvaluationRecord) -> str:
    """Return the scores inside the head for a notebook: mean (SD) of each arm, paired differences, and failures."""
    metrics = {name: metric for name, metric in METRICS.items() if metric.in_short_tables}
    headings = [f"{metric.heading}\n{metric.unit}" for metric in metrics.values()]
    arms = [
        [
            arm,
            *(mean_sd(regions["head"][name], metric.digits) for name, metric in metrics.items()),
            next(iter(regions["head"].values())).n,
        ]
        for arm, regions in content.arms.items()
    ]
    found = {(row.arm, row.against, row.metric): row for row in content.comparisons if row.region == "head"}
    pairs = dict.fromkeys((arm, against) for arm, against, _ in found)
    differences = [
        [
            f"{arm} minus {against}",
            *(mean_interval(found[arm, against, name], metric.digits) for name, metric in metrics.items()),
            found[arm, against, next(iter(metrics))].n,
        ]
        for arm, against in pairs
    ]
    share = next((f"{100 * row.confidence:g} %" for row in found.values()), "")
    tables = [
        html_table(
            arms,
            header=["arm", *headings, "n"],
            caption=f"{content.source} -> {content.target}: mean (SD) over test subjects, inside the head",
        ),
        html_table(
            differences,
            header=["paired difference", *headings, "n"],
            caption=f"mean over the subjects of both, inside the head [{share} interval, from two subjects on]",
        ),
    ]
    if content.spread:
        apart = [
            [
                arm,
                *(seed_range(regions["head"][name], metric.digits) for name, metric in metrics.items()),
                next(iter(regions["head"].values())).n,
            ]
            for arm, regions in content.spread.items()
        ]
        caption = "over seeds: SD [lowest, highest] of the mean over test subjects, inside the head"
        tables.append(html_table(apart, header=["arm", *headings, "seeds"], caption=caption))
    if content.failures:
        failed = [[failure.case, failure.arm, failure.reason] for failure in content.failures]
        tables.append(html_table(failed, header=["case", "arm", "why it was not scored"]))
    return "\n".join(tables)


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


def _by_case(scores: Iterable[Score], arm: str, region: str, metric: str) -> _Cases:
    """Return the subject and the value of each case that has one; that of several seeds is their mean."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for row in scores:
        if row.arm == arm and row.region == region and (value := row.values.get(metric)) is not None:
            groups.setdefault(row.case, []).append((row.subject, value))
    return {case: next(iter(subject_means(group).items())) for case, group in groups.items()}


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
    return text.getvalue()
