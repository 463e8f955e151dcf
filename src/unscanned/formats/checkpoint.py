"""step-*.json: what a checkpoint is, beside its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from unscanned.errors import CheckpointError
from unscanned.formats.record import Record
from unscanned.settings import Settings, decisive, read_settings

__all__ = ["CheckpointRecord", "comparable"]


class CheckpointRecord(Record):
    """Format 1 had every setting in its identity, and format 2 has those that do not stand at their default."""

    kind: ClassVar[str] = "checkpoint"
    version: ClassVar[int] = 2
    readable: ClassVar[tuple[int, ...]] = (1, 2)

    format: int = 2
    step: int = Field(ge=0)
    "Steps taken."
    sha256: str
    "Of the tensors' file."
    identity: dict[str, dict[str, Any]]
    "Settings and data, table by table, that a run must share to go on from here."
    record: dict[str, Any] = Field({})
    "What the stage remembers beside its networks."
    environment: dict[str, Any] = Field({})
    "Device, version of PyTorch and threads."
    best: dict[str, Any] | None = None
    "In best/: the epoch, its step and its scores."

    @classmethod
    def upgrade(cls, content: Any) -> Any:
        """Leave out of the identity what stands at its default, and call settings what they are called now."""
        if isinstance(content, Mapping) and isinstance(content.get("identity"), Mapping):
            return {**content, "format": cls.version, "identity": comparable(content["identity"])}
        return content


def comparable(identity: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return an identity without the settings that stand at their default, by their present names.

    Raises:
        CheckpointError: A setting that this release does not know.
    """
    settings = {table: values for table, values in identity.items() if table in Settings.model_fields}
    rest = {table: values for table, values in identity.items() if table not in settings}
    known = decisive(read_settings(settings, where="settings of the checkpoint", error=CheckpointError))
    return {**known, **json.loads(json.dumps(rest))}
