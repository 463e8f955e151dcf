"""Print the tables of docs/results.md from the folder of a `reproduce` run, so that no figure is typed by hand.

python tools/results_table.py runs/pd-t2
"""

from __future__ import annotations

import sys
from pathlib import Path

from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.tables import mean_sd
from unscanned.files import read_json
from unscanned.formats.evaluation import Comparison, EvaluationRecord, read_evaluation


def scores_table(evaluation: EvaluationRecord, region: str) -> str:
    """Return mean (SD) of every arm, and its paired differences in `psnr` from the baselines, as a Markdown table."""
    against = {
        (row.arm, row.against): row for row in evaluation.comparisons if row.region == region and row.metric == "psnr"
    }
    shown = {
        name: metric for name, metric in METRICS.items() if metric.in_short_tables and name in evaluation.definitions
    }
    headings = [f"{metric.heading}, {metric.unit}".removesuffix(", ") for metric in shown.values()]
    header = ["arm", *headings, "n", "`psnr` minus the source's", "minus the regression's"]
    rows = [header, ["---"] * len(header)]
    for arm, regions in evaluation.arms.items():
        cells = [mean_sd(regions[region][name], metric.digits) for name, metric in shown.items()]
        gains = [_gain(against.get((arm, baseline))) for baseline in ("source", "regression")]
        rows.append([arm, *cells, str(regions[region]["psnr"].n), *gains])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def training_table(run: Path, arms: list[str]) -> str:
    """Return what each stage of each arm trained on and for how long, as a Markdown table."""
    lines = ["| arm | patches seen | steps | best epoch | minutes of steps |", "| --- | --- | --- | --- | --- |"]
    for arm in arms:
        stages = read_json(run / "arms" / arm / "model" / "model.json")["provenance"]["stages"]
        for number, stage in enumerate(stages, 1):
            name = arm if len(stages) == 1 else f"{arm}, stage {number}"
            best = f"{stage['best']['epoch']}/{stage['epochs']}"
            lines.append(f"| {name} | {stage['patches']} | {stage['steps']} | {best} | {stage['seconds'] / 60:.0f} |")
    return "\n".join(lines)


def _gain(row: Comparison | None) -> str:
    if row is None or row.difference is None:
        return ""
    interval = "" if row.low is None else f" [{row.low:+.2f}, {row.high:+.2f}]"
    return f"{row.difference:+.2f}{interval}"


def main(run: Path) -> None:
    """Print the tables of one run."""
    evaluation = read_evaluation(run / "evaluation")
    for region, words in evaluation.regions.items():
        print(f"{words}\n\n{scores_table(evaluation, region)}\n")
    print(training_table(run, list(evaluation.folders)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
