"""What noise and tissues allow: the limits of the datasets of `simulate --clean`, scored against their targets.

Run: python studies/ceiling.py DATASET [DATASET ...] [--source PD] [--target T2] [--subjects 001 002]

Scored as `evaluate` scores its arms `noise-free` and `tissues`: inside the target's head, in unit scale.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from unscanned.datasets.pairs import select_pairs
from unscanned.evaluation.cases import CEILINGS, find_ceilings, load_images
from unscanned.evaluation.metrics import METRICS


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--source", default="PD")
    parser.add_argument("--target", default="T2")
    parser.add_argument("--subjects", nargs="+", help="only these, such as those of a test")
    given = parser.parse_args()
    metrics = ("psnr", "psnr_one_gain", "ssim", "hfen")
    print("| dataset | arm | subjects | PSNR, dB: mean (SD), from to | after one gain | SSIM | HFEN |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for dataset in given.datasets:
        scores: dict[str, list[list[float]]] = {"source": []} | {arm: [] for arm in CEILINGS}
        for pair in select_pairs(dataset, source=given.source, target=given.target).pairs:
            if given.subjects and pair.subject not in given.subjects:
                continue
            images = load_images(pair, {}, ceilings=find_ceilings(dataset, pair.case, given.target))
            for arm, image in images.arms.items():
                scores[arm].append([METRICS[name](images.target, image, images.head) for name in metrics])
        for arm, seen in scores.items():
            mean, low, high = (f(seen, axis=0) for f in (np.mean, np.min, np.max))
            sd = np.std(seen, axis=0, ddof=1)
            spread = f"{mean[0]:.1f} ({sd[0]:.1f}), {low[0]:.1f} to {high[0]:.1f}"
            rest = f"{mean[1]:.1f} | {mean[2]:.3f} | {mean[3]:.3f}"
            print(f"| {dataset.name} | {arm} | {len(seen)} | {spread} | {rest} |")


if __name__ == "__main__":
    main()
