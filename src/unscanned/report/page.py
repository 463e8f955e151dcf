"""The report: one HTML file with every table and picture in it, which asks nothing of any server."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unscanned.datasets.layout import sidecar_path
from unscanned.datasets.pairs import Pair
from unscanned.errors import SettingsError
from unscanned.evaluation.baselines import Regression
from unscanned.evaluation.cases import BASELINES, Images, load_images
from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.scores import case_constants
from unscanned.files import read_json, write_text
from unscanned.formats.evaluation import Case, Comparison, EvaluationRecord, read_evaluation
from unscanned.formats.sidecar import STAMP
from unscanned.machine.crash import of_one
from unscanned.outputs import claim, holds
from unscanned.progress import Progress
from unscanned.report import figures
from unscanned.report.curves import find_logs, training_curves

__all__ = ["claim_report", "data_uri", "environment", "write_report"]


def write_report(
    evaluation: str | Path,
    out: str | Path,
    *,
    runs: Mapping[str, str | Path] | None = None,
    details: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the report of an evaluation as one self-contained HTML file.

    A case whose files cannot be read any more has the reason in place of its pictures.

    Args:
        evaluation: Folder that `evaluate` wrote.
        out: The HTML file.
        runs: Run folder of each arm, for the training curves and settings.
        details: Further JSON content for the section on settings and provenance, by its heading.
        progress: Called with (done, total, case).

    Returns:
        `out`.

    Raises:
        DatasetError: The folder holds no evaluation that can be read; see `read_evaluation`.
        SettingsError: Something else than a report is at `out`, or a run has no log.
        ResourceError: The disk is full.
    """
    claim_report(out)
    content = read_evaluation(Path(evaluation))
    runs = dict(runs or {})
    for arm, folder in runs.items():
        if not find_logs({arm: folder}):
            raise SettingsError(
                "no training has begun in this folder",
                where=f"run {arm}: {folder}",
                expected="log.jsonl, or stage-1/log.jsonl",
                do="Name the folder that unscanned train wrote into.",
            )
    curves = training_curves(runs)
    cases, sheet = [], None
    total = len(content.cases)
    # Narrower slices keep the page of a large cohort small enough to open.
    width = 144 if total <= 5 else 112 if total <= 12 else 80
    for index, entry in enumerate(content.cases):
        if progress:
            progress(index, total, entry.case)
        case, images = _case(entry, content, width)
        cases.append(case)
        if sheet is None and images is not None and images.source is not None:
            png = figures.patch_sheet(images.source, images.head, spacing_mm=images.spacing_mm)
            sheet = {"case": entry.case, "image": data_uri(png)}
    if progress:
        progress(total, total, "report")
    template = environment().get_template("report.html")
    page = template.render(
        evaluation=content,
        baselines=BASELINES,
        metrics=_columns(content),
        differences=_differences(content),
        subjects=[row for row in content.scores if row.region == "head"],
        cases=cases,
        sheet=sheet,
        curves=data_uri(curves) if curves else None,
        stamp=STAMP,
        details=_details(content, runs, details or {}),
    )
    write_text(out, page)
    return Path(out)


def claim_report(out: str | Path) -> None:
    """Refuse a file that a report would replace and that is none.

    Raises:
        SettingsError: It is none.
    """
    claim(out, holds("Unscanned · report"), "an earlier report, or nothing")


def environment() -> Any:
    """Return what makes pages of the templates."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unscanned.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment


def _number(value: float | None, digits: int, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _columns(content: EvaluationRecord) -> dict[str, tuple[str, str, int, str]]:
    """Heading, unit, digits and plain words of each metric; of one that is not known here, its name."""
    columns = {}
    for name in content.definitions:
        metric = METRICS.get(name)
        columns[name] = (metric.heading, metric.unit, metric.digits, metric.words) if metric else (name, "", 3, "")
    return columns


def _case(entry: Case, content: EvaluationRecord, width: int) -> tuple[dict[str, Any], Images | None]:
    """The pictures of one case as the template wants them, and the images they were made from."""
    failures = {row.arm: row.reason for row in content.failures if row.case == entry.case}
    case: dict[str, Any] = {"name": entry.case, "failures": failures, "figure": None, "strips": [], "reason": None}
    try:
        images = load_images(
            Pair(entry.subject, entry.session, Path(entry.source), Path(entry.target) if entry.target else None),
            {arm: Path(path) if path else None for arm, path in entry.synthetic.items()},
            regression=Regression.from_curve(content.regression) if content.regression else None,
            percentile=content.percentile,
            resample=content.resample,
        )
        made = {arm: image for arm, image in images.arms.items() if arm not in BASELINES}
        figure = figures.case_figure(
            images.target,
            images.source,
            made,
            images.head,
            spacing_mm=images.spacing_mm,
            contrasts=(content.source, content.target),
            std=case_constants(images, content.constants)[1],
        )
        case["figure"] = data_uri(figure)
        white = figures.display_white(images.target, images.head)
        volumes = [] if images.source is None else [(f"{content.source} (source)", images.source, False)]
        volumes += [(arm, image, True) for arm, image in made.items()]
        for name, volume, synthetic in [*volumes, (f"{content.target} (acquired)", images.target, False)]:
            strip = figures.strip(
                volume, images.head, spacing_mm=images.spacing_mm, white=white, width=width, synthetic=synthetic
            )
            image = data_uri(strip.image, "webp")
            case["strips"].append({"name": name, "strip": strip, "image": image, "synthetic": synthetic})
    except Exception as error:
        case["reason"] = str(of_one(error, where=entry.case))
        return case, None
    return case, images


def _differences(content: EvaluationRecord) -> dict[tuple[str, str], dict[str, Comparison]]:
    """Paired differences inside the head: for each arm and what it is compared with, one for each metric."""
    rows: dict[tuple[str, str], dict[str, Comparison]] = {}
    for row in content.comparisons:
        if row.region == "head":
            rows.setdefault((row.arm, row.against), {})[row.metric] = row
    return rows


def _details(
    content: EvaluationRecord, runs: Mapping[str, str | Path], further: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Headings and texts of the section on settings and provenance."""
    shown = {"created", "dataset", "folders", "percentile", "resample", "constants", "training_subjects"}
    texts = [("Evaluation", _pretty(content.model_dump(include=shown)))]
    for arm, folder in runs.items():
        path = Path(folder) / "settings.toml"
        if path.is_file():
            texts.append((f"Settings of {arm}", path.read_text(encoding="utf-8", errors="replace")))
    for arm in content.folders:
        for entry in content.cases:
            sidecar = _sidecar(entry.synthetic.get(arm))
            if sidecar is not None:
                texts.append((f"Sidecar of {arm}, {entry.case}", _pretty(sidecar)))
                break
    return texts + [(heading, _pretty(value)) for heading, value in further.items()]


def _sidecar(path: str | None) -> Any:
    if path is None:
        return None
    try:
        return read_json(sidecar_path(Path(path)))
    except (OSError, ValueError):
        return None


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def data_uri(image: bytes, kind: str = "png") -> str:
    """Return an image as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
