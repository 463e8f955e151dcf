"""case.json: what a prepared case is, beside its volumes."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from unscanned.contrast.appearance import Appearance
from unscanned.formats.record import Record
from unscanned.schema import Schema

__all__ = ["CaseRecord", "ScanFile"]


class ScanFile(Schema):
    """A scan that a case was prepared from."""

    name: str
    "Of the file."
    sha256: str
    "Of the file's content."


class CaseRecord(Record):
    """A cache of another format, or of older content by its key, is made again."""

    kind: ClassVar[str] = "prepared case"
    version: ClassVar[int] = 1
    readable: ClassVar[tuple[int, ...]] = (1,)

    case: str
    "Name, such as `sub-01_ses-1`."
    subject: str
    session: str | None = None
    source: ScanFile
    target: ScanFile
    source_scale: float
    "Intensity of the source that is 1 in unit scale."
    target_scale: float
    appearance: Appearance | None = None
    "What the source looks like; None where that could not be measured."
    target_appearance: Appearance | None = None
    "What the target looks like."
    settings: dict[str, Any]
    "The table `prepare` of the settings."
    frame: dict[str, Any]
    "The scan's grid, the model's, and how to go from one to the other."
    head_left_out: float = 0.0
    "Share of the head that lies outside the model's grid."
    warnings: list[str] = Field([])
    bytes: dict[str, int]
    "Size of each volume's file."
    key: str
    "Digest of scans, settings and content."
