"""Print the paired differences of two arms whose scores stand in CSVs of docs/experiments/scores, as Markdown.

python tools/paired_difference.py FIRST.csv ARM SECOND.csv ARM

The second arm minus the first, inside the head, for each metric that both files have: subject by subject, each the mean
over its sessions and seeds, with the 95 % t-interval over the subjects that both have. The files may come from
different runs; that scans, grids and heads are the same is for the reader to know, and for MAE and MSE the z-scores.
ARM:SEED names one seed of an arm; likewise what a table was made with, such as "ARM:as acquired" of real-slices.csv.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from unscanned.errors import SettingsError
from unscanned.evaluation.statistics import compare, subject_means

Values = dict[str, list[tuple[str, float]]]
"""Of each metric, (subject, value) for each scan and seed."""

_KEYS = ("seed", "slices", "tilt_deg", "domain")
"Columns that part the rows of one arm."

_NO_METRICS = {"case", "subject", "session", "arm", "variant", "region", "status", "reason", "steps", "seconds_a_step"}
_NO_METRICS |= {"metric", "value", *_KEYS}


def read_arm(path: Path, name: str) -> Values:
    """Return the scores of an arm inside the head from a table of `evaluate`, of ablate_recipe.py or real_scans.py.

    Args:
        path: A CSV with a row for each scan, or for each scan and metric.
        name: The arm or variant, or its rows with one seed, slices, tilt or domain, as ARM:SEED.

    Raises:
        SettingsError: The file has no such arm, or rows of it that are of different slices, tilts or domains.
    """
    arm, _, only = name.partition(":")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"subject", "case"} & rows[0].keys():
        raise SettingsError("no scores of subjects", where=path, found=", ".join(rows[0]) if rows else "no row")
    values: Values = {}
    made_with: set[tuple[str | None, ...]] = set()
    for row in rows:
        if row.get("variant", row.get("arm")) != arm or row.get("region", "head") != "head":
            continue
        if only and only not in [row.get(key) for key in _KEYS]:
            continue
        made_with.add(tuple(row.get(key) for key in _KEYS if key != "seed"))
        subject = row.get("subject") or row["case"].partition("_")[0].removeprefix("sub-")
        cells = {row["metric"]: row["value"]} if "metric" in row else row
        for metric, cell in cells.items():
            if metric not in _NO_METRICS and cell:
                values.setdefault(metric, []).append((subject, float(cell)))
    if len(made_with) > 1:
        several = ", ".join(sorted(str(value) for each in made_with for value in each if value is not None))
        raise SettingsError("rows of different kinds", where=path, found=several, expected=f"{arm}:ONE OF THEM")
    if not values:
        there = sorted({row.get("variant", row.get("arm", "")) for row in rows})
        raise SettingsError("no such arm", where=path, found=", ".join(there), expected=name)
    return values


def differences(first: Values, second: Values) -> str:
    """Return a Markdown table with a row for each metric that both arms have."""
    rows = ["| metric | subjects | difference |", "| --- | --- | --- |"]
    for metric in first:
        if metric in second:
            found = compare(subject_means(first[metric]), subject_means(second[metric]))
            if found.low is None:
                raise SettingsError(
                    "no interval", where=metric, found=f"{found.n} subject(s) that both have", expected="2"
                )
            rows.append(f"| {metric} | {found.n} | {found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}] |")
    return "\n".join(rows)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    print(differences(read_arm(Path(sys.argv[1]), sys.argv[2]), read_arm(Path(sys.argv[3]), sys.argv[4])))
