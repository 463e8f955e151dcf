"""Models on real scans that they never saw, beside a regression fitted on the other patients.

Run: python studies/real_scans.py OUT DATASET... --models wide=runs/wide/model [--source T1w --target T2w]

Every pair of the BIDS datasets is synthesized by every model and scored against its acquired target, inside the
target's head, with the package's own metrics. Beside the models stand

- source: the source with the target's mean and SD,
- regression: a voxelwise regression, fitted on all patients but the one that is scored,
- own-regression: the same, fitted on the very pair that is scored. No method has its answer; it is a yardstick.

OUT gets the synthetic volumes, scores.csv (a row for each arm, scan and metric), summary.csv (a row for each arm and
metric: the mean over patients, the paired difference to the regression and its 95 % t-interval) and a picture of each
scan. Called again, it keeps volumes that are there.

With --slices-mm, scans of finer slices are first averaged to slices of that thickness from foot to head, source and
target alike, in OUT/sliced. So what thick slices do can be told apart from what else differs between scans. With
--tilt-deg, source and target are first resampled, linearly, to slices tilted so far about the axis from left to right,
in OUT/tilted.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from unscanned.datasets.pairs import Pair, select_pairs
from unscanned.evaluation.baselines import fit_regression
from unscanned.evaluation.cases import Images, find_synthetic, list_volumes, load_images, training_pair
from unscanned.evaluation.scores import score
from unscanned.evaluation.statistics import compare, subject_means, summarize
from unscanned.report.figures import case_figure
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import synthesize
from unscanned.volumes.nifti import read_volume, write_volume

SHOWN = ("psnr", "psnr_one_gain", "ssim", "hfen")
"Metrics of the printed table; the files have all."

Scores = dict[str, dict[str, list[tuple[str, float]]]]
"Arm, metric, then (patient, value) of each scan."


def images_of(pair: Pair, others: Iterable[Pair], made: Mapping[str, Mapping[str, list[Path]]], target: str) -> Images:
    """Return all arms of one pair, in unit scale on the target's grid."""
    paths = {arm: find_synthetic(volumes, pair.case, target) for arm, volumes in made.items()}
    regression = fit_regression(training_pair(other) for other in others)
    images = load_images(pair, paths, regression=regression)
    own = fit_regression([(images.source, images.target, images.head)])(images.source, images.head)
    order = ("source", "regression")
    first = {arm: images.arms[arm] for arm in order}
    rest = {arm: image for arm, image in images.arms.items() if arm not in order}
    images.arms.clear()
    images.arms.update({**first, "own-regression": own, **rest})
    return images


def slice_scan(path: Path, thickness_mm: float, out: Path) -> Path:
    """Return the file of a scan in slices of about a thickness from foot to head; its own where it has no finer ones.

    A slice is the mean of as many whole slices as come nearest; what is left at the end is dropped.
    """
    volume = read_volume(path)
    axis = next(axis for axis, direction in enumerate(volume.orientation) if direction in "IS")
    count = round(thickness_mm / volume.spacing_mm[axis])
    if count < 2:
        return path
    slices = np.moveaxis(volume.array, axis, 0)
    slices = slices[: len(slices) // count * count]
    thick = slices.reshape(-1, count, *slices.shape[1:]).mean(axis=1, dtype=np.float64).astype(np.float32)
    affine = volume.affine.copy()
    affine[:3, 3] += (count - 1) / 2 * affine[:3, axis]
    affine[:3, axis] *= count
    out.mkdir(parents=True, exist_ok=True)
    write_volume(out / path.name, np.moveaxis(thick, 0, axis), affine)
    return out / path.name


def tilt_scan(path: Path, degrees: float, out: Path) -> Path:
    """Return the file of a scan on its own grid turned about its middle, around the world's axis from left to right."""
    image = nib.load(path)
    to_middle = nib.affines.apply_affine(image.affine, np.subtract(image.shape, 1) / 2)
    turn = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    affine = nib.affines.from_matvec(turn, to_middle - turn @ to_middle) @ image.affine
    out.mkdir(parents=True, exist_ok=True)
    array = resample_from_to(image, (image.shape, affine), order=1).get_fdata(dtype=np.float32)
    write_volume(out / path.name, array, affine)
    return out / path.name


def table(scores: Scores, reference: str = "regression") -> list[list[object]]:
    """Return a row for each arm and metric, compared with the reference arm."""
    rows: list[list[object]] = []
    for arm, of_metric in scores.items():
        for metric, values in of_metric.items():
            means = subject_means(values)
            summary = summarize(means.values(), len(means))
            against = compare(subject_means(scores[reference][metric]), means) if arm != reference else None
            difference = [against.difference, against.low, against.high] if against else ["", "", ""]
            rows.append([arm, metric, summary.mean, summary.sd, summary.n, *difference])
    return rows


def main() -> None:
    """Synthesize, score and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("datasets", type=Path, nargs="+")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--source", default="T1w")
    parser.add_argument("--target", default="T2w")
    parser.add_argument("--slices-mm", type=float)
    parser.add_argument("--tilt-deg", type=float)
    given = parser.parse_args()
    pairs = [
        pair
        for dataset in given.datasets
        for pair in select_pairs(dataset, source=given.source, target=given.target).pairs
        if pair.target is not None
    ]
    for kind, change, amount in (("sliced", slice_scan, given.slices_mm), ("tilted", tilt_scan, given.tilt_deg)):
        if amount:
            for number, pair in enumerate(pairs):
                folder = given.out / kind / pair.case
                source, target = (change(path, amount, folder) for path in (pair.source, pair.target))
                pairs[number] = replace(pair, source=source, target=target)
    made = {}
    for named in given.models:
        name, folder = named.split("=", 1)
        synthesize(load_model(folder, "cpu"), [(p.source, p.case) for p in pairs], given.out / name, force=True)
        made[name] = list_volumes(given.out / name)
    scores: Scores = {}
    rows: list[list[object]] = []
    for pair in pairs:
        images = images_of(pair, [other for other in pairs if other.subject != pair.subject], made, given.target)
        if images.failures:
            raise SystemExit(f"{pair.case}: {images.failures}")
        inside = images.target[images.head].astype(np.float64)
        for arm, image in images.arms.items():
            found = score(images.target, image, images.head, mean=inside.mean(), std=inside.std())["head"]
            for metric, value in found.items():
                scores.setdefault(arm, {}).setdefault(metric, []).append((pair.subject, value))
                rows.append([pair.case, arm, metric, f"{value:.5g}"])
        shown = {arm: images.arms[arm] for arm in ("regression", *made)}
        picture = case_figure(
            images.target,
            images.source,
            shown,
            images.head,
            spacing_mm=images.spacing_mm,
            contrasts=(given.source, given.target),
            std=float(inside.std()),
        )
        (given.out / f"{pair.case}.png").write_bytes(picture)
    summary = table(scores)
    for name, header, content in (
        ("scores.csv", ["case", "arm", "metric", "value"], rows),
        ("summary.csv", ["arm", "metric", "mean", "sd", "patients", "minus regression", "low", "high"], summary),
    ):
        with open(given.out / name, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([[f"{cell:.5g}" if isinstance(cell, float) else cell for cell in row] for row in content])
    print("| arm | metric | mean (SD) | minus the regression |")
    print("| --- | --- | --- | --- |")
    for arm, metric, mean, sd, _, difference, low, high in summary:
        if metric in SHOWN:
            against = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]" if difference != "" else ""
            print(f"| {arm} | {metric} | {mean:.3f} ({sd:.3f}) | {against} |")


if __name__ == "__main__":
    main()
