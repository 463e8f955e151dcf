"""What is wrong or odd in a dataset: every pair is read, and what is found is reported, case by case."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from unscanned.datasets.aligned import align
from unscanned.datasets.alignment import SHARP, Alignment, measure_alignment
from unscanned.datasets.layout import Layout
from unscanned.datasets.pairs import Finding, Pair, survey
from unscanned.errors import DatasetError, VolumeError
from unscanned.files import sha256
from unscanned.machine.crash import of_one
from unscanned.progress import Progress
from unscanned.volumes.header import IMPLAUSIBLE
from unscanned.volumes.nifti import CONSTANT, FOUR_D, NONFINITE, Volume, grid_difference, read_volume

__all__ = ["Content", "check_dataset", "contents_of", "refuse_copies"]

_FAULTS = {NONFINITE: "nonfinite", CONSTANT: "constant", FOUR_D: "4d", IMPLAUSIBLE: "spacing"}
_MAX_ANISOTROPY = 3.0
_SPACING_RANGE_MM = (0.3, 6.0)


@dataclass(frozen=True)
class Content:
    """What a scan holds, to be compared with what others hold.

    Attributes:
        subject: Subject of the scan.
        case: Its case.
        scan: "source" or "target".
        path: The file.
        sha256: Hash of the file or of its voxels.
    """

    subject: str
    case: str
    scan: str
    path: Path
    sha256: str


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
    seen: dict[str, Content] = {}
    for done, pair in enumerate(pairs, start=1):
        try:
            findings += _check_pair(pair, seen, resample)
        except Exception as error:
            findings.append(Finding(pair.case, "error", "bug", str(of_one(error, where=pair.case)), pair.source))
        if progress is not None:
            progress(done, len(pairs), pair.case)
    return sorted(findings, key=lambda finding: (finding.case, finding.severity, finding.fault, str(finding.path)))


def contents_of(pairs: Iterable[Pair]) -> Iterator[Content]:
    """Return the content of each scan by its file's hash; one that cannot be read is told of where it is used."""
    for pair in pairs:
        for scan, path in _scans(pair):
            with contextlib.suppress(OSError, ValueError):
                yield Content(pair.subject, pair.case, scan, path, sha256(path))


def refuse_copies(contents: Iterable[Content]) -> None:
    """Refuse a scan that two subjects have, or that is both source and target: any score would be worthless.

    Raises:
        DatasetError: It names both.
    """
    seen: dict[str, Content] = {}
    for content in contents:
        first = _copied(content, seen)
        if first is not None and _is_forbidden(content, first):
            raise DatasetError(
                "one file is the scan of two subjects, or both scans of one",
                where=f"the {content.scan} of {content.case}",
                found=f"the same content as the {first.scan} of {first.case}",
                do="`unscanned check` lists all copies. Remove what is wrong.",
            )


def _copied(content: Content, seen: dict[str, Content]) -> Content | None:
    """Return the first scan with the same content, and remember this one if there is none."""
    first = seen.setdefault(content.sha256, content)
    return None if (first.case, first.scan) == (content.case, content.scan) else first


def _is_forbidden(content: Content, first: Content) -> bool:
    """Whether a copy spoils an experiment; a scan that stands for two sessions of one subject does not."""
    return content.subject != first.subject or content.case == first.case


def _scans(pair: Pair) -> list[tuple[str, Path]]:
    return [(scan, path) for scan, path in (("source", pair.source), ("target", pair.target)) if path is not None]


def _check_pair(pair: Pair, seen: dict[str, Content], resample: bool) -> Iterator[Finding]:
    volumes = []
    for scan, path in _scans(pair):
        try:
            volume = read_volume(path)
        except VolumeError as error:
            yield Finding(pair.case, "error", _FAULTS.get(error.what, "unreadable"), str(error), path)
            continue
        volumes.append(volume)
        for warning in volume.warnings:
            yield Finding(pair.case, "warning", "header", warning, path)
        yield from _check_spacing(pair.case, volume)
        content = Content(pair.subject, pair.case, scan, path, _digest(volume))
        if (first := _copied(content, seen)) is not None:
            message = f"the same voxels as {first.path}, the {first.scan} of {first.case}"
            severity: Literal["error", "warning"] = "error" if _is_forbidden(content, first) else "warning"
            yield Finding(pair.case, severity, "duplicate", message, path)
    if len(volumes) < 2:
        return
    if (difference := grid_difference(*volumes)) is not None:
        message = (
            f"source and target lie on different grids: {difference}; register them, or set prepare.resample = true"
        )
        yield Finding(pair.case, "warning" if resample else "error", "grid", message, pair.target)
    try:
        align(pair, *volumes, resample=True)  # another grid is told already
    except VolumeError as error:
        yield Finding(pair.case, "error", "head", str(error), Path(str(error.where)))
        return
    if (alignment := measure_alignment(*volumes)) is not None:
        yield from _check_alignment(pair, alignment)


def _check_alignment(pair: Pair, found: Alignment) -> Iterator[Finding]:
    """Tell a target that is no partner, that is mirrored, or that lies off; only the first of these, as it rules."""
    if not found.is_pair:
        message = (
            f"source and target fit in no position: sharpness {found.sharpness:.1f}, that of a pair is at least "
            f"{SHARP:g}; another head's, or one much damaged or turned"
        )
        yield Finding(pair.case, "error", "no-pair", message, pair.target)
    elif found.mirrored:
        message = f"the target fits only when it is flipped {' and '.join(found.mirrored)}; one of the two is mirrored"
        yield Finding(pair.case, "error", "flip", message, pair.target)
    elif found.is_far or found.is_off:
        severity: Literal["error", "warning"] = "error" if found.is_far else "warning"
        message = f"the target is not aligned, it lies {found} of the source; register it"
        yield Finding(pair.case, severity, "offset", message, pair.target)


def _check_spacing(case: str, volume: Volume) -> Iterator[Finding]:
    low, high = min(volume.spacing_mm), max(volume.spacing_mm)
    if high / low > _MAX_ANISOTROPY or low < _SPACING_RANGE_MM[0] or high > _SPACING_RANGE_MM[1]:
        spacing = " x ".join(f"{value:.3g}" for value in volume.spacing_mm)
        yield Finding(case, "warning", "spacing", f"voxels of {spacing} mm are unusual", volume.path)


def _digest(volume: Volume) -> str:
    # Of the voxels, not of the file: a copy that was compressed again is still a copy.
    digest = hashlib.sha256(repr(volume.shape).encode())
    digest.update(np.ascontiguousarray(volume.array.T).data)
    return digest.hexdigest()
