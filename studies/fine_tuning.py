"""What fine-tuning on a handful of pairs gives: a model as it is, gone on with, and one from scratch for as long.

Run: python studies/fine_tuning.py OUT MODEL DATASET... --labels LABEL_MAPS [--source T1w --target T2w --steps 300]
    [--settings FILE]

Each patient of the BIDS datasets is left out once. On the pairs of all others one network goes on from the model
(`train --from`), one does so and keeps half of the model's weights (`training.keep`), with --labels one goes on with
simulated pairs in place of half of the patches (`simulated.share`), and one of the same kind starts from scratch, with
the same settings and the same number of steps. Each then makes the target of the patient that it has not seen. The
model itself has seen none.

OUT gets a run for each patient and arm, which goes on where it was when the call is repeated, the synthetic volumes,
an evaluation with a regression fitted on the other patients, and report.html.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from os.path import realpath
from pathlib import Path
from typing import Any

from unscanned.datasets.pairs import select_pairs
from unscanned.evaluation.evaluate import evaluate
from unscanned.files import write_json
from unscanned.formats.evaluation import EvaluationRecord
from unscanned.report.page import write_report
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import synthesize
from unscanned.training.run import train
from unscanned.training.start import resolve_run

ARMS = ("fine-tuned", "half-kept", "from-scratch")
WITH_WIDE = "with-wide"
SHOWN = ("psnr", "psnr_one_gain", "ssim", "hfen", "mae")


def settings_of(arm: str, model: Path, split: Path, common: dict[str, dict[str, Any]], file: Path | None = None) -> Any:
    """Return the settings of an arm: those of the model that can be, its weights to start from or not."""
    own = {table: {**values} for table, values in common.items()}
    own["training"] |= {"start": str(model)}
    own["split"] = {"file": str(split)}
    settings = resolve_run(None, file, own)
    average = settings.training.average or 0.998  # keeping is a matter of the average
    change: dict[str, dict[str, Any]] = {
        "fine-tuned": {},
        "half-kept": {"training": {"keep": 0.5, "average": average}},
        WITH_WIDE: {"simulated": {"share": 0.5}},
        "from-scratch": {"training": {"start": None}},
    }
    return settings.change(**change[arm])


def table_of(datasets: Sequence[Path], source: str, target: str, path: Path) -> Path:
    """Write one table of the pairs of several datasets."""
    rows = [
        [pair.subject, pair.session or "", realpath(pair.source), realpath(pair.target)]
        for dataset in datasets
        for pair in select_pairs(dataset, source=source, target=target).pairs
    ]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["subject", "session", source, target], *rows])
    return path


def compare(
    out: Path,
    model: Path,
    datasets: Sequence[Path],
    *,
    source: str,
    target: str,
    steps: int,
    threads: int,
    labels: str | None = None,
    file: Path | None = None,
) -> EvaluationRecord:
    """Train, synthesize and score; see the module."""
    out.mkdir(parents=True, exist_ok=True)
    table = table_of(datasets, source, target, out / "pairs.csv")
    pairs = select_pairs(table, source=source, target=target).pairs
    common = {
        "data": {"source": source, "target": target},
        "prepare": {"averages": True},
        "simulated": {"share": 0.0, **({"labels": labels} if labels else {})},
        "training": {"epochs": 1, "steps_per_epoch": steps, "threads": threads, "device": "cpu"},
    }
    trained = [*ARMS, WITH_WIDE] if labels else [*ARMS]
    scans = [(pair.source, pair.case) for pair in pairs]
    synthesize(load_model(model, "cpu"), scans, out / "as-it-is", renew=True, force=True)
    for patient in dict.fromkeys(pair.subject for pair in pairs):
        others = sorted({pair.subject for pair in pairs} - {patient})
        split = out / f"without-{patient}.json"
        write_json(split, {"train": others, "validation": [], "test": [patient]})
        for arm in trained:
            run = out / f"{arm}-without-{patient}"
            train(table, run, settings_of(arm, model, split, common, file), cache=out / "prepared")
            own = [(pair.source, pair.case) for pair in pairs if pair.subject == patient]
            synthesize(load_model(run / "model", "cpu"), own, out / arm, renew=True, force=True)
    arms = {arm: out / arm for arm in ("as-it-is", *trained)}
    found = evaluate(table, arms, out / "evaluation", source=source, target=target, leave_one_out=True)
    write_report(out / "evaluation", out / "report.html")
    return found.content


def main() -> None:
    """Compare, and print the means and the differences to the model as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--source", default="T1w")
    parser.add_argument("--target", default="T2w")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--labels", help="folder of the label maps of simulated pairs")
    parser.add_argument("--settings", type=Path, help="TOML settings of all trainings")
    given = parser.parse_args()
    record = compare(
        given.out,
        given.model,
        given.datasets,
        source=given.source,
        target=given.target,
        steps=given.steps,
        threads=given.threads,
        labels=given.labels,
        file=given.settings,
    )
    print("| arm | metric | mean (SD) | minus the model as it is | minus the regression |")
    print("| --- | --- | --- | --- | --- |")
    gains = {(row.arm, row.against, row.metric): row for row in record.comparisons if row.region == "head"}
    for arm, regions in record.arms.items():
        for metric in SHOWN:
            cells = [
                f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" if row else ""
                for row in (gains.get((arm, against, metric)) for against in ("as-it-is", "regression"))
            ]
            summary = regions["head"][metric]
            print(f"| {arm} | {metric} | {summary.mean:.3f} ({summary.sd:.3f}) | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
