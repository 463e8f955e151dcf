"""cohort.json: what the tasks of an array job make, and with what."""

from __future__ import annotations

from typing import Any, ClassVar

from unscanned.formats.record import Record

__all__ = ["CohortRecord"]


class CohortRecord(Record):
    """Beside it lies scans.jsonl, with a scan and its output in each line."""

    kind: ClassVar[str] = "cohort"
    version: ClassVar[int] = 1
    readable: ClassVar[tuple[int, ...]] = (1,)
    is_plain: ClassVar[bool] = True

    format: int = 1
    unscanned: str
    "Version that wrote it."
    out: str
    "Folder of the outputs."
    model: dict[str, str]
    "Its folder, its name and its hash."
    synthesis: dict[str, Any]
    "The table `synthesis`, resolved."
    device: str
    threads: int | None
    "CPU threads of a task; None leaves their number to it."
    force: bool
    "Whether scans go through that do not show the source contrast."
