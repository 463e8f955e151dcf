"""Whether every scan of a cohort has an output that is whole, or a row that says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import abspath
from pathlib import Path

from unscanned.cluster.cases import map_cases
from unscanned.cluster.summary import SUMMARY, Row, read_summary
from unscanned.cluster.workers import Cluster
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import DatasetError, UnscannedError, VolumeError
from unscanned.files import read_sealed, sha256
from unscanned.formats.case import CaseRecord
from unscanned.machine.crash import of_one
from unscanned.progress import Progress, begin
from unscanned.synthesis.sidecar import read_sidecar

__all__ = ["Audit", "audit", "audit_outputs"]

_WHOLE = ("written", "skipped")

_AT_A_TIME = 50
"Outputs that are one task: each takes milliseconds."


@dataclass(frozen=True)
class Audit:
    """What became of the scans of a folder.

    Attributes:
        folder: Of the outputs.
        rows: Of every scan, with what the audit found: missing where nothing was done yet or an output is gone, broken
            where it is not whole.
    """

    folder: Path
    rows: tuple[Row, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many scans have each status."""
        found = [row.status for row in self.rows]
        return {status: found.count(status) for status in dict.fromkeys(found)}

    @property
    def faults(self) -> tuple[Row, ...]:
        """The rows of scans without an output that is whole."""
        return tuple(row for row in self.rows if row.status not in _WHOLE)


@draws_progress
def audit(folder: str | Path, *, cluster: Cluster | None = None, progress: Progress | None = AUTOMATIC) -> Audit:
    """Hold the summary of a cohort against what is in its folder; nothing is changed.

    Args:
        folder: That the cohort was written into.
        cluster: Whose workers read the outputs; None reads them in this process.
        progress: Called with (done, total, label). Without it a bar, in a terminal and in Jupyter; None draws none.

    Raises:
        DatasetError: The folder has no summary, or a damaged one.
        ResourceError: As for `map_cases`.
    """
    folder, rows = Path(folder), read_summary(folder)
    written_at = (folder / SUMMARY).stat().st_mtime_ns
    # A volume that is newer than the summary was made since, by a call that was killed or that wrote none.
    said = [o for o, row in rows.items() if row.status in _WHOLE or _modified(folder / o) > written_at]
    found = audit_outputs(folder, said, cluster=cluster, progress=progress)
    return Audit(folder, tuple(_audited(folder, row, found) for row in rows.values()))


def audit_outputs(
    folder: Path, outputs: Sequence[str], *, cluster: Cluster | None = None, progress: Progress | None = None
) -> dict[str, UnscannedError | None]:
    """Return what is wrong with each output; None where it is whole.

    Args:
        folder: Of the outputs.
        outputs: Below it: synthetic volumes, or folders of prepared cases.
        cluster: As for `audit`.
        progress: Called with (done, total, label).
    """
    paths = [Path(abspath(folder), output) for output in outputs]
    parts = [paths[start : start + _AT_A_TIME] for start in range(0, len(paths), _AT_A_TIME)]
    names = [f"the audit of {part[0].name} and {len(part) - 1} more" for part in parts]
    found: dict[int, list[UnscannedError | None]] = {}
    for number, outcome in map_cases(_faults, parts, names=names, cluster=cluster, progress=progress):
        found[number] = outcome.get()
    return dict(zip(outputs, (fault for number in range(len(parts)) for fault in found[number]), strict=True))


def _audited(folder: Path, row: Row, found: Mapping[str, UnscannedError | None]) -> Row:
    fault = found.get(row.output)
    if row.output in found and fault is None:
        return row if row.status in _WHOLE else replace(row, status="written", reason="")
    if row.status in _WHOLE:
        status = "broken" if Path(folder, row.output).exists() else "missing"
        return replace(row, status=status, reason=str(fault))
    if row.status in ("waiting", "running"):
        reason = "not taken up yet" if row.status == "waiting" else f"taken up by {row.worker}, and not finished"
        return replace(row, status="missing", reason=reason)
    return row


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _faults(paths: Sequence[Path], progress: Progress | None) -> list[UnscannedError | None]:
    begin(progress, "audit")
    return [_fault(path) for path in paths]


def _fault(path: Path) -> UnscannedError | None:
    try:
        _check_volume(path) if path.name.endswith(".nii.gz") else _check_case(path)
    except Exception as error:
        return of_one(error, where=path)
    return None


def _check_volume(path: Path) -> None:
    expected = read_sidecar(path).sha256
    try:
        found = sha256(path)
    except OSError as error:
        raise VolumeError("cannot be read", where=path, found=error, do=_AGAIN) from error
    if found != expected:
        raise VolumeError(
            "the volume is not the one that its sidecar describes",
            where=path,
            found=f"sha256 {found[:12]}…",
            expected=f"{expected[:12]}…",
            do=_AGAIN,
        )


def _check_case(folder: Path) -> None:
    try:
        facts = CaseRecord.load(read_sealed(folder / "case.json"), where=folder, error=DatasetError)
        found = {name: (folder / f"{name}.npy").stat().st_size for name in facts.bytes}
    except (OSError, ValueError) as error:
        raise DatasetError("the prepared case is not whole", where=folder, found=error, do=_AGAIN) from error
    if found != facts.bytes:
        raise DatasetError("the prepared case is not whole", where=folder, found=found, expected=facts.bytes, do=_AGAIN)


_AGAIN = "Run the cohort again: it makes what is missing or broken."
