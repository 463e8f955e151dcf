"""The report: one HTML file with every table and picture in it, which asks nothing of any server."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unscanned.datasets.layout import sidecar_path
from unscanned.datasets.pairs import Pair
from unscanned.errors import DatasetError, UnscannedError
from unscanned.evaluation.baselines import Regression
from unscanned.evaluation.cases import BASELINES, Images, load_images
from unscanned.evaluation.scores import case_constants
from unscanned.files import read_json, write_text
from unscanned.progress import Progress
from unscanned.report import figures
from unscanned.report.curves import training_curves

__all__ = ["write_report"]


_METRICS = {
    "mae": ("MAE", "z-scores", 3),
    "mse": ("MSE", "z-scores²", 3),
    "psnr_nie": ("PSNR, Nie", "dB", 2),
    "psnr": ("PSNR", "dB", 2),
    "ssim": ("SSIM", "", 3),
}

_PLAIN_WORDS = {
    "mae": "On average, how far a voxel is from the acquired one. 0 is perfect.",
    "mse": "The same with large errors counted more. 0 is perfect.",
    "psnr_nie": "Signal-to-noise ratio as the method's authors compute it, to compare with their numbers.",
    "psnr": "Signal-to-noise ratio against a fixed peak. Higher is better; 3 dB is half the squared error.",
    "ssim": "How alike local structure is. 1 is perfect.",
}


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
        DatasetError: The folder holds no evaluation.
        ResourceError: The disk is full.
    """
    content = _read_evaluation(Path(evaluation))
    runs = dict(runs or {})
    cases, sheet = [], None
    total = len(content["cases"])
    # Narrower slices keep the page of a large cohort small enough to open.
    width = 144 if total <= 5 else 112 if total <= 12 else 80
    for index, entry in enumerate(content["cases"]):
        if progress:
            progress(index, total, entry["case"])
        case, images = _case(entry, content, width)
        cases.append(case)
        if sheet is None and images is not None and images.source is not None:
            png = figures.patch_sheet(images.source, images.head, spacing_mm=images.spacing_mm)
            sheet = {"case": entry["case"], "image": _data_uri(png)}
    if progress:
        progress(total, total, "report")
    curves = training_curves(runs)
    page = (
        _environment()
        .get_template("report.html")
        .render(
            evaluation=content,
            arms=list(content["arms"]),
            baselines=BASELINES,
            first=next(iter(content["folders"])),
            metrics=_METRICS,
            plain_words=_PLAIN_WORDS,
            tables=_tables(content),
            differences=_differences(content),
            subjects=_subject_rows(content),
            cases=cases,
            sheet=sheet,
            curves=_data_uri(curves) if curves else None,
            stamp=figures.STAMP,
            details=_details(content, runs, details or {}),
        )
    )
    write_text(out, page)
    return Path(out)


def _read_evaluation(folder: Path) -> dict[str, Any]:
    try:
        content = read_json(folder / "evaluation.json")
    except (OSError, ValueError) as error:
        raise DatasetError(
            "the evaluation cannot be read", where=folder / "evaluation.json", found=error, do="Run unscanned evaluate."
        ) from error
    if not isinstance(content, dict) or content.get("format") != 1:
        raise DatasetError("not an evaluation of this version", where=folder / "evaluation.json", expected="format 1")
    return content


def _environment() -> Any:
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


def _case(entry: Mapping[str, Any], content: Mapping[str, Any], width: int) -> tuple[dict[str, Any], Images | None]:
    """The pictures of one case as the template wants them, and the images they were made from."""
    failures = {row["arm"]: row["reason"] for row in content["failures"] if row["case"] == entry["case"]}
    case: dict[str, Any] = {"name": entry["case"], "failures": failures, "figure": None, "strips": [], "reason": None}
    try:
        images = _load(entry, content)
        case["figure"] = _data_uri(_figure(images, content))
        case["strips"] = _strips(images, content, width)
    except UnscannedError as error:
        case["reason"] = str(error)
        return case, None
    return case, images


def _load(entry: Mapping[str, Any], content: Mapping[str, Any]) -> Images:
    pair = Pair(
        entry["subject"], entry["session"], Path(entry["source"]), Path(entry["target"]) if entry["target"] else None
    )
    synthetic = {arm: Path(path) if path else None for arm, path in entry["synthetic"].items()}
    regression = Regression.from_json(content["regression"]) if content["regression"] else None
    return load_images(
        pair, synthetic, regression=regression, percentile=content["percentile"], resample=content["resample"]
    )


def _synthetic(images: Images) -> dict[str, Any]:
    return {arm: image for arm, image in images.arms.items() if arm not in BASELINES}


def _figure(images: Images, content: Mapping[str, Any]) -> bytes:
    return figures.case_figure(
        images.target,
        images.source,
        _synthetic(images),
        images.head,
        spacing_mm=images.spacing_mm,
        contrasts=(content["source"], content["target"]),
        std=case_constants(images, content["constants"])[1],
    )


def _strips(images: Images, content: Mapping[str, Any], width: int) -> list[dict[str, Any]]:
    white = figures.display_white(images.target, images.head)
    volumes = {} if images.source is None else {f"{content['source']} (source)": (images.source, False)}
    volumes |= {arm: (image, True) for arm, image in _synthetic(images).items()}
    volumes[f"{content['target']} (acquired)"] = (images.target, False)
    strips = []
    for name, (volume, synthetic) in volumes.items():
        made = figures.strip(
            volume, images.head, spacing_mm=images.spacing_mm, white=white, width=width, synthetic=synthetic
        )
        strips.append({"name": name, "strip": made, "image": _data_uri(made.image, "webp"), "synthetic": synthetic})
    return strips


def _tables(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A table of mean (SD) for each region: arms in rows, metrics in columns."""
    return [
        {"region": region, "words": words, "rows": {arm: values.get(region) for arm, values in content["arms"].items()}}
        for region, words in content["regions"].items()
    ]


def _differences(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Paired differences inside the head: one row for each two arms, one cell for each metric."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in content["comparisons"]:
        if row["region"] == "head":
            rows.setdefault((row["against"], row["arm"]), {})[row["metric"]] = row
    return [{"against": against, "arm": arm, "cells": cells} for (against, arm), cells in rows.items()]


def _subject_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row for row in content["scores"] if row["region"] == "head"]


def _details(
    content: Mapping[str, Any], runs: Mapping[str, str | Path], further: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Headings and texts of the section on settings and provenance."""
    evaluation = {
        key: content[key]
        for key in ("created", "dataset", "folders", "percentile", "resample", "constants", "training_subjects")
    }
    texts = [("Evaluation", _pretty(evaluation))]
    for arm, folder in runs.items():
        path = Path(folder) / "settings.toml"
        if path.is_file():
            texts.append((f"Settings of {arm}", path.read_text(encoding="utf-8", errors="replace")))
    for arm in content["folders"]:
        for entry in content["cases"]:
            sidecar = _sidecar(entry["synthetic"].get(arm))
            if sidecar is not None:
                texts.append((f"Sidecar of {arm}, {entry['case']}", _pretty(sidecar)))
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


def _data_uri(image: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
