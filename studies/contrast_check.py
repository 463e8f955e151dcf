"""How often the contrast check refuses right and wrong scans: real scans, simulated heads, and variants of both.

Every scan is held out with all others of its subject (simulated: of its anatomy) when the profile that judges it is
made. Names and JSON files are not heard: this is about appearance only.

    python studies/contrast_check.py --scans DATASET DATASET --labels LABEL_MAPS --json contrast-check.json
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from unscanned.contrast.appearance import Appearance, measure_appearance
from unscanned.contrast.check import THRESHOLD, ContrastProfile
from unscanned.datasets.layout import bids_suffix, identify
from unscanned.files import write_json
from unscanned.simulation.simulate import simulate
from unscanned.volumes.nifti import Volume, read_volume

Variants = Callable[[Volume, np.random.Generator], Iterator[tuple[str, Volume]]]

PLAIN = "as it is"
FEW = 3


@dataclass(frozen=True)
class Measured:
    """One scan or one variant of it."""

    domain: str
    subject: str
    contrast: str
    scan: str
    variant: str
    seen: Appearance | None


def shading(volume: Volume, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Multiply by a smooth receive field; `strength` is the standard deviation of its logarithm."""
    axes = [np.arange(n) * mm for n, mm in zip(volume.shape, volume.spacing_mm, strict=True)]
    field = np.zeros(volume.shape, np.float32)
    for _ in range(6):
        direction = rng.standard_normal(3)
        wave = 2 * np.pi / rng.uniform(200, 500) * direction / np.linalg.norm(direction)
        turn = np.exp(2j * np.pi * rng.uniform())
        x, y, z = (np.exp(1j * w * axis).astype(np.complex64) for w, axis in zip(wave, axes, strict=True))
        field += np.real((turn * x).astype(np.complex64)[:, None, None] * y[:, None] * z)
    return volume.array * np.exp(np.float32(strength) * (field - field.mean()) / field.std())


