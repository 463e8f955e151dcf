"""The JSON file beside a synthetic volume: what the volume is, and all that is needed to make it again."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator
from pydantic.alias_generators import to_pascal

from unscanned.formats.record import Record
from unscanned.schema import Schema
from unscanned.settings import Precision
from unscanned.volumes.nifti import STAMP

__all__ = [
    "STAMP",
    "InputContrast",
    "InputFamiliarity",
    "Intensity",
    "ModelFacts",
    "Sidecar",
    "SourceScan",
    "SynthesisFacts",
    "Tool",
]

_PASCAL = ConfigDict(extra="ignore", alias_generator=to_pascal, populate_by_name=True)


class _Table(Schema):
    model_config = _PASCAL


class Tool(_Table):
    """Software that made the volume, as BIDS names it."""

    name: str
    version: str


class SourceScan(_Table):
    """The scan that the volume was made from."""

    name: str = ""
    "Of the file."
    path: str | None
    "From the sidecar's folder; only where to look."
    contrast: str = ""
    sha256: str


class ModelFacts(_Table):
    """The model that made the volume."""

    path: str | None
    "From the sidecar's folder; only where to look."
    name: str = ""
    "That it was loaded by; empty where that was a folder."
    sha256: str
    "Of all that decides what the model makes."
    weights_sha256: str = ""
    preset: str = ""
    generator: dict[str, Any] = Field({})
    "The table `generator` of its settings."
    stages: int = 1
    settings: str = ""
    "Digest of its settings."


class InputContrast(_Table):
    """How far the scan is from what the model saw in training."""

    score: float | None = None
    threshold: float | None = None
    reason: str = ""


class InputFamiliarity(_Table):
    """How far the scan is from the training scans beyond its contrast."""

    verdict: Literal["familiar", "warned", "forced"] | None = None
    "None where the model does not know what its training scans were like; forced: it would have been refused."
    score: float | None = None
    "Distance from the training scans; 1 is ordinary."
    warns_above: float | None = None
    refuses_above: float | None = None
    reason: str = ""


class Intensity(Schema):
    """How voxels become z-scores: z = (voxel / scale - mean) / std."""

    model_config = ConfigDict(extra="ignore")

    scale: float = Field(gt=0)
    "Voxel that is 1 in unit scale."
    mean: float
    "Of the training targets in unit scale."
    std: float = Field(gt=0)
    minimum: float | None = None
    "Smallest voxel of the training targets in unit scale; None where the model does not say."
    percentile: float | None = Field(None, gt=0, le=100)
    "Inside the head, of the training targets, that became 1; None where the sidecar does not say."
    source_scale: float | None = None
    "Voxel of the source that is 1 in unit scale."


class SynthesisFacts(Schema):
    """The settings of synthesis that decide the result."""

    model_config = ConfigDict(extra="ignore")

    mode: Literal["patches", "volume"]
    crop: Literal["auto", "always", "never"] = "never"
    "Older volumes were not cropped."
    stride: int | None = None
    "In mode patches."
    clip: Literal["none", "minimum"] = "none"
    "Older volumes were not clipped."
    blend: Literal["equal", "gaussian"] = "equal"
    "Older volumes were blended with equal weights."
    mirror: bool = False
    "Older volumes are not the mean with the mirror image's."
    detail: Literal["none", "source"] = "none"
    "Older volumes were interpolated linearly."
    precision: Precision


class Sidecar(Record):
    """What a sidecar says; what others add to it is left alone."""

    model_config = _PASCAL

    kind: ClassVar[str] = "sidecar"
    version: ClassVar[int] = 1
    readable: ClassVar[tuple[int, ...]] = (1,)
    is_plain: ClassVar[bool] = True

    format: int = Field(1, alias="SidecarFormat")
    synthetic: bool = True
    intended_use: str = "research"
    warning: str = STAMP
    contrast: str
    "That the volume shows."
    generated_by: list[Tool] = Field([])
    skull_stripped: bool = False
    source_scans: list[SourceScan] = Field(min_length=1)
    model: ModelFacts
    intensity: dict[str, Any] | None = None
    "As `Intensity` has it, which reads it where it is needed."
    environment: dict[str, Any] = Field({})
    "Software, device and threads."
    input_contrast_verified: bool | None = None
    "None where the model does not know its source contrast."
    input_contrast: InputContrast = InputContrast()
    input_familiarity: InputFamiliarity = InputFamiliarity()
    synthesis: SynthesisFacts
    warnings: list[str] = Field([])
    made: str = ""
    "UTC time."
    key: str = ""
    "Digest of scan, model and settings of synthesis."
    sha256: str
    "Of the volume's file."

    @field_validator("environment")
    @classmethod
    def _counts_threads(cls, environment: dict[str, Any]) -> dict[str, Any]:
        threads = environment.get("threads", 1)
        if type(threads) is not int or threads < 1:
            raise ValueError("the number of threads must be a positive integer")
        return environment
