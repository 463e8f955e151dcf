"""summary.csv: a row for every scan of a cohort, with what became of it.

Tasks of an array job cannot write one file together. Each keeps lines of its own beside it, which count as rows.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from unscanned.cluster.cases import Outcome
from unscanned.errors import BusyError, DatasetError, listed
from unscanned.files import read_text, short_digest, write_text
from unscanned.outputs import begins_with, claim

__all__ = [
    "CLAIMS",
    "LOST_AFTER_S",
    "SUMMARY",
    "Row",
    "Summary",
    "age_s",
    "claim_path",
    "finished_rows",
    "read_summary",
]

SUMMARY = "summary.csv"
CLAIMS = ".cohort"
"Folder of the claims, and of the lines, of the tasks of an array job."

LOST_AFTER_S = 900.0
"Age from which on a claim without a sign of life counts as lost."

_SAVED_EVERY_S = 30.0


@dataclass(frozen=True)
class Row:
    """What became of one scan.

    Attributes:
        output: What is made of it, relative to the folder.
        scan: The file, or the case.
        status: waiting, running, written, skipped (it was there already), failed, or broken (its output is not whole).
        reason: Why it failed or is broken.
        seconds: That its worker took.
        worker: That took it last.
    """

    output: str
    scan: str
    status: str = "waiting"
    reason: str = ""
    seconds: float = 0.0
    worker: str = ""


_COLUMNS = tuple(column.name for column in fields(Row))


@dataclass
class Summary:
    """The rows of a folder, by output.

    Attributes:
        path: The file.
        rows: By output.
    """

    path: Path
    rows: dict[str, Row]
    _earlier: dict[str, Row] = field(default_factory=dict, repr=False)
    _saved_at: float = field(default=0.0, repr=False)

    @classmethod
    @contextlib.contextmanager
    def of(cls, folder: str | Path, rows: Iterable[Row]) -> Iterator[Summary]:
        """Yield the summary of a folder while these scans are worked on; it is written now and then, and at the end.

        Rows of other scans stay, as do those of what earlier calls made.

        Args:
            folder: Of the outputs; its lock is held.
            rows: Of all scans of this call, still waiting.

        Raises:
            SettingsError: Another file has its name.
            BusyError: Tasks of an array job work on the folder.
            ResourceError: It cannot be written.
        """
        _refuse_claimed(folder)
        path = Path(folder, SUMMARY)
        claim(path, begins_with(",".join(_COLUMNS)), "the summary of a cohort, or nothing")
        earlier = read_summary(folder) if path.exists() else {}
        made = {output: row for output, row in earlier.items() if row.status == "written"}
        summary = cls(path, {**earlier, **{row.output: row for row in rows}}, made)
        summary.save()
        shutil.rmtree(Path(folder, CLAIMS), ignore_errors=True)  # what it said stands in the file now
        try:
            yield summary
        finally:
            summary.save()

    def take(self, output: str, outcome: Outcome[Any], status: str) -> None:
        """Set the row of a scan.

        Args:
            output: As in its row.
            outcome: What became of it.
            status: Where it did not fail.
        """
        failed = outcome.error is not None
        row = replace(
            self.rows[output],
            status="failed" if failed else status,
            reason=str(outcome.error) if failed else "",
            seconds=round(outcome.seconds, 3),
            worker=outcome.worker,
        )
        self.rows[output] = _later(self._earlier.get(output), row)
        if time.monotonic() - self._saved_at > _SAVED_EVERY_S:
            self.save()

    def mark(self, output: str, status: str, reason: str) -> None:
        """Set the status of a row and its reason."""
        self.rows[output] = replace(self.rows[output], status=status, reason=reason)

    def save(self) -> None:
        """Write the file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows([getattr(row, name) for name in _COLUMNS] for row in self.rows.values())
        write_text(self.path, text.getvalue())
        self._saved_at = time.monotonic()


def claim_path(folder: str | Path, output: str) -> Path:
    """Return the file that stands for the claim of a scan."""
    return Path(folder, CLAIMS, f"{short_digest({'output': output})}.claim")


def finished_rows(folder: str | Path) -> dict[str, Row]:
    """Return what the tasks of an array job have said, by output; a line that is cut off says nothing."""
    rows: dict[str, Row] = {}
    for path in sorted(Path(folder, CLAIMS).glob("*.jsonl")):
        with contextlib.suppress(OSError):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    row = Row(**json.loads(line))
                    rows[row.output] = _later(rows.get(row.output), row)
    return rows


def _later(earlier: Row | None, row: Row) -> Row:
    """Return the row to keep: who made a volume stays known when another finds it there."""
    return earlier if earlier is not None and (earlier.status, row.status) == ("written", "skipped") else row


def _refuse_claimed(folder: str | Path) -> None:
    """Refuse a folder in which a task of an array job has claimed a scan and still shows signs of life."""
    for path in Path(folder, CLAIMS).glob("*.claim"):
        with contextlib.suppress(FileNotFoundError):
            if age_s(path) < LOST_AFTER_S:
                owners = listed(sorted(set(_claimed(folder).values()))) or "tasks without a name"
                raise BusyError(
                    "tasks of an array job write into the folder",
                    where=folder,
                    found=owners,
                    do=f"Wait for them to end. Tasks that were killed count as lost after {LOST_AFTER_S / 60:.0f} "
                    "minutes.",
                )


def age_s(path: Path) -> float:
    """Return the age of a claim by the clock of the file system, as those of two machines may differ; 0: it is gone."""
    now = path.parent / f".now-{uuid.uuid4().hex}"
    try:
        write_text(now, "")
        return now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        now.unlink(missing_ok=True)


def _claimed(folder: str | Path) -> dict[str, str]:
    """Return who has each scan that is claimed, by output."""
    owners: dict[str, str] = {}
    for path in Path(folder, CLAIMS).glob("*.claim"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            held = json.loads(path.read_bytes())
            owners[held["output"]] = held["owner"]
    return owners


def read_summary(folder: str | Path) -> dict[str, Row]:
    """Return the rows of a folder's summary, by output, with what the tasks of an array job have said since.

    Raises:
        DatasetError: There is none, or it is damaged.
    """
    path = Path(folder, SUMMARY)
    try:
        lines = csv.DictReader(io.StringIO(read_text(path)), strict=True)
        if tuple(lines.fieldnames or ()) != _COLUMNS:
            raise ValueError(f"the columns {', '.join(lines.fieldnames or ()) or 'of no table'}")
        rows = [Row(**{**line, "seconds": float(line["seconds"])}) for line in lines]  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DatasetError(
            "not the summary of a cohort",
            where=path,
            found=error,
            expected=f"a table with the columns {', '.join(_COLUMNS)}",
            do="Run the cohort again: what is finished is not made again.",
        ) from error
    found = {row.output: row for row in rows}
    for output, row in finished_rows(folder).items():
        found[output] = _later(found.get(output), row)
    for output, owner in _claimed(folder).items():
        if output in found and found[output].status == "waiting":
            found[output] = replace(found[output], status="running", worker=owner)
    return found