def resampled(volume: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """Average to voxels of at least this size."""
    zoom = np.maximum(1, np.divide(spacing_mm, volume.spacing_mm))
    blurred = ndimage.gaussian_filter(volume.array, 0.4 * zoom * (zoom > 1))
    shape = tuple(np.maximum(1, np.floor(np.divide(volume.shape, zoom))).astype(int).tolist())
    array = ndimage.affine_transform(blurred, zoom, offset=(zoom - 1) / 2, output_shape=shape, order=1)
    return Volume(array, volume.affine @ np.diag([*zoom, 1.0]))


def noisy(volume: Volume, share: float, rng: np.random.Generator) -> np.ndarray:
    """Add Rician noise of this share of the brightest intensities."""
    sigma = np.float32(share) * np.percentile(volume.array, 99.5)
    real, imaginary = sigma * rng.standard_normal((2, *volume.shape), np.float32)
    return np.hypot(volume.array + real, imaginary)


def variants(volume: Volume, rng: np.random.Generator) -> Iterator[tuple[str, Volume]]:
    """Yield the scan, and what other scanners and grids could have made of it."""
    yield PLAIN, volume
    for strength in (0.2, 0.4):
        yield f"shading of {strength:g}", Volume(shading(volume, strength, rng), volume.affine)
    for spacing_mm in ((2.0, 2.0, 2.0), (3.0, 3.0, 3.0), (1.5, 1.5, 5.0)):
        if np.any(np.greater(spacing_mm, np.multiply(1.1, volume.spacing_mm))):
            yield "{:g} x {:g} x {:g} mm".format(*spacing_mm), resampled(volume, spacing_mm)
    yield "noise of 3 %", Volume(noisy(volume, 0.03, rng), volume.affine)


def measure(
    domain: str, root: Path, subject_of: Callable[[str], str], seed: int, variants: Variants = variants
) -> list[Measured]:
    """Measure every scan below a dataset's folder, in all variants."""
    measured = []
    for path in sorted(root.rglob("*.nii.gz")):
        scan = identify(path)
        if scan is None:
            continue
        volume = read_volume(path)
        rng = np.random.default_rng([seed, zlib.crc32(path.name.encode())])
        for variant, changed in variants(volume, rng):
            seen = measure_appearance(np.asarray(changed.array, np.float32), changed.affine)
            contrast = bids_suffix(scan.contrast.upper())
            measured.append(Measured(domain, subject_of(scan.subject), contrast, path.name, variant, seen))
        print(path.name, file=sys.stderr, flush=True)
    return measured


def judge(measured: list[Measured], seed: int) -> list[dict[str, Any]]:
    """Score every scan by the profile of every contrast of every domain, its own subject left out."""
    rng = np.random.default_rng(seed)
    rows = []
    for domain, contrast in sorted({(m.domain, m.contrast) for m in measured}):
        plain = [m for m in measured if (m.domain, m.contrast, m.variant) == (domain, contrast, PLAIN)]
        for given_domain, subject in sorted({(m.domain, m.subject) for m in measured}):
            others = [m.seen for m in plain if (m.domain, m.subject) != (given_domain, subject)]
            few = [others[index] for index in rng.permutation(len(others))[:FEW]]
            for size, training in (("all", others), ("few", few)):
                profile = ContrastProfile.of(training)
                assert profile is not None
                for m in measured:
                    if (m.domain, m.subject) != (given_domain, subject):
                        continue
                    rows.append(
                        {
                            "trained": f"{domain} {contrast}",
                            "training": size,
                            "training_scans": profile.scans,
                            "given": f"{m.domain} {m.contrast}",
                            "kind": "same domain" if m.domain == domain else "other domain",
                            "right": m.contrast == contrast,
                            "scan": m.scan,
                            "variant": m.variant,
                            "score": profile.score(m.seen) if m.seen else None,
                        }
                    )
    return rows


def table(rows: list[dict[str, Any]], training: str, kind: str) -> list[str]:
    """Return a Markdown table of refusals, one row for each pair of contrasts; other domains are counted together."""
    lines = [
        "| trained on | given | right | scans | refused | variants | refused | scores |",
        "|---|---|---|--:|--:|--:|--:|---|",
    ]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if (row["training"], row["kind"]) == (training, kind):
            names = row["trained"], row["given"]
            key = names if kind == "same domain" else tuple(name.split()[-1] for name in names)
            groups.setdefault(key, []).append(row)
    for (trained, given), group in sorted(groups.items()):
        cells = [trained, given, "yes" if group[0]["right"] else "no"]
        for part in ([r for r in group if r["variant"] == PLAIN], [r for r in group if r["variant"] != PLAIN]):
            cells += [str(len(part)), str(sum(map(refused, part)))]
        scores = [row["score"] for row in group if row["score"] is not None]
        lines.append(f"| {' | '.join(cells)} | {min(scores):.1f} to {max(scores):.1f} |")
    return lines


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return counts of refusals by training size, kind, right or wrong, and variant or not."""
    counts = []
    for training in ("all", "few"):
        for kind in ("same domain", "other domain"):
            for right in (True, False):
                for plain in (True, False):
                    group = [
                        row
                        for row in rows
                        if (row["training"], row["kind"], row["right"]) == (training, kind, right)
                        and (row["variant"] == PLAIN) == plain
                    ]
                    facts = {"training": training, "kind": kind, "right": right, "as_it_is": plain}
                    counts.append(facts | {"tried": len(group), "refused": sum(map(refused, group))})
    return counts


def refused(row: dict[str, Any]) -> bool:
    """Whether a score means refusal; a scan that could not be measured is refused too."""
    return row["score"] is None or row["score"] > THRESHOLD


def main() -> None:
    """Measure, judge, print the tables, and write all scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=Path, nargs="*", default=[], help="BIDS datasets of real scans")
    parser.add_argument("--labels", type=Path, help="whole-head label maps to simulate from")
    parser.add_argument("--subjects", type=int, nargs=2, default=(14, 8), help="simulated: from label maps, built-in")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True, help="file for all scores")
    arguments = parser.parse_args()
    began = time.monotonic()
    from_labels, built_in = arguments.subjects
    measured: list[Measured] = []
    for root in arguments.scans:
        measured += measure("real", root, lambda subject: subject, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        field = {"contrasts": ("PD", "T2", "T1"), "shading": (0.03, 0.25), "noise": (0.005, 0.03)}
        if arguments.labels:
            root = simulate(
                Path(folder) / "labels",
                labels=arguments.labels,
                subjects=from_labels,
                spacing_mm=2.5,
                seed=arguments.seed,
                **field,
            )
            measured += measure("simulated", root, lambda subject: subject, arguments.seed)
        root = simulate(Path(folder) / "built-in", subjects=built_in, spacing_mm=3.0, seed=arguments.seed, **field)
        measured += measure("built-in", root, lambda subject: subject, arguments.seed)
    rows = judge(measured, arguments.seed)
    facts = {
        "threshold": THRESHOLD,
        "seed": arguments.seed,
        "seconds": time.monotonic() - began,
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "summary": summary(rows),
        "measured": [asdict(m) for m in measured],
        "scores": rows,
    }
    write_json(arguments.json, facts)
    for training in ("all", "few"):
        for kind in ("same domain", "other domain"):
            print(f"\n{kind}, training scans: {training}\n", *table(rows, training, kind), sep="\n")
    for counts in facts["summary"]:
        print(counts)


if __name__ == "__main__":
    main()
