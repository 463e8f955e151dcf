"""Claims of scans by tasks that know nothing of each other, in a folder that all of them see.

A claim is a file that only one task can create. Its age tells a task that was lost, and another one takes the scan up.
What became of a scan is a line in a file of the task that did it, so a cohort of any size is a file a task, and one for
each scan that is being worked on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from unscanned.cluster.summary import CLAIMS, Row, age_s, claim_path, finished_rows
from unscanned.cluster.workers import TRIES
from unscanned.files import writing

__all__ = ["Claims"]

_RENEWED_EVERY_S = 20.0
_LOOKS_EVERY_S = 60.0


class Claims:
    """The claims of one task.

    Args:
        out: Folder of the outputs.
        owner: Name of the task; one that is started again has the same.
        lost_after_s: Age of a claim that shows no sign of life from which on it is another's to take.
    """

    def __init__(self, out: str | Path, owner: str, *, lost_after_s: float) -> None:
        self._out, self._owner, self._lost_after_s = Path(out), owner, lost_after_s
        self._log = self._out / CLAIMS / f"{owner}.jsonl"
        self._finished: set[str] = set()
        self._looked_at = self._renewed_at = float("-inf")
        with writing(self._log):
            self._log.parent.mkdir(parents=True, exist_ok=True)

    def each(self, rows: Sequence[Row], start: int, share: int) -> Iterator[tuple[Row, bool]]:
        """Yield the rows that this task has claimed, one after the other, until none is left to take.

        Args:
            rows: All scans of the cohort.
            start: Where to begin, so that tasks do not come to the same scan.
            share: How many from there are this task's to begin with; the others are those of tasks that may be lost.

        Yields:
            The row, and whether it may be worked on: False where it was taken up too often, and is to be given up.
        """
        for number, row in enumerate((*rows[start:], *rows[:start])):
            if number == share or time.monotonic() - self._looked_at > _LOOKS_EVERY_S:
                self._finished, self._looked_at = set(finished_rows(self._out)), time.monotonic()
            if row.output not in self._finished and (tries := self._take(row)):
                yield row, tries <= TRIES

    def renew(self, row: Row) -> None:
        """Show a sign of life; called often, it costs nothing."""
        if time.monotonic() - self._renewed_at > _RENEWED_EVERY_S:
            self._renewed_at = time.monotonic()
            with contextlib.suppress(OSError):
                os.utime(claim_path(self._out, row.output))

    def finish(self, row: Row) -> None:
        """Write down what became of a scan, and give the claim back.

        Raises:
            ResourceError: It cannot be written.
        """
        line = json.dumps(dataclasses.asdict(row), ensure_ascii=False)
        with writing(self._log), open(self._log, "a", encoding="utf-8", errors="backslashreplace") as file:
            # A task that was killed while it wrote has left a line without its end.
            file.write(f"\n{line}\n" if self._is_cut_off() else f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self._finished.add(row.output)
        self.give_back(row)

    def give_back(self, row: Row) -> None:
        """Let others take a scan."""
        claim_path(self._out, row.output).unlink(missing_ok=True)

    def _take(self, row: Row) -> int:
        """Claim a scan; return how often it has been taken up, this time included, 0 where it is another's."""
        path = claim_path(self._out, row.output)
        tries = 1
        content = {"output": row.output, "owner": self._owner, "tries": tries}
        while not self._create(path, content):
            try:
                held = json.loads(path.read_text() or "{}")
                is_lost = held.get("owner") == self._owner or age_s(path) > self._lost_after_s
            except FileNotFoundError:
                continue  # it was given back at this moment
            except ValueError:
                held, is_lost = {}, age_s(path) > self._lost_after_s
            if not is_lost:
                return 0
            # Of several tasks that see it as lost, one renames it.
            aside = path.with_name(f".lost-{uuid.uuid4().hex}")
            try:
                path.rename(aside)
            except FileNotFoundError:
                return 0
            aside.unlink(missing_ok=True)
            tries = int(held.get("tries", 1)) + 1
            content = {**content, "tries": tries}
        return tries

    def _create(self, path: Path, content: dict[str, object]) -> bool:
        with writing(path):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                return False
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
        return True

    def _is_cut_off(self) -> bool:
        with open(self._log, "rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
