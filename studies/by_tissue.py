"""Print errors by tissue of `evaluate` on simulated heads, and how bright lesions are, as Markdown tables.

Run: python studies/by_tissue.py EVALUATION [EVALUATION ...] [--over TISSUE]

First a row for each tissue, and for the first arm of each evaluation PSNR in dB, mean (SD) over the subjects that have
the tissue; its paired difference from the voxelwise regression with the 95 % interval; and the mean of the limit
`tissues`. Then the mean intensity in lesions, or another tissue, over that in white matter, of each head that has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from unscanned.datasets.pairs import Pair
from unscanned.evaluation.cases import load_images
from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.tables import mean_interval, mean_sd, tissues
from unscanned.evaluation.tissues import find_labels, own_labels
from unscanned.formats.evaluation import EvaluationRecord, read_evaluation

PSNR = METRICS["psnr"]
WHITE = "tissue: white matter"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", type=Path)
    parser.add_argument("--over", default="white-matter lesion", metavar="TISSUE")
    given = parser.parse_args()
    found = [read_evaluation(folder) for folder in given.evaluations]
    print_row("tissue", "n", *(t for r in found for t in (r.compared[0], "minus the regression's", "limit `tissues`")))
    print_row(*["---"] * (2 + 3 * len(found)))
    regions = {"head": "inside the head"}
    for record in found:
        regions |= tissues(record)
    for region, name in regions.items():
        counts = dict.fromkeys(str(record.arms[record.compared[0]][region]["psnr"].n) for record in found)
        print_row(name, ", ".join(counts), *(cell for record in found for cell in errors(record, region)))
    print()
    print_row("arm", "case", "source", "acquired", "synthetic")
    print_row(*["---"] * 5)
    for record in found:
        for case, ratios in over_white_matter(record, given.over).items():
            print_row(record.compared[0], case, *(f"{ratio:.2f}" for ratio in ratios))


def errors(record: EvaluationRecord, region: str) -> list[str]:
    """Return the three cells of an evaluation's first arm in a region."""
    arm = record.compared[0]
    [gain] = [
        row
        for row in record.comparisons
        if (row.arm, row.against, row.region, row.metric) == (arm, "regression", region, "psnr")
    ]
    limit = record.arms["tissues"][region]["psnr"].mean
    return [
        mean_sd(record.arms[arm][region]["psnr"], PSNR.digits),
        mean_interval(gain, PSNR.digits),
        "" if limit is None else f"{limit:.{PSNR.digits}f}",
    ]


def over_white_matter(record: EvaluationRecord, tissue: str) -> dict[str, list[float]]:
    """Return by case the intensity of a tissue over white matter: in source, target and the first arm's image."""
    folder, found = own_labels(record.dataset), {}
    labels = None if folder is None else find_labels(folder)
    for case in record.cases:
        pair = Pair(case.subject, case.session, Path(case.source), Path(case.target or ""))
        arms = {arm: Path(path) for arm, path in case.synthetic.items() if path}
        images = load_images(pair, arms, percentile=record.percentile, labels=labels)
        if f"tissue: {tissue}" in images.tissues:
            shown = images.source, images.target, images.arms[record.compared[0]]
            means = ([np.mean(image[images.tissues[name]]) for name in (f"tissue: {tissue}", WHITE)] for image in shown)
            found[case.case] = [float(part / white) for part, white in means]
    return found


def print_row(*cells: str) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
