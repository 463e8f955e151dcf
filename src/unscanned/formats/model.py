"""model.json: what a trained model is, beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from unscanned.contrast.check import ContrastProfile
from unscanned.contrast.familiarity import FamiliarityProfile
from unscanned.errors import CheckpointError
from unscanned.files import digest, read_json, unsealed
from unscanned.formats.record import Record
from unscanned.volumes.intensity import Normalization

__all__ = ["ModelRecord", "read_model_record"]

_TABLES = ("data", "prepare", "generator", "discriminator", "loss", "training", "context", "synthesis")


class ModelRecord(Record):
    """Format 2 is sealed and hashes all that decides what the model makes. Format 1 did neither; it is refused."""

    kind: ClassVar[str] = "model"
    version: ClassVar[int] = 2
    readable: ClassVar[tuple[int, ...]] = (2,)

    format: int = 2
    source: str
    "Contrast that it takes."
    target: str
    "Contrast that it makes."
    stages: int = Field(gt=0)
    "Generators in the chain; the tensors of generator n are named n.<name>, from 0."
    weights_sha256: str
    "Of model.safetensors."
    normalization: Normalization
    "Intensity constants of the training set."
    fingerprint: ContrastProfile | None = None
    "What the source contrast looked like in training; older models do not know."
    familiarity: FamiliarityProfile | None = None
    "What the training scans were like beyond that; older models do not know."
    settings: dict[str, Any]
    "Settings of the training, read through `read_settings`; format 2 has had all tables from its first release."
    provenance: dict[str, Any] = Field({})
    "Training cases, epochs, scores, software: what does not decide what the model makes."

    @field_validator("settings")
    @classmethod
    def _are_whole(cls, settings: dict[str, Any]) -> dict[str, Any]:
        missing = [table for table in _TABLES if table not in settings]
        if missing:
            raise ValueError(f"tables of the settings are missing: {', '.join(missing)}")
        return settings


def read_model_record(folder: Path) -> tuple[ModelRecord, str]:
    """Return what model.json says, and the hash of all in it that decides what the model makes.

    Raises:
        OSError: It cannot be read.
        ValueError: It was changed since it was written.
        CheckpointError: It is of another format, or a key or value in it is unknown.
    """
    content = read_json(folder / "model.json")
    if isinstance(content, dict) and content.get("format", 1) in ModelRecord.readable:
        content = unsealed(content)
    record = ModelRecord.load(content, where=folder, error=CheckpointError)
    return record, digest({name: value for name, value in content.items() if name != "provenance"})
