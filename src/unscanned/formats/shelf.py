"""models.json: which models a folder holds, and the hash of each of their files."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from unscanned.formats.record import Record
from unscanned.schema import Schema

__all__ = ["Entry", "ShelfRecord"]


class Entry(Schema):
    """A model, in the folder of its name."""

    files: dict[str, str]
    "SHA-256 of each file by its path in the model's folder."
    url: str | None = None
    "Where it was fetched from; None for one that was put there."
    archive_sha256: str | None = None
    "Of the archive that it came in."


class ShelfRecord(Record):
    """A folder without the file holds no models."""

    kind: ClassVar[str] = "list of models"
    version: ClassVar[int] = 1
    readable: ClassVar[tuple[int, ...]] = (1,)
    is_plain: ClassVar[bool] = True

    format: int = 1
    models: dict[str, Entry] = Field({})
    "By name."
