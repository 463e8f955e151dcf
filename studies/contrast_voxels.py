"""Up to which voxels the contrast check can judge: scans averaged to larger ones, by profiles of scans as they are.

Every scan is held out as in contrast_check.py, and judged by profiles of its own domain.

    python studies/contrast_voxels.py --scans DATASET DATASET --labels LABEL_MAPS --json contrast-voxels.json
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from contrast_check import PLAIN, Measured, judge, measure, refused, resampled

from unscanned.contrast.check import THRESHOLD
from unscanned.files import write_json
from unscanned.simulation.simulate import simulate
from unscanned.volumes.nifti import Volume

VOXELS_MM = (
    (3.0, 3.0, 3.0),
    (3.5, 3.5, 3.5),
    (1.5, 1.5, 5.0),
    (3.0, 3.0, 5.0),
    (4.0, 4.0, 4.0),
    (4.5, 4.5, 4.5),
    (5.0, 5.0, 5.0),
    (6.0, 6.0, 6.0),
    (1.5, 1.5, 6.0),
    (1.5, 1.5, 7.0),
    (1.5, 1.5, 8.0),
    (1.5, 1.5, 10.0),
)
NAMES = {mm: "{:g} x {:g} x {:g}".format(*mm) for mm in VOXELS_MM}


def larger(volume: Volume, rng: np.random.Generator) -> Iterator[tuple[str, Volume]]:
    """Yield the scan, and what it is with larger voxels; nothing of it is random."""
    yield PLAIN, volume
    for spacing_mm in VOXELS_MM:
        if np.any(np.greater(spacing_mm, np.multiply(1.1, volume.spacing_mm))):
            yield NAMES[spacing_mm], resampled(volume, spacing_mm)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of refusals, one row for each size of voxels."""
    lines = ["| voxels, mm | right refused | largest score of a right one | wrong accepted |", "|---|--:|--:|--:|"]
    for variant in (PLAIN, *NAMES.values()):
        group = [row for row in rows if row["variant"] == variant]
        if not group:
            continue
        right, wrong = ([row for row in group if row["right"] is kind] for kind in (True, False))
        largest = max(row["score"] for row in right if row["score"] is not None)
        name = "as they are" if variant == PLAIN else variant
        turned_away, accepted = sum(map(refused, right)), len(wrong) - sum(map(refused, wrong))
        lines.append(f"| {name} | {turned_away} of {len(right)} | {largest:.1f} | {accepted} of {len(wrong)} |")
    return lines


def main() -> None:
    """Measure, judge, print the table, and write all scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=Path, nargs="*", default=[], help="BIDS datasets of real scans")
    parser.add_argument("--labels", type=Path, help="whole-head label maps to simulate from")
    parser.add_argument("--subjects", type=int, nargs=2, default=(8, 6), help="simulated: from label maps, built-in")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True, help="file for all scores")
    arguments = parser.parse_args()
    began = time.monotonic()
    measured: list[Measured] = []
    for root in arguments.scans:
        measured += measure("real", root, str, arguments.seed, larger)
    with tempfile.TemporaryDirectory() as folder:
        sources = {"simulated": arguments.labels} if arguments.labels else {}
        sources["built-in"] = None
        for (domain, labels), subjects in zip(sources.items(), arguments.subjects[-len(sources) :], strict=True):
            root = simulate(
                Path(folder) / domain,
                labels=labels,
                subjects=subjects,
                spacing_mm=2.5,
                seed=arguments.seed,
                contrasts=("PD", "T2", "T1"),
                shading=(0.03, 0.25),
                noise=(0.005, 0.03),
            )
            measured += measure(domain, root, str, arguments.seed, larger)
    rows = [r for r in judge(measured, arguments.seed) if (r["training"], r["kind"]) == ("all", "same domain")]
    facts = {
        "threshold": THRESHOLD,
        "seed": arguments.seed,
        "seconds": time.monotonic() - began,
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "measured": [asdict(m) for m in measured],
        "scores": rows,
    }
    write_json(arguments.json, facts)
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    main()
