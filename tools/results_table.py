"""Print the table of docs/results.md from the folder of a `reproduce` run, so that no figure is typed by hand.

python tools/results_table.py runs/pd-t2 [docs/experiments/scores/NAME-summary.csv]

With a second path, all scores and paired differences, of both regions and every metric, go into that CSV.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from unscanned.evaluation.cases import BASELINES
from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.tables import mean_sd
from unscanned.files import read_json
from unscanned.formats.evaluation import Comparison, EvaluationRecord, read_evaluation

SHOWN = {name: METRICS[name] for name in ("mae", "psnr", "ssim")}
"""The metrics of the printed table; the CSV holds every metric of the evaluation."""


def scores_table(evaluation: EvaluationRecord, trained: dict[str, str]) -> str:
    """Return each arm's training, its mean (SD) inside the head, and its paired gains in `psnr`, as Markdown.

    Args:
        evaluation: The content of evaluation.json.
        trained: The three cells of each arm that was trained: patches, best epoch, minutes.
    """
    against = {
        (row.arm, row.against): row for row in evaluation.comparisons if row.region == "head" and row.metric == "psnr"
    }
    headings = [f"{metric.heading}, {metric.unit}".removesuffix(", ") for metric in SHOWN.values()]
    header = ["arm", "patches", "best epoch", "minutes", *headings, "PSNR minus the source's", "minus the regression's"]
    rows = [header, ["---"] * len(header)]
    for arm, regions in evaluation.arms.items():
        cells = [mean_sd(regions["head"][name], metric.digits) for name, metric in SHOWN.items()]
        gains = [_gain(against.get((arm, baseline))) for baseline in BASELINES]
        rows.append([arm, trained.get(arm, " |  | "), *cells, *gains])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def trained_cells(run: Path, arm: str) -> str:
    """Return how many patches each stage of an arm saw, its best epoch, and its minutes of steps, as three cells."""
    stages = read_json(run / "reproduce.json")["arms"][arm]["stages"]
    patches = " + ".join(str(stage["patches"]) for stage in stages)
    best = ", ".join(f"{stage['best']['epoch']}/{stage['epochs']}" for stage in stages)
    minutes = " + ".join(f"{stage['seconds'] / 60:.0f}" for stage in stages)
    return f"{patches} | {best} | {minutes}"


def write_summary(evaluation: EvaluationRecord, path: Path) -> None:
    """Write a line for each arm, region and metric: mean, SD, n, and the paired gains over both baselines."""
    against = {(row.arm, row.against, row.region, row.metric): row for row in evaluation.comparisons}
    gains = [f"minus_{baseline}{end}" for baseline in BASELINES for end in ("", "_low", "_high")]
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["arm", "region", "metric", "mean", "sd", "n", *gains])
        for arm, regions in evaluation.arms.items():
            for region, metrics in regions.items():
                for metric, summary in metrics.items():
                    rows = [against.get((arm, baseline, region, metric)) for baseline in BASELINES]
                    values = [getattr(row, key, None) for row in rows for key in ("difference", "low", "high")]
                    numbers = [*map(_number, (summary.mean, summary.sd)), summary.n, *map(_number, values)]
                    table.writerow([arm, region, metric, *numbers])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _gain(row: Comparison | None) -> str:
    if row is None or row.difference is None:
        return ""
    interval = "" if row.low is None else f" [{row.low:+.2f}, {row.high:+.2f}]"
    return f"{row.difference:+.2f}{interval}"


def main(run: Path, summary: Path | None = None) -> None:
    """Print the table of one run, and write its summary where a path is given."""
    evaluation = read_evaluation(run / "evaluation")
    print(scores_table(evaluation, {arm: trained_cells(run, arm) for arm in evaluation.folders}))
    if summary is not None:
        write_summary(evaluation, summary)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
