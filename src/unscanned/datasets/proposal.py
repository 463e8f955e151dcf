"""Settings that fit a dataset: the grid that holds its heads, one spacing where spacings differ, and a split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unscanned.datasets.check import Examination
from unscanned.datasets.pairs import Pair
from unscanned.datasets.split import split_subjects
from unscanned.errors import listed

__all__ = ["Proposal", "propose"]

_SAME_SPACING = 1.02
"Ratio of two spacings up to which a network need not tell them apart."
_SPARED_VOXELS = 4
"Along each axis, of what is brighter than air: skin and noise at the edge of the head."


@dataclass(frozen=True)
class Proposal:
    """Settings to train on a dataset with.

    Attributes:
        settings: Tables of the settings: data, prepare, split.
        split: Subjects to list in a file for `split.file`; None where numbers do, as no subject has to be left out.
        reasons: Why, a sentence for each.
    """

    settings: dict[str, dict[str, Any]]
    split: dict[str, list[str]] | None = None
    reasons: list[str] = field(default_factory=list)


def propose(found: Examination, *, layout: str = "auto", multiple: int = 32) -> Proposal | None:
    """Return settings with which the dataset can be trained on; None where it has no usable pair.

    Args:
        found: What `examine` found.
        layout: How the dataset is laid out, as it was asked for.
        multiple: What the edges of the grid are multiples of: the edge of a patch, so that no patches overlap.
    """
    others = {finding.case for finding in found.findings if finding.severity == "error" and finding.fault != "grid"}
    on_other_grid = {finding.case for finding in found.findings if finding.fault == "grid"}
    spoiled = others | {case for case in on_other_grid if case not in found.alignments}
    shifted = {finding.case for finding in found.findings if finding.fault == "shift"}
    bad = {pair.subject for pair in found.pairs if pair.case in spoiled}
    pairs = [pair for pair in found.pairs if pair.subject not in bad]
    if not pairs:
        return None
    reasons: list[str] = []
    prepare: dict[str, Any] = {}
    cases = {pair.case for pair in pairs}
    looks = [look for look in found.looks if look.case in cases and look.scan == "source"]
    spacings = np.array([look.spacing_mm for look in looks])
    spacing_mm = None
    if (spacings.max(0) / spacings.min(0) > _SAME_SPACING).any():
        spacing_mm = float(np.round(np.median(spacings.min(1)) * 20) / 20)
        prepare["spacing_mm"] = spacing_mm
        reasons.append(f"spacings differ, so all scans are resampled to {spacing_mm:g} mm")
        if spacings.min() <= spacing_mm / 2:
            prepare["averages"] = True
            reasons.append(f"voxels down to {spacings.min():.3g} mm are averaged, as a scanner's larger ones would")
    sizes = [np.array(look.head_mm) / (spacing_mm or look.spacing_mm) for look in looks if look.head_mm]
    needed = np.ceil((np.max(sizes, axis=0) - _SPARED_VOXELS) / multiple).astype(int)
    prepare["shape"] = [int(n) * multiple for n in np.maximum(1, needed)]
    reasons.append(f"{_times(prepare['shape'])} voxels hold every head, in whole patches of {multiple}")
    if cases & (on_other_grid | shifted):
        prepare["resample"] = True
        reasons.append("targets on another grid are aligned in world space, so they are resampled to the source's")
    split, listed_split = _split(pairs, is_partial=bool(bad))
    if bad:
        reasons.append(f"the split leaves out the subjects with a fault: {listed(sorted(bad))}")
    data = {"source": found.source, "target": found.target}
    if layout != "auto":
        data["layout"] = layout
    return Proposal({"data": data, "prepare": prepare, "split": split}, listed_split, reasons)


def _split(pairs: list[Pair], *, is_partial: bool) -> tuple[dict[str, int], dict[str, list[str]] | None]:
    """Return how many subjects train, validate and test, and who where they have to be named."""
    subjects = sorted({pair.subject for pair in pairs})
    count = len(subjects)
    test = 0 if count < 2 else max(1, round(count / 4))
    validation = 0 if count < 3 else max(1, round(count / 20))
    numbers = {"train": count - test - validation, "validation": validation, "test": test}
    if not is_partial:
        return numbers, None
    return numbers, split_subjects(pairs, train=numbers["train"], validation=validation, test=test)


def _times(numbers: list[int]) -> str:
    return " x ".join(map(str, numbers))
