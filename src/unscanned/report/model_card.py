"""card.json of a model, from the model, evaluations of what it made, and the words of its author."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unscanned.errors import CheckpointError, DatasetError, listed
from unscanned.evaluation.metrics import METRICS
from unscanned.files import write_json
from unscanned.formats.card import About, CardRecord, DomainScore, Gain
from unscanned.formats.evaluation import EvaluationRecord, read_evaluation
from unscanned.formats.model import read_model_record
from unscanned.machine.provenance import utc_now, version
from unscanned.schema import read

__all__ = ["write_card"]

_REGION = "head"


def write_card(folder: str | Path, about: Mapping[str, Any], evaluations: Mapping[str, str | Path]) -> Path:
    """Write the card of a model into the model's folder.

    Args:
        folder: Of the model, with model.json.
        about: What no file says, as `About` has it: purpose, licence, data, command, failures; as read from TOML.
        evaluations: Folder that `evaluate` made for each domain, by the domain's name; with one arm, the model's.

    Returns:
        The file.

    Raises:
        SettingsError: A key of `about` is missing, unknown or of the wrong kind.
        CheckpointError: The model cannot be read, or a picture of a failure is not in its folder.
        DatasetError: An evaluation cannot be read, has several arms, or is of other contrasts.

    Example:
        >>> write_card("t1w-t2w", about, {"real, 3 T": "evaluation"})  # doctest: +SKIP
        PosixPath('t1w-t2w/card.json')
    """
    folder = Path(folder)
    words = read(About, about, where="about", noun="key")
    try:
        model, identity = read_model_record(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError("the model cannot be read", where=folder / "model.json", found=error) from error
    for failure in words.failures:
        if failure.picture is not None and not (folder / failure.picture).is_file():
            raise CheckpointError("the picture of a failure is missing", where=folder / failure.picture)
    scores = [
        score
        for domain, place in evaluations.items()
        for score in _scores(domain, Path(place), model.source, model.target)
    ]
    card = CardRecord(
        **dict(words),
        model_sha256=identity,
        source=model.source,
        target=model.target,
        unscanned=version(),
        made=utc_now(),
        scores=scores,
    )
    write_json(folder / "card.json", card.to_json())
    return folder / "card.json"


def _scores(domain: str, folder: Path, source: str, target: str) -> list[DomainScore]:
    """Return the scores of an evaluation's one arm beside its baselines."""
    found = read_evaluation(folder)
    if (found.source, found.target) != (source, target):
        raise DatasetError(
            "an evaluation of other contrasts",
            where=folder,
            found=f"{found.source} -> {found.target}",
            expected=f"{source} -> {target}",
        )
    arms = list(found.folders)
    if len(arms) != 1:
        raise DatasetError("an evaluation of several arms", where=folder, found=listed(arms), expected="the model's")
    summaries = found.arms[arms[0]][_REGION]
    return [
        DomainScore(
            domain=domain,
            metric=name,
            unit=METRICS[name].unit if name in METRICS else "",
            mean=summary.mean,
            sd=summary.sd,
            n=summary.n,
            gains=_gains(found, arms[0], name),
        )
        for name, summary in summaries.items()
        if summary.mean is not None
    ]


def _gains(found: EvaluationRecord, arm: str, metric: str) -> list[Gain]:
    return [
        Gain(
            against=row.against,
            difference=row.difference,
            low=row.low,
            high=row.high,
            confidence=row.confidence,
        )
        for row in found.comparisons
        if (row.arm, row.region, row.metric) == (arm, _REGION, metric) and row.difference is not None
    ]
