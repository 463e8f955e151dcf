"""Print the tables of docs/results.md from the folder of a `reproduce` run, so that no figure is typed by hand.

python tools/results_table.py runs/pd-t2
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from unscanned.files import read_json

METRICS = {"mae": 3, "psnr_nie": 2, "psnr": 2, "ssim": 3}


def scores_table(evaluation: dict[str, Any], region: str) -> str:
    """Return mean (SD) of every arm, and its paired differences in `psnr` from the baselines, as a Markdown table."""
    against = {
        (row["arm"], row["against"]): row
        for row in evaluation["comparisons"]
        if row["region"] == region and row["metric"] == "psnr"
    }
    lines = [
        "| arm | MAE | `psnr_nie`, dB | `psnr`, dB | SSIM | n | `psnr` minus the source's | minus the regression's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, regions in evaluation["arms"].items():
        cells = [_cell(regions[region][name], digits) for name, digits in METRICS.items()]
        gains = [_gain(against.get((arm, baseline))) for baseline in ("source", "regression")]
        lines.append(f"| {arm} | {' | '.join([*cells, str(regions[region]['mae']['n']), *gains])} |")
    return "\n".join(lines)


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


def _cell(summary: dict[str, Any], digits: int) -> str:
    if summary["mean"] is None:
        return "-"
    spread = "" if summary["sd"] is None else f" ({summary['sd']:.{digits}f})"
    return f"{summary['mean']:.{digits}f}{spread}"


def _gain(row: dict[str, Any] | None) -> str:
    if row is None or row["difference"] is None:
        return ""
    interval = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    return f"{row['difference']:+.2f}{interval}"


def main(run: Path) -> None:
    """Print the tables of one run."""
    evaluation = read_json(run / "evaluation" / "evaluation.json")
    for region in ("head", "volume"):
        print(f"{evaluation['regions'][region]}\n\n{scores_table(evaluation, region)}\n")
    print(training_table(run, list(evaluation["folders"])))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
