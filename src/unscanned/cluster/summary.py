"""summary.csv: a row for every scan of a cohort, with what became of it."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from unscanned.cluster.cases import Outcome
from unscanned.errors import DatasetError
from unscanned.files import read_text, write_text
from unscanned.outputs import begins_with, claim

__all__ = ["SUMMARY", "Row", "Summary", "read_summary"]

SUMMARY = "summary.csv"

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
            ResourceError: It cannot be written.
        """
        path = Path(folder, SUMMARY)
        claim(path, begins_with(",".join(_COLUMNS)), "the summary of a cohort, or nothing")
        earlier = read_summary(folder) if path.exists() else {}
        made = {output: row for output, row in earlier.items() if row.status == "written"}
        summary = cls(path, {**earlier, **{row.output: row for row in rows}}, made)
        summary.save()
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
        # Who made a volume, and how long it took, stays known when a later call finds it there.
        self.rows[output] = self._earlier.get(output, row) if row.status == "skipped" else row
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


def read_summary(folder: str | Path) -> dict[str, Row]:
    """Return the rows of a folder's summary, by output.

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
    return {row.output: row for row in rows}
