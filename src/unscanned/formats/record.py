"""What all records have in common: a number of the format, and the refusal of what cannot be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from unscanned.errors import UnscannedError, quoted
from unscanned.schema import Schema, read

__all__ = ["Record"]


class Record(Schema):
    """The content of a file of one kind.

    Attributes:
        format: Number of the format; files from before there was one count as 1.
    """

    kind: ClassVar[str]
    "What the file is called in messages."
    version: ClassVar[int]
    "Number of the format that is written."
    readable: ClassVar[tuple[int, ...]]
    "Numbers of the formats that are read."
    is_plain: ClassVar[bool] = False
    "Whether it holds neither dataclasses nor tuples. Only then may a name in it be no text, as a file's may be."

    format: int = 1

    @classmethod
    def load(cls, content: Any, *, where: object, error: type[UnscannedError]) -> Self:
        """Return the record that a file holds.

        Args:
            content: JSON values.
            where: The file.
            error: What to raise.

        Raises:
            UnscannedError: Of the class `error`: another format, an unknown key, or a value of the wrong kind. It names
                the release that wrote the file, where the file says so.
        """
        name = cls.model_fields["format"].alias or "format"
        found = content.get(name, 1) if isinstance(content, Mapping) else 1
        writer = _writer(content)
        if found not in cls.readable:
            raise error(
                f"another format of {cls.kind}",
                where=where,
                found=quoted(found) + (f", written by unscanned {writer}" if writer else ""),
                expected=" or ".join(map(str, cls.readable)),
                do="Use the release that made it, or make it again with this one.",
            )
        try:
            return read(cls, cls.upgrade(content), where=str(where), noun="key", is_json=not cls.is_plain, error=error)
        except error as refusal:
            if writer is None:
                raise
            told = " ".join(filter(None, (refusal.do, f"unscanned {writer} wrote the file.")))
            raise refusal.but(do=told) from refusal

    @classmethod
    def upgrade(cls, content: Any) -> Any:
        """Return the content of a readable format as one of the format that is written."""
        return content

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values that are written."""
        return self.model_dump(mode="json", by_alias=True)


def _writer(content: Any) -> str | None:
    """Return the release that wrote the content; None where it does not say so."""
    for path in (("unscanned",), ("environment",), ("provenance", "environment"), ("Environment",)):
        place = content
        for key in path:
            place = place.get(key) if isinstance(place, Mapping) else None
        version = place.get("unscanned") if isinstance(place, Mapping) else place
        if isinstance(version, str):
            return version
    return None
