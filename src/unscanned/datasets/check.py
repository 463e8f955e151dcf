"""What is wrong or odd in a dataset: every pair is read, and what is found is reported, case by case."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from unscanned.datasets.layout import Layout
from unscanned.datasets.pairs import Finding, Pair, survey
from unscanned.errors import VolumeError
from unscanned.progress import Progress
from unscanned.volumes.header import IMPLAUSIBLE
from unscanned.volumes.nifti import CONSTANT, FOUR_D, NONFINITE, Volume, grid_difference, read_volume

__all__ = ["check_dataset"]

_FAULTS = {NONFINITE: "nonfinite", CONSTANT: "constant", FOUR_D: "4d", IMPLAUSIBLE: "spacing"}
_MAX_ANISOTROPY = 3.0
_SPACING_RANGE_MM = (0.3, 6.0)


def check_dataset(
    root: str | Path,
    *,
    source: str,
    target: str,
    layout: Layout = "auto",
    resample: bool = False,
    progress: Progress | None = None,
) -> list[Finding]:
    """Read every pair of a dataset and return all that is wrong or odd, sorted by case.

    Args:
        root: As for `find_pairs`.
        source: Contrast.
        target: Contrast.
        layout: As for `find_pairs`.
        resample: Whether the target will be resampled onto the source's grid; a target on another grid is then only a
            warning.
        progress: Called with (cases done, cases in all, case).

    Returns:
        The findings; an empty list for a dataset without fault. A case with an error cannot be used.

    Raises:
        DatasetError: The dataset cannot be read, or no name in it fits the layout.
    """
    pairs, findings = survey(root, source=source, target=target, layout=layout)
    seen: dict[str, tuple[Pair, Path]] = {}
    for done, pair in enumerate(pairs, start=1):
        findings += _check_pair(pair, seen, resample)
        if progress is not None:
            progress(done, len(pairs), pair.case)
    return sorted(findings, key=lambda finding: (finding.case, finding.severity, finding.fault, str(finding.path)))


def _check_pair(pair: Pair, seen: dict[str, tuple[Pair, Path]], resample: bool) -> Iterable[Finding]:
    volumes = []
    for path in filter(None, (pair.source, pair.target)):
        try:
            volume = read_volume(path)
        except VolumeError as error:
            yield Finding(pair.case, "error", _FAULTS.get(error.what, "unreadable"), str(error), path)
            continue
        volumes.append(volume)
        for warning in volume.warnings:
            yield Finding(pair.case, "warning", "header", warning, path)
        yield from _check_spacing(pair.case, volume)
        yield from _check_duplicate(pair, path, volume, seen)
    if len(volumes) == 2 and (difference := grid_difference(*volumes)) is not None:
        message = (
            f"source and target lie on different grids: {difference}; register them, or set prepare.resample = true"
        )
        yield Finding(pair.case, "warning" if resample else "error", "grid", message, pair.target)


def _check_spacing(case: str, volume: Volume) -> Iterable[Finding]:
    low, high = min(volume.spacing_mm), max(volume.spacing_mm)
    if high / low > _MAX_ANISOTROPY or low < _SPACING_RANGE_MM[0] or high > _SPACING_RANGE_MM[1]:
        spacing = " x ".join(f"{value:.3g}" for value in volume.spacing_mm)
        yield Finding(case, "warning", "spacing", f"voxels of {spacing} mm are unusual", volume.path)


def _check_duplicate(pair: Pair, path: Path, volume: Volume, seen: dict[str, tuple[Pair, Path]]) -> Iterable[Finding]:
    # The hash is of the voxels, not of the file: a copy that was compressed again is still a copy.
    digest = hashlib.sha256(repr(volume.shape).encode())
    digest.update(np.ascontiguousarray(volume.array.T).data)
    first, first_path = seen.setdefault(digest.hexdigest(), (pair, path))
    if first_path == path:
        return
    other_session = first.subject == pair.subject and first.case != pair.case
    message = f"the same voxels as {first_path} of {first.case}"
    yield Finding(pair.case, "warning" if other_session else "error", "duplicate", message, path)
