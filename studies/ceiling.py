"""What noise allows: the score of the noise-free target against the target, in datasets of `simulate --clean`.

Run: python studies/ceiling.py DATASET [DATASET ...] [--source PD] [--target T2]

Scored as `evaluate` scores its arm `noise-free`: inside the target's head, in unit scale; the source beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from unscanned.datasets.pairs import select_pairs
from unscanned.evaluation.cases import CEILING, find_noise_free, load_images
from unscanned.evaluation.metrics import METRICS


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--source", default="PD")
    parser.add_argument("--target", default="T2")
    given = parser.parse_args()
    print("| dataset | subjects | noise-free PSNR, dB: mean (SD), from to | SSIM | source's PSNR |")
    print("| --- | --- | --- | --- | --- |")
    for dataset in given.datasets:
        scores = []
        for pair in select_pairs(dataset, source=given.source, target=given.target).pairs:
            images = load_images(pair, {}, noise_free=find_noise_free(dataset, pair.case, given.target))
            if CEILING in images.arms:
                psnr, ssim = (
                    [METRICS[name](images.target, images.arms[arm], images.head) for arm in (CEILING, "source")]
                    for name in ("psnr", "ssim")
                )
                scores.append((*psnr, *ssim))
        mean, sd, low, high = (f(scores, axis=0) for f in (np.mean, np.std, np.min, np.max))
        cells = f"{mean[0]:.1f} ({sd[0]:.1f}), {low[0]:.1f} to {high[0]:.1f} | {mean[2]:.3f} | {mean[1]:.1f}"
        print(f"| {dataset.name} | {len(scores)} | {cells} |")


if __name__ == "__main__":
    main()
