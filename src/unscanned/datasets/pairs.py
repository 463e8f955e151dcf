"""Pairs of scans in a dataset, their split by subject, and a report on everything that is wrong with them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from unscanned import files
from unscanned.datasets.layout import Inventory, Layout, Scan, contrast_key, take_inventory
from unscanned.errors import DatasetError, SettingsError, VolumeError
from unscanned.progress import Progress
from unscanned.volumes.nifti import CONSTANT, FOUR_D, NONFINITE, Volume, grid_difference, read_volume

__all__ = ["Finding", "Pair", "Selection", "check_dataset", "find_pairs", "select_pairs", "split_subjects", "survey"]

_PARTS = ("train", "validation", "test")
_FAULTS = {NONFINITE: "nonfinite", CONSTANT: "constant", FOUR_D: "4d"}
_WHOLE = "dataset"

_MAX_ANISOTROPY = 3.0
_SPACING_RANGE_MM = (0.3, 6.0)


@dataclass(frozen=True)
class Pair:
    """The source and the target scan of one session.

    Attributes:
        subject: Label without "sub-".
        session: Label without "ses-"; None where the dataset has no sessions.
        source: File of the source contrast.
        target: File of the target contrast; None where only the source is there.
    """

    subject: str
    session: str | None
    source: Path
    target: Path | None

    @property
    def case(self) -> str:
        """Name of the session in BIDS entities, such as "sub-ms07" or "sub-mslong01_ses-1"."""
        return _case(self.subject, self.session)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd in a dataset.

    Attributes:
        case: The case it is about, as in `Pair.case`, or "dataset".
        severity: An error makes the case unusable; a warning does not.
        fault: "missing-partner", "ambiguous", "grid", "nonfinite", "constant", "4d", "duplicate", "spacing",
            "header", "unreadable" or "name".
        message: What was found, for a person.
        path: The file.
    """

    case: str
    severity: Literal["error", "warning"]
    fault: str
    message: str
    path: Path | None = None


@dataclass(frozen=True)
class Selection:
    """The pairs of a dataset, and every case that its file names leave out.

    Attributes:
        pairs: Sorted by case.
        ambiguous: The error of each case that has several files of one contrast to choose from.
        incomplete: What each case lacks that has not both contrasts, such as "no T2 scan".
    """

    pairs: list[Pair]
    ambiguous: dict[str, DatasetError]
    incomplete: dict[str, str]


def find_pairs(
    root: str | Path,
    *,
    source: str = "PD",
    target: str = "T2",
    layout: Layout = "auto",
    require_target: bool = True,
) -> list[Pair]:
    """Return the pairs of a dataset, sorted by case; `select_pairs` also says which cases are left out, and why.

    Args:
        root: A BIDS dataset, a folder of IXI files at any depth, or a CSV or TSV table of paths with the columns
            subject, session (optional) and the two contrasts, paths relative to the table.
        source: Contrast, with or without the "w" that ends BIDS suffixes: "PD", "T1w", "FLAIR".
        target: Contrast.
        layout: "auto" decides by the names.
        require_target: False returns sources without a target too, with `target` None, also where there are several to
            choose from.

    Raises:
        DatasetError: The dataset cannot be read, or has no pair at all.
        SettingsError: Source and target are the same contrast.

    Example:
        >>> pairs = find_pairs("ms-t1-t2-flair", source="T1w", target="T2w")
        >>> pairs[0].case
        'sub-ms07'
    """
    return select_pairs(root, source=source, target=target, layout=layout, require_target=require_target).pairs


def select_pairs(
    root: str | Path,
    *,
    source: str = "PD",
    target: str = "T2",
    layout: Layout = "auto",
    require_target: bool = True,
) -> Selection:
    """Return the pairs of a dataset, and each case that is left out with the reason.

    Args and errors as for `find_pairs`.
    """
    pairs, findings = survey(root, source=source, target=target, layout=layout, require_target=require_target)
    if pairs:
        ambiguous = {
            finding.case: DatasetError(finding.message, where=f"{root}: {finding.case}")
            for finding in findings
            if finding.fault == "ambiguous"
        }
        incomplete = {finding.case: finding.message for finding in findings if finding.fault == "missing-partner"}
        return Selection(pairs, ambiguous, incomplete)
    first = f", the first: {findings[0].case}: {findings[0].message}" if findings else ""
    raise DatasetError(
        f"no pair of {source} and {target} was found" if require_target else f"no {source} scan was found",
        where=root,
        found=f"{len(findings)} problems{first}",
        do="`unscanned check` lists all problems. Are the contrasts' names those of the files?",
    )


