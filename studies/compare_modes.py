"""Patches against the whole volume, with the same model on the same subjects: scores inside the head, seams, seconds.

python studies/compare_modes.py runs/resgan/model DATASET --subjects 21 22 23 --strides 8 16 --json modes.json
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from seams import border_planes, seam_index

from unscanned.datasets.pairs import find_pairs
from unscanned.evaluation.metrics import mae, psnr, ssim
from unscanned.evaluation.statistics import compare, subject_means, summarize
from unscanned.files import sha256, write_json
from unscanned.machine.device import choose_device
from unscanned.machine.precision import autocast
from unscanned.synthesis.context import chain
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model
from unscanned.volumes.grid import frame, onto_grid
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import read_volume

METRICS = ("psnr", "ssim", "mae", "seam_index", "seconds")


def variants(strides: Sequence[int], precisions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the options of each way to synthesize, by its name."""
    named: dict[str, dict[str, Any]] = {}
    for precision in precisions:
        ending = "" if precision == "float32" else f", {precision}"
        named |= {f"stride {n}{ending}": {"mode": "patches", "stride": n, "precision": precision} for n in strides}
        named[f"volume{ending}"] = {"mode": "volume", "precision": precision}
    return named


def compare_modes(
    model: Model,
    dataset: Path,
    *,
    subjects: Sequence[str] | None = None,
    strides: Sequence[int] = (8,),
    precisions: Sequence[str] = ("float32",),
) -> dict[str, Any]:
    """Synthesize each subject in each way, and score it in unit scale, inside the head.

    Args:
        model: What to synthesize with; scans that it was trained on are left out.
        dataset: Aligned pairs of the model's contrasts.
        subjects: Those to take; None takes all.
        strides: Of mode patches.
        precisions: Of either mode.

    Returns:
        `rows`, one for each subject and way; `summary` over subjects; `difference` from the first way, with its 95 %
        interval; for precisions, `error` relative to the same way in float32.
    """
    seen = {entry[scan]["sha256"] for entry in model.provenance["training_cases"] for scan in ("source", "target")}
    pairs = [
        pair
        for pair in find_pairs(dataset, source=model.source, target=model.target)
        if seen.isdisjoint(map(sha256, (pair.source, pair.target))) and (subjects is None or pair.subject in subjects)
    ]
    ways = variants(strides, precisions)
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        source, target = read_volume(pair.source), read_volume(pair.target)
        exact: dict[str, np.ndarray] = {}
        for name, options in ways.items():
            row, synthetic = _score(model, source, target, pair.case, options, min(strides))
            base = name.split(",")[0]
            exact.setdefault(base, synthetic)
            error = float(np.abs(synthetic - exact[base]).max() / np.abs(exact[base]).max())
            rows.append({"case": pair.case, "subject": pair.subject, "way": name, **row, "error": error})
            print(f"{pair.case}, {name}: {row['seconds']:.0f} s", file=sys.stderr)
    return {"rows": rows, **_over_subjects(rows, list(ways))}


def _score(
    model: Model, source: Any, target: Any, case: str, options: dict[str, Any], stride: int
) -> tuple[dict[str, float], np.ndarray]:
    constants = model.normalization
    head = head_mask(source.array)
    scale = head_scale(source.array, head, constants.percentile)
    prepare = model.settings.prepare
    where = frame(source, spacing_mm=prepare.spacing_mm, averages=prepare.averages)
    z = constants.source.standardize(where.forward(source.array) / np.float32(scale))
    truth = onto_grid(source, target, case)
    truth = where.forward(truth / np.float32(head_scale(truth, head_mask(truth), constants.percentile)))
    mask = where.forward(head.astype(np.float32)) > 0.5
    how, patch = model.how(**options), model.settings.training.patch
    began = time.perf_counter()
    with autocast(how.precision, model.device):
        synthetic = chain(
            z,
            model.generators,
            how,
            context=model.settings.context.input,
            patch=patch,
            device=model.device,
        )
    seconds = time.perf_counter() - began
    unit = constants.target.unit(synthetic)
    # Mode volume has no borders; it is asked about those of the smallest stride.
    planes = border_planes(truth.shape, patch, how.stride if how.mode == "patches" else stride)
    scores = {
        "psnr": psnr(truth, unit, mask, data_range=1.0),
        "ssim": ssim(truth, unit, mask, data_range=1.0),
        "mae": mae(constants.target.standardize(truth), synthetic, mask),
        "seam_index": seam_index(truth, unit, mask, planes=planes),
        "seconds": seconds,
    }
    return scores, synthetic


def _over_subjects(rows: list[dict[str, Any]], ways: list[str]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    difference: dict[str, Any] = {}
    for metric in METRICS:
        means = {way: subject_means((row["subject"], row[metric]) for row in rows if row["way"] == way) for way in ways}
        for way, values in means.items():
            summary.setdefault(way, {})[metric] = dict(summarize(list(values.values()), of=len(values)))
            if way != ways[0]:
                difference.setdefault(way, {})[metric] = dict(compare(means[ways[0]], values))
    for way in ways:
        summary[way]["largest_error"] = max(row["error"] for row in rows if row["way"] == way)
    return {"summary": summary, "difference": difference}


def table(content: dict[str, Any]) -> list[str]:
    """Return the lines of a Markdown table: mean over subjects, and SD where there are several."""
    lines = ["| | " + " | ".join(METRICS) + " | error |", "| --- |" + " --- |" * (len(METRICS) + 1)]
    for way, scores in content["summary"].items():
        cells = [_cell(scores[m]) for m in METRICS]
        lines.append(f"| {way} | " + " | ".join(cells) + f" | {scores['largest_error']:.1e} |")
    return lines


def _cell(score: dict[str, Any]) -> str:
    spread = "" if score["sd"] is None else f" ({score['sd']:.2g})"
    return f"{score['mean']:.4g}{spread}"


def main() -> None:
    """Compare, print the table, and write all scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--subjects", nargs="*")
    parser.add_argument("--strides", type=int, nargs="*", default=[8])
    parser.add_argument("--precisions", nargs="*", default=["float32"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, required=True, help="file for all scores")
    arguments = parser.parse_args()
    model = load_model(arguments.model, choose_device(arguments.device))
    content = compare_modes(
        model,
        arguments.dataset,
        subjects=arguments.subjects,
        strides=arguments.strides,
        precisions=arguments.precisions,
    )
    content["machine"] = f"{os.cpu_count()} cores, {platform.platform()}, {model.device}"
    content["model"] = {"sha256": model.sha256, "preset": model.settings.preset}
    write_json(arguments.json, content)
    print(*table(content), sep="\n")


if __name__ == "__main__":
    main()
