"""card.json: what a person should know of a model before using it, beside the model's own files."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from unscanned.formats.record import Record
from unscanned.schema import Schema

__all__ = ["About", "CardRecord", "DataSource", "DomainScore", "Gain", "KnownFailure"]


class DataSource(Schema):
    """Scans or label maps that a model was trained on."""

    name: str
    licence: str
    url: str | None = None
    scans: int | None = None
    "How many; None where they were drawn without end."
    note: str = ""

    def __str__(self) -> str:
        scans = "" if self.scans is None else f"{self.scans:,} scans"
        return f"{self.name}: {', '.join(filter(None, (self.licence, scans, self.note, self.url)))}"


class KnownFailure(Schema):
    """What a model gets wrong."""

    what: str
    picture: str | None = None
    "Path of an image in the model's folder."


class About(Schema):
    """What no file of a training says, and its author has to: the part of a card that is written."""

    purpose: str
    "What the model is for, in a sentence."
    not_for: list[str] = Field([])
    "What it must not be used for."
    licence: str
    "Of the weights, as SPDX names it."
    data: list[DataSource] = Field(min_length=1)
    command: str
    "That trains it again."
    failures: list[KnownFailure] = Field([])


class Gain(Schema):
    """The mean paired difference of the model minus a baseline, with its interval."""

    against: str
    difference: float
    low: float | None
    "Lower end of the interval; None below two subjects."
    high: float | None
    confidence: float
    "Level of the interval."


class DomainScore(Schema):
    """How good a model was on scans of one kind, inside the head."""

    domain: str
    "What the scans are, such as: real, 3 T, patients left out."
    metric: str
    unit: str
    mean: float
    "Over the subjects."
    sd: float | None
    "Over the subjects; None below two."
    n: int
    "Subjects."
    gains: list[Gain] = Field([])


class CardRecord(About, Record):
    """Written by `write_card` alone, from the model, its author's words and evaluations."""

    kind: ClassVar[str] = "card"
    version: ClassVar[int] = 1
    readable: ClassVar[tuple[int, ...]] = (1,)
    is_plain: ClassVar[bool] = True

    format: int = 1
    model_sha256: str
    "Of the model that the card is about."
    source: str
    target: str
    unscanned: str
    "Release that wrote the card."
    made: str
    "UTC time."
    scores: list[DomainScore] = Field([])
    pictures: dict[str, str] = Field({})
    "Path of an image in the model's folder, by the domain's name."