def survey(
    root: str | Path,
    *,
    source: str = "PD",
    target: str = "T2",
    layout: Layout = "auto",
    require_target: bool = True,
) -> tuple[list[Pair], list[Finding]]:
    """Return the usable pairs of a dataset by its file names, and a finding for each case that is left out.

    A case with several files of one contrast uses the one without further BIDS entities (`acq-`, `run-`, ...), or the
    only one there is; otherwise it is ambiguous and left out. `derivatives/` and synthetic files are never used.

    Args and errors as for `find_pairs`, but that no pair at all is no error.
    """
    source_key, target_key = contrast_key(source), contrast_key(target)
    if source_key == target_key:
        raise SettingsError("source and target are the same contrast", found=source, expected="two contrasts")
    inventory = take_inventory(root, layout, source=source, target=target, require_target=require_target)
    sessions: dict[tuple[str, str | None], list[Scan]] = defaultdict(list)
    for scan in inventory.scans:
        sessions[scan.subject, scan.session].append(scan)
    pairs, findings = [], list(_oddities(inventory))
    for (subject, session), scans in sorted(sessions.items(), key=lambda item: _case(*item[0])):
        outcome = _pair(subject, session, scans, source=source, target=target, require_target=require_target)
        if isinstance(outcome, Pair):
            pairs.append(outcome)
        else:
            findings.append(outcome)
    return pairs, findings


