"""The report: one HTML file with every table and picture in it, which asks nothing of any server."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unscanned.datasets.layout import sidecar_path
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import SettingsError, listed
from unscanned.evaluation.cases import BASELINES, CEILINGS, Images, evaluated_images
from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.scores import case_constants
from unscanned.evaluation.tables import tissues
from unscanned.files import read_json, write_text
from unscanned.formats.evaluation import Case, Comparison, EvaluationRecord, read_evaluation
from unscanned.formats.sidecar import STAMP
from unscanned.machine.crash import of_one
from unscanned.outputs import claim, holds
from unscanned.progress import Progress
from unscanned.report import LIMIT_MB, figures
from unscanned.report.curves import find_logs, training_curves
from unscanned.report.verdict import below_baselines, explain_psnr, verdicts
from unscanned.report.viewer import Viewer, case_viewer, licences, niivue, viewer_facts

__all__ = ["claim_report", "data_uri", "environment", "write_report"]


@draws_progress
def write_report(
    evaluation: str | Path,
    out: str | Path,
    *,
    runs: Mapping[str, str | Path] | None = None,
    further: Mapping[str, Sequence[str | Path]] | None = None,
    details: Mapping[str, Any] | None = None,
    cases: Sequence[str] = (),
    limit_mb: float = LIMIT_MB,
    progress: Progress | None = AUTOMATIC,
) -> Path:
    """Write the report of an evaluation as one self-contained HTML file.

    A case whose files cannot be read any more has the reason in place of its pictures. The volumes of one case are in
    the file, for its viewer.

    Args:
        evaluation: Folder that `evaluate` wrote.
        out: The HTML file.
        runs: Run folder of each arm, for the training curves and settings.
        further: More runs of these arms, of other seeds or folds, for the curves alone.
        details: Further JSON content for the section on settings and provenance, by its heading.
        cases: Cases or subjects whose volumes are put into the file; the first that can be read when there is none.
        limit_mb: Room for the volumes of each of these cases, MB. The precision follows from it; what has no room even
            at the coarsest is left out, and the page says so.
        progress: Called with (done, total, case). Without it a bar, in a terminal and in Jupyter; None draws none.

    Returns:
        `out`.

    Raises:
        DatasetError: The folder holds no evaluation that can be read; see `read_evaluation`.
        SettingsError: Something else than a report is at `out`, a run has no log, or a case is not in the evaluation.
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
    wanted = _wanted(content, cases)
    curves = training_curves(runs, further)
    shown: list[dict[str, Any]] = []
    viewers: list[Viewer] = []
    sheet = None
    total = len(content.cases)
    # Narrower slices keep the page of a large cohort small enough to open.
    width = 144 if total <= 5 else 112 if total <= 12 else 80
    for index, entry in enumerate(content.cases):
        if progress:
            progress(index, total, entry.case)
        in_viewer = entry.case in wanted if cases else not viewers
        case, viewer, patches = _case(entry, content, width, len(viewers) if in_viewer else None, limit_mb)
        shown.append(case)
        if viewer is not None:
            viewers.append(viewer)
        sheet = sheet or patches
    if progress:
        progress(total, total, "report")
    template = environment().get_template("report.html")
    page = template.render(
        evaluation=content,
        baselines=BASELINES,
        limits=tuple(CEILINGS),
        verdicts=verdicts(content),
        below=below_baselines(content),
        psnrs=explain_psnr(content),
        metrics=_columns(content),
        differences=_differences(content),
        **_by_tissue(content),
        subjects=[row for row in content.scores if row.region == "head"],
        cases=shown,
        viewers=viewers,
        facts=viewer_facts(viewers),
        niivue=niivue() if viewers else "",
        licences=licences() if viewers else "",
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


def _wanted(content: EvaluationRecord, names: Sequence[str]) -> set[str]:
    """The cases that these names of cases and subjects stand for."""
    found = {name: {entry.case for entry in content.cases if _stands_for(name, entry)} for name in names}
    for name, cases in found.items():
        if not cases:
            raise SettingsError(
                "no such case in the evaluation",
                where=f"case {name}",
                expected=listed([entry.case for entry in content.cases]) or "a case; it has none",
            )
    return set().union(*found.values())


def _stands_for(name: str, entry: Case) -> bool:
    return name in (entry.case, entry.subject, f"sub-{entry.subject}")


def _case(
    entry: Case, content: EvaluationRecord, width: int, number: int | None, limit_mb: float
) -> tuple[dict[str, Any], Viewer | None, dict[str, str] | None]:
    """The pictures of one case as the template wants them, its viewer, and its sheet of patches.

    Args:
        number: Of the case in the viewer; None where it is not to be there.
    """
    failures = {row.arm: row.reason for row in content.failures if row.case == entry.case}
    case: dict[str, Any] = {"name": entry.case, "failures": failures, "figure": None, "strips": [], "reason": None}
    case |= {"in_viewer": False, "left_out": ""}
    try:
        pictured = {arm: entry.synthetic.get(arm) for arm in content.pictured}
        images = evaluated_images(entry.model_copy(update={"synthetic": pictured}), content)
        made = {arm: image for arm, image in images.arms.items() if arm not in BASELINES}
        contrasts = content.source, content.target
        std = case_constants(images, content.constants)[1]
        figure = figures.case_figure(
            images.target, images.source, made, images.head, spacing_mm=images.spacing_mm, contrasts=contrasts, std=std
        )
        viewer = None
        if number is not None:
            viewer = case_viewer(entry.case, images, contrasts=contrasts, std=std, number=number, limit_mb=limit_mb)
            case["in_viewer"], case["left_out"] = bool(viewer.data), viewer.left_out
        strips = [] if case["in_viewer"] else _strips(images, made, contrasts, width)
        patches = (
            figures.patch_sheet(images.source, images.head, spacing_mm=images.spacing_mm)
            if images.source is not None
            else None
        )
    except Exception as error:
        return case | {"reason": str(of_one(error, where=entry.case)), "in_viewer": False}, None, None
    case |= {"figure": data_uri(figure), "strips": strips}
    sheet = {"case": entry.case, "image": data_uri(patches)} if patches else None
    return case, viewer if case["in_viewer"] else None, sheet


def _strips(
    images: Images, made: Mapping[str, np.ndarray], contrasts: tuple[str, str], width: int
) -> list[dict[str, Any]]:
    """All axial slices of a case's volumes, to browse where it is not in the viewer."""
    white = figures.display_white(images.target, images.head)
    volumes = [] if images.source is None else [(f"{contrasts[0]} (source)", images.source, False)]
    volumes += [(arm, image, True) for arm, image in made.items()]
    strips = []
    for name, volume, synthetic in [*volumes, (f"{contrasts[1]} (acquired)", images.target, False)]:
        strip = figures.strip(
            volume, images.head, spacing_mm=images.spacing_mm, white=white, width=width, synthetic=synthetic
        )
        image = data_uri(strip.image, "webp")
        strips.append({"name": name, "strip": strip, "image": image, "synthetic": synthetic})
    return strips


def _differences(content: EvaluationRecord) -> dict[tuple[str, str], dict[str, Comparison]]:
    """Paired differences inside the head: for each arm and what it is compared with, one for each metric."""
    rows: dict[tuple[str, str], dict[str, Comparison]] = {}
    for row in content.comparisons:
        if row.region == "head":
            rows.setdefault((row.arm, row.against), {})[row.metric] = row
    return rows


def _by_tissue(content: EvaluationRecord) -> dict[str, Any]:
    """What the tables by tissue show: the tissues, and the differences from a baseline by arm, region and metric."""
    columns = [arm for arm in content.arms if arm not in content.members]
    rival = next((name for name in reversed(BASELINES) if name in content.arms), None)
    compared = [row for row in content.comparisons if row.against == rival and row.arm in content.compared]
    return {
        "tissues": [
            (region, name, max(next(iter(content.arms[arm][region].values())).n for arm in columns))
            for region, name in tissues(content).items()
        ],
        "columns": columns,
        "rival": rival,
        "gains": {(row.arm, row.region, row.metric): row for row in compared},
    }


def _details(
    content: EvaluationRecord, runs: Mapping[str, str | Path], further: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Headings and texts of the section on settings and provenance."""
    shown = {"created", "dataset", "folders", "percentile", "resample", "constants", "training_subjects"}
    shown |= {name for name in ("seeds", "folds") if getattr(content, name)}
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
