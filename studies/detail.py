"""What ways back from a model's grid keep: plain interpolation against detail of the source, scored on the scan's grid.

python studies/detail.py DATASET --source T1w --target T2w --spacing-mm 1.5 --slices 40
python studies/detail.py DATASET --source PD --target T2 --spacing-mm 1.5 --model runs/strong/model

Without a model the acquired target is brought to the model's grid and back, which measures the way alone. With one, its
output is brought back instead. Ways: linear (`synthesis.detail = none`), cubic, guided (fast guided filter, the slope
and the constant of a local regression on the source, applied to the source), detail (`synthesis.detail = source`).

Prints a row for each case and way, then means, paired differences from linear and the worst of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from unscanned.datasets.aligned import align
from unscanned.datasets.pairs import Pair, select_pairs
from unscanned.evaluation.metrics import METRICS
from unscanned.files import write_json
from unscanned.synthesis.context import chain
from unscanned.synthesis.detail import restore_detail
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model
from unscanned.volumes.grid import Frame, frame
from unscanned.volumes.nifti import read_volume
from unscanned.volumes.orientation import to_ras

SCORES = ("psnr", "ssim", "hfen")
SIGN = {name: 1 if METRICS[name].better == "higher" else -1 for name in SCORES}
Way = Callable[[Frame, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def guided(where: Frame, source: np.ndarray, reduced: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Return the output of the fast guided filter with windows of 3 voxels and the regularization of `detail`."""

    def mean(array: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(array, 3, mode="nearest")

    low, level = mean(reduced), mean(synthetic)
    slope = (mean(reduced * synthetic) - low * level) / (mean(reduced * reduced) - low * low + np.float32(1e-3))
    constant = level - slope * low
    return where.interpolate(mean(slope), order=1) * source + where.interpolate(mean(constant), order=1)


WAYS: dict[str, Way] = {
    "linear": lambda where, source, reduced, synthetic: where.inverse(synthetic),
    "cubic": lambda where, source, reduced, synthetic: where.interpolate(synthetic, order=3),
    "guided": guided,
    "detail": restore_detail,
}


def score(
    pair: Pair,
    *,
    spacing_mm: float,
    averages: bool = False,
    model: Model | None = None,
    slices: int | None = None,
    resample: bool = False,
) -> dict[str, dict[str, float]]:
    """Return the scores of each way for a pair, inside the head.

    Args:
        pair: Source and target.
        spacing_mm: Of the model's grid.
        averages: As `prepare.averages`.
        model: Makes the synthetic volume; None takes the target itself, on the model's grid.
        slices: Score the middle of the head along the third axis in RAS+ only; None scores all of it.
        resample: As `prepare.resample`.
    """
    source, target = read_volume(pair.source), read_volume(pair.target)  # type: ignore[arg-type]
    aligned = align(pair, source, target, resample=resample, percentile=99.9)
    unit = aligned.source / np.float32(aligned.source_scale)
    truth = aligned.target / np.float32(aligned.target_scale)
    where = frame(source, spacing_mm=spacing_mm, averages=averages)
    reduced = where.forward(unit)
    synthetic = where.forward(truth) if model is None else _made(model, reduced)
    head = to_ras(aligned.head, source.affine).copy()
    if slices is not None:
        extent = ndimage.find_objects(head, max_label=1)[0][2]
        middle = (extent.start + extent.stop) // 2
        head[..., : max(0, middle - slices // 2)], head[..., middle + slices // 2 :] = False, False
    acquired = to_ras(truth, source.affine)
    scores = {}
    for name, way in WAYS.items():
        made = np.maximum(to_ras(way(where, unit, reduced, synthetic), source.affine), 0)
        scores[name] = {metric: METRICS[metric](acquired, made, head) for metric in SCORES}
    return scores


def _made(model: Model, reduced: np.ndarray) -> np.ndarray:
    constants, settings = model.normalization, model.settings
    z = constants.source.standardize(reduced)
    made = chain(z, model.generators, model.how(), context=settings.context.input, patch=settings.training.patch)
    return constants.target.unit(made)


def main() -> None:
    """Score all pairs of some datasets and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path, nargs="+", metavar="DATASET")
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--spacing-mm", type=float, default=1.5)
    parser.add_argument("--averages", action="store_true", help="as prepare.averages")
    parser.add_argument("--model", type=Path, help="a model of this spacing; without it the target itself comes back")
    parser.add_argument("--slices", type=int, help="score so many in the middle of the head; all by default")
    parser.add_argument("--subjects", nargs="+", help="all by default")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = load_model(given.model) if given.model else None
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for dataset in given.datasets:
        for pair in select_pairs(dataset, source=given.source, target=given.target).pairs:
            if given.subjects and pair.subject not in given.subjects:
                continue
            rows[pair.case] = score(
                pair,
                spacing_mm=given.spacing_mm,
                averages=given.averages,
                model=model,
                slices=given.slices,
                resample=True,
            )
            for way, values in rows[pair.case].items():
                print(pair.case, way, *(f"{values[name]:.3f}" for name in SCORES), flush=True)
    print("\nway, mean of", *SCORES, "| mean difference from linear | worst")
    for way in WAYS:
        values = np.array([[case[way][name] for name in SCORES] for case in rows.values()])
        plain = np.array([[case["linear"][name] for name in SCORES] for case in rows.values()])
        signs = np.array([SIGN[name] for name in SCORES])
        gains = (values - plain) * signs
        worst = gains.min(0) * signs
        told = [" ".join(f"{v:+.3f}" for v in part) for part in (values.mean(0), (values - plain).mean(0), worst)]
        print(f"{way:8s}", " | ".join(told))
    if given.json:
        write_json(given.json, {"spacing_mm": given.spacing_mm, "averages": given.averages, "cases": rows})


if __name__ == "__main__":
    main()
