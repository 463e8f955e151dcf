"""evaluation.json: what was compared, the scores of every case, and what they say of the arms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainSerializer

from unscanned.errors import DatasetError
from unscanned.files import read_json
from unscanned.formats.record import Record
from unscanned.schema import Schema

__all__ = [
    "LIMIT_BYTES",
    "Case",
    "Comparison",
    "Constants",
    "Curve",
    "Difference",
    "EvaluationRecord",
    "Failure",
    "Number",
    "Score",
    "SliceErrors",
    "Spread",
    "Summary",
    "compared_arms",
    "read_evaluation",
]

LIMIT_BYTES = 8 * 2**30
"Of evaluation.json, which holds every slice of every case: some 35 kB for each arm of an IXI scan."

_Finite = PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json")

Number = Annotated[float, Field(allow_inf_nan=True), _Finite] | None
"A score, infinite where two volumes are equal; JSON has no infinity, so the file has null there."


class Constants(Schema):
    """What makes z-scores of the unit scale."""

    mean: float | None
    "Of the target contrast in unit scale; None where each target's own is taken, inside its head."
    std: float | None
    origin: str
    "In words."


class Curve(Schema):
    """The voxelwise regression: mean intensities of its bins in unit scale, ascending in the source."""

    source: list[float]
    target: list[float]


class Case(Schema):
    """The files of a case, so that a report finds them again."""

    case: str
    subject: str
    session: str | None
    source: str
    target: str | None
    synthetic: dict[str, str | None]
    "By arm; None where there is none."
    regression: Curve | None = None
    "The voxelwise regression, where it was fitted on the other subjects and so is this one's own."


class Score(Schema):
    """One value for each metric of one arm's image of one case in one region."""

    case: str
    subject: str
    session: str | None
    arm: str
    region: str
    values: dict[str, Number]


class SliceErrors(Schema):
    """Mean squared error of z-scores in every slice of a plane; the index counts along the plane's axis in RAS+."""

    case: str
    arm: str
    plane: str
    "Sagittal, coronal or axial."
    mse_head: list[float | None]
    "Inside the head; None where a slice holds none of it."
    mse_volume: list[float]
    "Of all voxels of the slice."


class Failure(Schema):
    """An arm's image of a case that has no scores, and why. The arm is `target` when the whole case has none."""

    case: str
    arm: str
    reason: str


class Summary(Schema):
    """Mean and standard deviation over subjects, and how many of them there are."""

    mean: Number
    "Over the subjects that have a value; None when there is none."
    sd: float | None
    "Sample standard deviation (n - 1); None below two subjects."
    n: int
    "Subjects with a value."
    of: int
    "Subjects that should have one."


class Difference(Schema):
    """Paired difference of two arms over the cases that both have, by subject."""

    difference: float | None
    "Mean over subjects of second - first; None when they share no subject."
    sd: float | None
    "Sample standard deviation of the differences; None below two subjects."
    n: int
    "Subjects that both have."
    low: float | None
    "Lower end of the t-interval of the mean difference; None below two subjects."
    high: float | None
    confidence: float
    "Level of the interval."
    wilcoxon_p: float | None
    "Two-sided p of the Wilcoxon signed-rank test; None below six subjects."
    note: str = ""
    "What cannot be said, and why; empty when all can."


class Comparison(Difference):
    """The difference `arm` minus `against` in one metric and region."""

    arm: str
    against: str
    region: str
    metric: str


class Spread(Schema):
    """How far trainings of one arm with different seeds lie apart: of each, the mean over subjects."""

    sd: float | None
    "Sample standard deviation over seeds; None below two, or where a mean is infinite."
    low: Number
    "Of the lowest; None when no seed has a value."
    high: Number
    n: int
    "Seeds with a value."


class EvaluationRecord(Record):
    """Scores of all arms on the same cases."""

    kind: ClassVar[str] = "evaluation"
    version: ClassVar[int] = 1
    readable: ClassVar[tuple[int, ...]] = (1,)
    is_plain: ClassVar[bool] = True

    unscanned: str | None = None
    "Release that wrote it; the first ones did not say."
    created: str
    "UTC time."
    source: str
    "Contrast that was synthesized from."
    target: str
    "Contrast that was synthesized."
    dataset: str
    folders: dict[str, str]
    "Of synthetic volumes, by arm."
    percentile: float
    "Inside the head, that is 1 in unit scale."
    resample: bool
    "Whether images on another grid than the target's were resampled to it."
    training_subjects: list[str]
    definitions: dict[str, str]
    "Of the metrics, by name."
    regions: dict[str, str]
    "What each region holds."
    constants: Constants
    arms: dict[str, dict[str, dict[str, Summary]]]
    "Summary of each metric by arm and region."
    comparisons: list[Comparison]
    cases: list[Case]
    scores: list[Score]
    slices: list[SliceErrors]
    failures: list[Failure]
    warnings: list[str]
    regression: Curve | None
    "That of all cases; None where there was no subject to fit it on, and where each case has its own."
    seeds: dict[str, list[str]] = Field({})
    "Of arms that were trained with several seeds: the arm of each seed. Left out of the file where there are none."
    spread: dict[str, dict[str, dict[str, Spread]]] = Field({})
    "Over these seeds, of each metric by arm and region. Left out of the file where there are no seeds."
    folds: list[dict[str, list[str]]] = Field([])
    "Of a cross-validation: who trained, validated and tested in each fold. Left out of the file where there is none."

    @property
    def compared(self) -> list[str]:
        """The arms that are compared: each that has volumes, and in the place of the arms of its seeds, the arm."""
        return compared_arms(self.folders, self.seeds)

    @property
    def members(self) -> list[str]:
        """The arms of the seeds."""
        return [member for members in self.seeds.values() for member in members]

    @property
    def pictured(self) -> list[str]:
        """The arms to show pictures of: of several seeds the first."""
        later = {member for members in self.seeds.values() for member in members[1:]}
        return [arm for arm in self.folders if arm not in later]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON values that are written."""
        absent = [name for name in ("seeds", "spread", "folds") if not getattr(self, name)]
        return {name: value for name, value in super().to_json().items() if name not in absent}


def compared_arms(arms: Iterable[str], seeds: Mapping[str, Sequence[str]]) -> list[str]:
    """Return arms in order, an arm in the place of the arms of its seeds."""
    of = {member: arm for arm, members in seeds.items() for member in members}
    return list(dict.fromkeys(of.get(arm, arm) for arm in arms))


def read_evaluation(folder: Path) -> EvaluationRecord:
    """Return what evaluation.json in a folder says.

    Raises:
        DatasetError: There is none, or it cannot be used; see `Record.load`.
    """
    path = folder / "evaluation.json"
    try:
        content = read_json(path, limit_bytes=LIMIT_BYTES)
    except (OSError, ValueError) as error:
        raise DatasetError(
            "the evaluation cannot be read", where=path, found=error, do="Run unscanned evaluate."
        ) from error
    return EvaluationRecord.load(content, where=path, error=DatasetError)
