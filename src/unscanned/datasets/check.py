"""What is wrong or odd in a dataset: every pair is read, and what is found is told, case by case."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from unscanned.cluster.cases import in_order, map_cases
from unscanned.cluster.workers import Cluster, open_cluster
from unscanned.datasets.aligned import align
from unscanned.datasets.alignment import AGREES, SHARP, Alignment, measure_alignment
from unscanned.datasets.layout import Layout, Scan, conversion, likely_pair, present, take_inventory
from unscanned.datasets.pairs import Finding, Pair, case_name, survey, with_absolute_paths
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import DatasetError, ResourceError, UnscannedError, VolumeError, WorkerLost, listed
from unscanned.files import sha256
from unscanned.machine.crash import of_one
from unscanned.progress import Progress
from unscanned.volumes.header import IMPLAUSIBLE
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import CONSTANT, FOUR_D, GENERATED, NONFINITE, Volume, grid_difference, read_volume
from unscanned.volumes.orientation import ras_grid, to_ras
from unscanned.volumes.skull import looks_skull_stripped

__all__ = ["Content", "Examination", "Look", "check_dataset", "contents_of", "examine", "refuse_copies"]

_FAULTS = {NONFINITE: "nonfinite", CONSTANT: "constant", FOUR_D: "4d", IMPLAUSIBLE: "spacing"}
_MAX_ANISOTROPY = 3.0
_SHIFT = 0.1
"Voxels by which the corners of two grids may lie apart without a word."
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


@dataclass(frozen=True)
class Look:
    """What a scan that can be read looks like. Triples are along its axes in RAS+ order.

    Attributes:
        case: Its case.
        scan: "source" or "target".
        path: The file.
        shape: Voxels.
        spacing_mm: Size of a voxel.
        head_mm: Size of the box around the head; None where there is no head.
        is_brain: Whether it shows a brain without skull and scalp.
    """

    case: str
    scan: str
    path: Path
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    head_mm: tuple[float, float, float] | None
    is_brain: bool


@dataclass(frozen=True)
class Examination:
    """All that a look at every pair of a dataset shows.

    Attributes:
        root: The dataset.
        source: Contrast.
        target: Contrast.
        pairs: The pairs that file names give, sorted by case.
        findings: What is wrong or odd, sorted by case.
        contrasts: Which contrasts there are, each with the number of cases that have it.
        looks: Of each scan of a pair that can be read.
        alignments: Of each pair by case where it can be judged.
        instead: The two contrasts to ask for where no case has both of those asked for; None where some have, or there
            are no two.
    """

    root: Path
    source: str
    target: str
    pairs: list[Pair]
    findings: list[Finding]
    contrasts: dict[str, int]
    looks: list[Look]
    alignments: dict[str, Alignment]
    instead: tuple[str, str] | None

    @property
    def unusable(self) -> list[str]:
        """The cases with an error."""
        return sorted({finding.case for finding in self.findings if finding.severity == "error"})

    @property
    def usable(self) -> list[Pair]:
        """The pairs without one."""
        return [pair for pair in self.pairs if pair.case not in self.unusable]


@draws_progress
def examine(
    root: str | Path,
    *,
    source: str,
    target: str,
    layout: Layout = "auto",
    resample: bool = False,
    cluster: Cluster | str | None = None,
    progress: Progress | None = AUTOMATIC,
) -> Examination:
    """Read every pair of a dataset, and return what there is, what is wrong with it, and how the pairs are aligned.

    Args:
        root: As for `find_pairs`.
        source: Contrast.
        target: Contrast.
        layout: As for `find_pairs`.
        resample: Whether the target will be resampled onto the source's grid; a target on another grid is then only a
            warning.
        cluster: Where to read the pairs, as for `open_cluster`; None reads them in this process.
        progress: Called with (cases done, cases in all, case). Without it a bar, in a terminal and in Jupyter; None
            draws none.

    Raises:
        DatasetError: The dataset cannot be read, or no name in it fits the layout.
        ResourceError: As for `map_cases`.
    """
    inventory = take_inventory(root, layout, source=source, target=target)
    pairs, findings = survey(root, source=source, target=target, layout=layout)
    there = present(inventory.scans)
    own = {case: list(present(scans)) for case, scans in _by_case(inventory.scans).items()}
    findings = [
        replace(finding, message=f"{finding.message}; there {_are(own.get(finding.case, []))}")
        if finding.fault == "missing-partner"
        else finding
        for finding in findings
    ]
    findings += [
        Finding(
            "dataset", "warning", "dicom", f"a folder of DICOM files; to use it: {conversion(folder, source)}", folder
        )
        for folder in inventory.dicom
    ]
    examining = partial(_examine, resample=resample)
    found: list[_Seen] = []
    with nullcontext() if cluster is None else open_cluster(cluster) as workers:
        sent = pairs if workers is None else [with_absolute_paths(pair) for pair in pairs]
        names = [pair.case for pair in pairs]
        outcomes = in_order(map_cases(examining, sent, names=names, cluster=workers, progress=progress))
        for pair, outcome in zip(pairs, outcomes, strict=True):
            try:
                found.append(outcome.get())
            except UnscannedError as error:
                fault = "worker" if isinstance(error, WorkerLost) else "resource"
                found.append(_Seen([Finding(pair.case, "error", fault, str(error), pair.source)]))
            if progress is not None and workers is None:
                progress(len(found), len(pairs), pair.case)
    findings += [finding for each in found for finding in each.findings]
    findings += _copies([content for each in found for content in each.contents])
    return Examination(
        Path(root),
        source,
        target,
        pairs,
        sorted(findings, key=lambda finding: (finding.case, finding.severity, finding.fault, str(finding.path))),
        {name: len(sessions) for name, sessions in there.items()},
        [look for each in found for look in each.looks],
        {pair.case: each.alignment for pair, each in zip(pairs, found, strict=True) if each.alignment is not None},
        None if pairs else likely_pair(inventory.scans, source, target),
    )


@draws_progress
def check_dataset(
    root: str | Path,
    *,
    source: str,
    target: str,
    layout: Layout = "auto",
    resample: bool = False,
    progress: Progress | None = AUTOMATIC,
) -> list[Finding]:
    """Read every pair of a dataset and return all that is wrong or odd, sorted by case.

    Args and errors as for `examine`, which returns what there is too.

    Returns:
        The findings; an empty list for a dataset without fault. A case with an error cannot be used.
    """
    return examine(root, source=source, target=target, layout=layout, resample=resample, progress=progress).findings


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


def _by_case(scans: Iterable[Scan]) -> dict[str, list[Scan]]:
    found: dict[str, list[Scan]] = {}
    for scan in scans:
        found.setdefault(case_name(scan.subject, scan.session), []).append(scan)
    return found


def _are(names: list[str]) -> str:
    return f"{'is' if len(names) == 1 else 'are'} {listed(names)}" if names else "is nothing else"


def _look(pair: Pair, scan: str, volume: Volume, head: np.ndarray) -> Look:
    """Return what a scan looks like, given its head on its own grid."""
    shape, affine = ras_grid(volume.shape, volume.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    box = ndimage.find_objects(to_ras(head, volume.affine).astype(np.uint8), max_label=1)[0]
    size = None if box is None else [along.stop - along.start for along in box] * spacing
    return Look(
        pair.case,
        scan,
        Path(str(volume.path)),
        shape,
        _triple(spacing),
        None if size is None else _triple(size),
        looks_skull_stripped(volume.array, volume.affine, head),
    )


def _triple(numbers: np.ndarray) -> tuple[float, float, float]:
    i, j, k = (float(number) for number in numbers)
    return i, j, k


@dataclass
class _Seen:
    """What a look at one pair shows."""

    findings: list[Finding] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    contents: list[Content] = field(default_factory=list)
    alignment: Alignment | None = None


def _examine(pair: Pair, progress: Progress | None, *, resample: bool) -> _Seen:
    seen = _Seen()
    try:
        _look_into(pair, seen, resample)
    except ResourceError:
        raise
    except Exception as error:
        seen.findings.append(Finding(pair.case, "error", "bug", str(of_one(error, where=pair.case)), pair.source))
    return seen


def _look_into(pair: Pair, seen: _Seen, resample: bool) -> None:
    volumes = []
    for scan, path in _scans(pair):
        try:
            volume = read_volume(path)
        except VolumeError as error:
            seen.findings.append(Finding(pair.case, "error", _FAULTS.get(error.what, "unreadable"), str(error), path))
            continue
        volumes.append(volume)
        if volume.synthetic:
            seen.findings.append(Finding(pair.case, "error", "synthetic", GENERATED, path))
        seen.looks.append(_look(pair, scan, volume, head_mask(volume.array, volume.affine)))
        seen.findings += [Finding(pair.case, "warning", "header", warning, path) for warning in volume.warnings]
        if not any(volume.spacing_mm == other.spacing_mm for other in volumes[:-1]):
            seen.findings += _check_spacing(pair.case, volume)
        seen.contents.append(Content(pair.subject, pair.case, scan, path, _digest(volume)))
    if len(volumes) < 2:
        return
    if (difference := grid_difference(*volumes)) is not None:
        message = (
            f"source and target lie on different grids: {difference}; set prepare.resample = true if they are aligned "
            "in world space, which check tells, and register them if not"
        )
        seen.findings.append(Finding(pair.case, "warning" if resample else "error", "grid", message, pair.target))
    elif not resample and (apart := grid_difference(*volumes, tolerance_mm=_SHIFT * min(volumes[0].spacing_mm))):
        message = f"{apart}, which is taken for one grid; prepare.resample = true brings the target to its place"
        seen.findings.append(Finding(pair.case, "warning", "shift", message, pair.target))
    try:
        align(pair, *volumes, resample=True)  # another grid is told already
    except VolumeError as error:
        seen.findings.append(Finding(pair.case, "error", "head", str(error), Path(str(error.where))))
        return
    seen.alignment = measure_alignment(*volumes)
    if seen.alignment is not None:
        seen.findings += _check_alignment(pair, seen.alignment)


def _copies(contents: Iterable[Content]) -> Iterator[Finding]:
    """Tell each scan with the voxels of an earlier one."""
    seen: dict[str, Content] = {}
    for content in contents:
        if (first := _copied(content, seen)) is not None:
            message = f"the same voxels as {first.path}, the {first.scan} of {first.case}"
            severity: Literal["error", "warning"] = "error" if _is_forbidden(content, first) else "warning"
            yield Finding(content.case, severity, "duplicate", message, content.path)


def _check_alignment(pair: Pair, found: Alignment) -> Iterator[Finding]:
    """Tell a target that is no partner, that is mirrored, or that lies off; only the first of these, as it rules."""
    if not found.is_pair:
        message = (
            f"source and target fit in no position: sharpness {found.sharpness:.1f}, agreement "
            f"{found.agreement:.2f}, where a pair has at least {SHARP:g} and {AGREES:g}; another head's, or one much "
            "damaged or turned"
        )
        yield Finding(pair.case, "error", "no-pair", message, pair.target)
    elif found.mirrored:
        message = f"the target fits only when it is flipped {' and '.join(found.mirrored)}; one of the two is mirrored"
        yield Finding(pair.case, "error", "flip", message, pair.target)
    elif found.is_far or found.is_off:
        severity: Literal["error", "warning"] = "error" if found.is_far else "warning"
        message = f"the target is not aligned with the source. It lies {found}; register it"
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
