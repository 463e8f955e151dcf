"""Pairs of scans in a dataset, by the names of its files, and each case that has no pair."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from os.path import abspath
from pathlib import Path
from typing import Literal

from unscanned.datasets.layout import (
    Inventory,
    Layout,
    Scan,
    case_of_folder,
    contrast_key,
    likely_pair,
    present,
    take_inventory,
)
from unscanned.errors import DatasetError, SettingsError, listed

__all__ = [
    "Finding",
    "Pair",
    "Selection",
    "case_name",
    "find_pairs",
    "select_pairs",
    "survey",
    "what_is_there",
    "with_absolute_paths",
]

_WHOLE = "dataset"


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
        return case_name(self.subject, self.session)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd in a dataset.

    Attributes:
        case: The case it is about, as in `Pair.case`, or "dataset".
        severity: An error makes the case unusable; a warning does not.
        fault: "missing-partner", "ambiguous", "grid", "nonfinite", "constant", "4d", "duplicate", "spacing",
            "header", "head", "unreadable", "name", "offset", "flip", "no-pair",
            "dicom", "synthetic", "worker" (it died with the case), "resource" (no memory or no worker for it) or "bug".
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
        refused: The error of each case that has several files of one contrast to choose from or a folder that cannot
            be read, and of each such folder that is no subject's.
        incomplete: What each case lacks that has not both contrasts, such as "no T2 scan".
        passed_over: Why each file or link that is no scan of any case was left alone.
    """

    pairs: list[Pair]
    refused: dict[str, DatasetError]
    incomplete: dict[str, str]
    passed_over: dict[Path, str]


def find_pairs(
    root: str | Path, *, source: str = "PD", target: str = "T2", layout: Layout = "auto", require_target: bool = True
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
    root: str | Path, *, source: str = "PD", target: str = "T2", layout: Layout = "auto", require_target: bool = True
) -> Selection:
    """Return the pairs of a dataset, and each case that is left out with the reason.

    Args and errors as for `find_pairs`.
    """
    pairs, findings = survey(root, source=source, target=target, layout=layout, require_target=require_target)
    if pairs:
        refused = {
            str(finding.path) if finding.case == _WHOLE else finding.case: DatasetError(
                finding.message, where=f"{root}: {finding.case}" if finding.fault == "ambiguous" else finding.path
            )
            for finding in findings
            if finding.fault in ("ambiguous", "unreadable")
        }
        incomplete = {finding.case: finding.message for finding in findings if finding.fault == "missing-partner"}
        passed_over = {f.path: f.message for f in findings if f.fault == "name" and f.path is not None}
        return Selection(pairs, refused, incomplete, passed_over)
    scans = take_inventory(root, layout, source=source, target=target, require_target=require_target).scans
    first = f", the first: {findings[0].case}: {findings[0].message}" if findings else ""
    raise DatasetError(
        f"no pair of {source} and {target} was found" if require_target else f"no {source} scan was found",
        where=root,
        found=f"{len(findings)} problems{first}",
        do=f"`unscanned check` lists all problems. {what_is_there(scans, source, target)}",
    )


def with_absolute_paths(pair: Pair) -> Pair:
    """Return a pair as another process, with another working folder, finds it."""
    target = None if pair.target is None else Path(abspath(pair.target))
    return replace(pair, source=Path(abspath(pair.source)), target=target)


def what_is_there(scans: Iterable[Scan], source: str, target: str) -> str:
    """Return in a sentence which contrasts there are, and which two can be asked for instead of those that were."""
    scans = list(scans)
    there = listed([f"{name} in {len(sessions)}" for name, sessions in present(scans).items()])
    likely = likely_pair(scans, source, target)
    if likely is None:
        return f"There are, by the number of cases: {there or 'none'}; no case has two of them."
    return f"There are, by the number of cases: {there}. Try --source {likely[0]} --target {likely[1]}."


def survey(
    root: str | Path, *, source: str = "PD", target: str = "T2", layout: Layout = "auto", require_target: bool = True
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
    pairs = []
    findings = [Finding(_WHOLE, "warning", "name", message, path) for path, message in inventory.oddities]
    for (subject, session), scans in sorted(sessions.items(), key=lambda item: case_name(*item[0])):
        outcome = _pair(subject, session, scans, source=source, target=target, require_target=require_target)
        if isinstance(outcome, Pair):
            pairs.append(outcome)
        else:
            findings.append(outcome)
    return pairs, _with_unreadable(Path(root), inventory, pairs, findings)


def _with_unreadable(root: Path, inventory: Inventory, pairs: list[Pair], findings: list[Finding]) -> list[Finding]:
    """Add a finding for each place that cannot be read; it takes the place of what is missing for that reason.

    It is an error where a case may lack a scan because of it: that of a subject or session without a pair, or a folder
    that is no subject's. A link that leads nowhere is often one to a file that nobody needs, and elsewhere a warning.
    """
    paired = {case for pair in pairs for case in (case_name(pair.subject, None), pair.case)}
    told, lost = [], set()
    for path, message in inventory.unreadable:
        labels = case_of_folder(path, root)
        case = case_name(*labels) if labels else _WHOLE
        if case in paired or (labels is None and path.is_symlink()):
            told.append(Finding(case, "warning", "name", message, path))
        else:
            told.append(Finding(case, "error", "unreadable", message, path))
            lost.add(case)
    return told + [finding for finding in findings if finding.fault != "missing-partner" or finding.case not in lost]


def case_name(subject: str, session: str | None) -> str:
    """Return the name of a session in BIDS entities, such as "sub-mslong01_ses-1"."""
    return f"sub-{subject}" if session is None else f"sub-{subject}_ses-{session}"


def _pair(
    subject: str, session: str | None, scans: list[Scan], *, source: str, target: str, require_target: bool
) -> Pair | Finding:
    case = case_name(subject, session)
    candidates = {name: _candidates(scans, contrast_key(name)) for name in (source, target)}
    for name in (source, target) if require_target else (source,):
        if len(rivals := candidates[name]) > 1:
            names = listed([path.name for path in rivals])
            message = f"several {name} files, name the right one in a CSV: {names}"
            return Finding(case, "error", "ambiguous", message, rivals[0])
    source_path, target_path = (paths[0] if len(paths) == 1 else None for paths in candidates.values())
    if source_path is not None and (target_path is not None or not require_target):
        return Pair(subject, session, source_path, target_path)
    there = source_path or target_path
    if there is None:
        return Finding(case, "warning", "missing-partner", f"neither a {source} nor a {target} scan", scans[0].path)
    lacking = source if source_path is None else target
    return Finding(case, "error", "missing-partner", f"no {lacking} scan", there)


def _candidates(scans: list[Scan], key: str) -> list[Path]:
    """Return the files of one contrast to choose from: those without further entities where there are any."""
    scans = [scan for scan in scans if scan.contrast == key]
    return [scan.path for scan in scans if not scan.entities] or [scan.path for scan in scans]