def split_subjects(
    pairs: Iterable[Pair], *, train: int, validation: int, test: int, seed: int = 0, file: str | Path | None = None
) -> dict[str, list[str]]:
    """Divide the subjects into disjoint parts; all sessions of a subject are in one part.

    The order of the draw is that of a hash of seed and subject, so it is the same on every machine, and a subject added
    to the dataset does not shuffle the others.

    Args:
        pairs: The dataset.
        train: Number of subjects to train on.
        validation: Number of subjects to choose the best epoch with.
        test: Number of subjects to score.
        seed: Chooses another draw.
        file: JSON file with the lists "train", "validation" and "test" of subjects; the numbers and the seed are then
            ignored.

    Returns:
        Sorted subject labels under the keys "train", "validation" and "test". Subjects beyond the sum are in no part.

    Raises:
        DatasetError: There are too few subjects, or the file is unreadable, names unknown subjects or repeats one.
    """
    subjects = sorted({pair.subject for pair in pairs})
    if file is not None:
        return _split_from_file(Path(file), subjects)
    counts = dict(zip(_PARTS, (train, validation, test), strict=True))
    if min(counts.values()) < 0 or sum(counts.values()) > len(subjects):
        raise DatasetError(
            "there are too few subjects for the split",
            found=f"{len(subjects)} subjects with both contrasts",
            expected=" + ".join(f"{count} {part}" for part, count in counts.items()) + f" = {sum(counts.values())}",
            do="Lower split.train, split.validation or split.test, or add subjects.",
        )
    drawn = iter(sorted(subjects, key=lambda subject: hashlib.sha256(f"{seed}:{subject}".encode()).digest()))
    return {part: sorted(next(drawn) for _ in range(count)) for part, count in counts.items()}


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
        resample: Whether the target will be resampled onto the source's grid, so that another grid is but a warning.
        progress: Called with (cases done, cases in all, case).

    Returns:
        The findings; an empty list for a dataset without fault. A case with an error cannot be used.

    Raises:
        DatasetError: The dataset cannot be read, or no name in it fits the layout.
    """
    pairs, findings = survey(root, source=source, target=target, layout=layout)
    seen: dict[str, _Seen] = {}
    for done, pair in enumerate(pairs, start=1):
        findings += _check_pair(pair, seen, resample)
        if progress is not None:
            progress(done, len(pairs), pair.case)
    return sorted(findings, key=lambda finding: (finding.case, finding.severity, finding.fault, str(finding.path)))


@dataclass(frozen=True)
class _Seen:
    case: str
    subject: str
    path: Path


@dataclass
class _Choice:
    path: Path | None = None
    rivals: list[Path] = field(default_factory=list)


def _case(subject: str, session: str | None) -> str:
    return f"sub-{subject}" if session is None else f"sub-{subject}_ses-{session}"


def _oddities(inventory: Inventory) -> Iterable[Finding]:
    for path, message in inventory.oddities:
        yield Finding(_WHOLE, "warning", "name", message, path)


def _pair(
    subject: str, session: str | None, scans: list[Scan], *, source: str, target: str, require_target: bool
) -> Pair | Finding:
    case = _case(subject, session)
    choices = {
        name: _choose([scan for scan in scans if scan.contrast == contrast_key(name)]) for name in (source, target)
    }
    for name in (source, target) if require_target else (source,):
        if rivals := choices[name].rivals:
            names = ", ".join(path.name for path in rivals)
            message = f"several {name} files, name the right one in a CSV: {names}"
            return Finding(case, "error", "ambiguous", message, rivals[0])
    source_path, target_path = choices[source].path, choices[target].path
    if source_path is not None and (target_path is not None or not require_target):
        return Pair(subject, session, source_path, target_path)
    there = source_path or target_path
    if there is None:
        return Finding(case, "warning", "missing-partner", f"neither a {source} nor a {target} scan", scans[0].path)
    lacking = source if source_path is None else target
    return Finding(case, "error", "missing-partner", f"no {lacking} scan", there)


def _choose(scans: list[Scan]) -> _Choice:
    plain = [scan.path for scan in scans if not scan.entities]
    candidates = plain or [scan.path for scan in scans]
    if len(candidates) > 1:
        return _Choice(rivals=candidates)
    return _Choice(path=candidates[0] if candidates else None)


def _split_from_file(file: Path, subjects: list[str]) -> dict[str, list[str]]:
    try:
        content = files.read_json(file)
        split = {part: sorted(str(name).removeprefix("sub-") for name in content[part]) for part in _PARTS}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DatasetError(
            "the split cannot be read",
            where=file,
            found=f"{type(error).__name__}: {error}",
            expected='JSON such as {"train": ["01", "02"], "validation": ["03"], "test": ["04"]}',
        ) from error
    listed = [subject for part in _PARTS for subject in split[part]]
    repeated = sorted({subject for subject in listed if listed.count(subject) > 1})
    unknown = sorted(set(listed) - set(subjects))
    if repeated or unknown:
        raise DatasetError(
            "the split names subjects more than once" if repeated else "the split names unknown subjects",
            where=file,
            found=", ".join(repeated or unknown),
            expected="each subject once" if repeated else f"some of the {len(subjects)} subjects of the dataset",
        )
    return split


def _check_pair(pair: Pair, seen: dict[str, _Seen], resample: bool) -> list[Finding]:
    findings: list[Finding] = []
    volumes = []
    for path in filter(None, (pair.source, pair.target)):
        try:
            volume = read_volume(path)
        except VolumeError as error:
            findings.append(Finding(pair.case, "error", _FAULTS.get(error.what, "unreadable"), str(error), path))
            continue
        volumes.append(volume)
        findings += [Finding(pair.case, "warning", "header", warning, path) for warning in volume.warnings]
        findings += _check_spacing(pair.case, volume)
        findings += _check_duplicate(pair, path, volume, seen)
    if len(volumes) == 2 and (difference := grid_difference(*volumes)) is not None:
        message = (
            f"source and target lie on different grids: {difference}; register them, or set prepare.resample = true"
        )
        findings.append(Finding(pair.case, "warning" if resample else "error", "grid", message, pair.target))
    return findings


def _check_spacing(case: str, volume: Volume) -> Iterable[Finding]:
    low, high = min(volume.spacing_mm), max(volume.spacing_mm)
    if high / low > _MAX_ANISOTROPY or low < _SPACING_RANGE_MM[0] or high > _SPACING_RANGE_MM[1]:
        spacing = " x ".join(f"{value:.3g}" for value in volume.spacing_mm)
        yield Finding(case, "warning", "spacing", f"voxels of {spacing} mm are unusual", volume.path)


def _check_duplicate(pair: Pair, path: Path, volume: Volume, seen: dict[str, _Seen]) -> Iterable[Finding]:
    # Of the voxels, not the file: a copy that was compressed again is a copy still.
    digest = hashlib.sha256(repr(volume.shape).encode())
    digest.update(np.ascontiguousarray(volume.array.T).data)
    first = seen.setdefault(digest.hexdigest(), _Seen(pair.case, pair.subject, path))
    if first.path == path:
        return
    other_session = first.subject == pair.subject and first.case != pair.case
    message = f"the same voxels as {first.path} of {first.case}"
    yield Finding(pair.case, "warning" if other_session else "error", "duplicate", message, path)
