"""The card of a model, from the model, evaluations of what it made, and the words of its author.

card.json is for programs, README.md the same as a page, with a picture of each domain.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unscanned.errors import CheckpointError, DatasetError, listed
from unscanned.evaluation.cases import evaluated_images
from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.scores import case_constants
from unscanned.files import write_bytes, write_json, write_text
from unscanned.formats.card import About, CardRecord, DomainScore, Gain
from unscanned.formats.evaluation import EvaluationRecord, read_evaluation
from unscanned.formats.model import read_model_record
from unscanned.machine.provenance import utc_now, version
from unscanned.report.figures import case_figure
from unscanned.schema import read

__all__ = ["write_card"]

_REGION = "head"


def write_card(folder: str | Path, about: Mapping[str, Any], evaluations: Mapping[str, str | Path]) -> Path:
    """Write the card of a model into the model's folder: card.json, README.md, and a picture of each domain.

    The picture is of the scan whose PSNR is the median of its domain, beside the regression where there is one.

    Args:
        folder: Of the model, with model.json.
        about: What no file says, as `About` has it: purpose, licence, data, command, failures; as read from TOML.
        evaluations: Folder that `evaluate` made for each domain, by the domain's name; with one arm, the model's.

    Returns:
        card.json.

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
    found = {domain: _evaluation(Path(place), model.source, model.target) for domain, place in evaluations.items()}
    scores = [score for domain, record in found.items() for score in _scores(domain, record)]
    pictures = {domain: f"pictures/{number}.jpg" for number, domain in enumerate(found, 1)}
    for domain, record in found.items():
        write_bytes(folder / pictures[domain], _picture(record))
    card = CardRecord(
        **dict(words),
        model_sha256=identity,
        source=model.source,
        target=model.target,
        unscanned=version(),
        made=utc_now(),
        scores=scores,
        pictures=pictures,
    )
    write_json(folder / "card.json", card.to_json())
    write_text(folder / "README.md", _page(card, folder.name))
    return folder / "card.json"


def _evaluation(folder: Path, source: str, target: str) -> EvaluationRecord:
    """Return an evaluation of the one arm that a card is about."""
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
    return found


def _scores(domain: str, found: EvaluationRecord) -> list[DomainScore]:
    """Return the scores of an evaluation's one arm beside its baselines."""
    [arm] = found.folders
    summaries = found.arms[arm][_REGION]
    return [
        DomainScore(
            domain=domain,
            metric=name,
            unit=METRICS[name].unit if name in METRICS else "",
            mean=summary.mean,
            sd=summary.sd,
            n=summary.n,
            gains=_gains(found, arm, name),
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


def _picture(found: EvaluationRecord) -> bytes:
    """Return slices of the case with the median PSNR, as a JPEG: target, source, regression and model."""
    from PIL import Image

    [arm] = found.folders
    scored = [row for row in found.scores if (row.arm, row.region) == (arm, _REGION)]
    scored.sort(key=lambda row: (row.values["psnr"] or math.inf, row.case))
    median = scored[(len(scored) - 1) // 2].case
    images = evaluated_images(next(case for case in found.cases if case.case == median), found)
    shown = {name: images.arms[name] for name in ("regression", arm) if name in images.arms}
    drawn = case_figure(
        images.target,
        images.source,
        shown,
        images.head,
        spacing_mm=images.spacing_mm,
        contrasts=(found.source, found.target),
        std=case_constants(images, found.constants)[1],
    )
    content = io.BytesIO()
    Image.open(io.BytesIO(drawn)).convert("RGB").save(content, "JPEG", quality=88)
    return content.getvalue()


def _page(card: CardRecord, name: str) -> str:
    """Return the card as a page in Markdown."""
    lines = [f"# {name}", card.purpose, *_listed("Not for", card.not_for)]
    lines += [
        f"**Licence** of the weights: {card.licence}. **SHA-256** of the model: `{card.model_sha256}`. "
        f"Made by unscanned {card.unscanned}, {card.made}.",
        "## Trained on",
    ]
    lines += [f"- {data}" for data in card.data]
    lines += [f"```bash\n{card.command}\n```", "## Scores", _SCORED]
    for domain in dict.fromkeys(score.domain for score in card.scores):
        lines += [f"### {domain[0].upper()}{domain[1:]}", _table([row for row in card.scores if row.domain == domain])]
        if domain in card.pictures:
            lines.append(f"![{domain}]({card.pictures[domain]})")
    if card.failures:
        lines.append("## Known failures")
    for failure in card.failures:
        lines.append(failure.what)
        if failure.picture:
            lines.append(f"![{failure.what}]({failure.picture})")
    return "\n\n".join(lines) + "\n"


_SCORED = (
    "Inside the head, mean (SD) over subjects; differences are paired by subject, with 95 % intervals. `source` is the "
    "source scan with the target's mean and SD, `regression` a voxelwise regression fitted on other "
    "subjects. Each picture is of the scan with the median PSNR."
)


def _table(scores: list[DomainScore]) -> str:
    """Return the scores of a domain, a row for each metric."""
    against = list(dict.fromkeys(gain.against for score in scores for gain in score.gains))
    rows = [["metric", "n", "model", *(f"minus {name}" for name in against)], ["---"] * (3 + len(against))]
    for score in scores:
        metric = METRICS.get(score.metric)
        digits = metric.digits if metric else 3
        title = metric.heading if metric else score.metric
        sd = "" if score.sd is None else f" ({score.sd:.{digits}f})"
        gains = {gain.against: gain for gain in score.gains}
        cells = [_gain(gains.get(name), digits) for name in against]
        rows.append([f"{title}, {score.unit}".removesuffix(", "), str(score.n), f"{score.mean:.{digits}f}{sd}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _gain(gain: Gain | None, digits: int) -> str:
    if gain is None:
        return ""
    interval = "" if gain.low is None else f" [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"
    return f"{gain.difference:+.{digits}f}{interval}"


def _listed(heading: str, texts: list[str]) -> list[str]:
    return [f"{heading}:", "\n".join(f"- {text}" for text in texts)] if texts else []
