"""A run that starts from a model: what it takes from it, and what it may not set otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from unscanned.datasets.check import Content
from unscanned.display import warn
from unscanned.errors import SettingsError, listed
from unscanned.settings import Settings, check, difference, merge, preset_names, to_dict
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model
from unscanned.volumes.intensity import Contrast, Normalization

__all__ = ["constants_from", "load_start", "resolve_run", "taken_from", "warn_of_seen"]

_TABLES = ("data", "prepare", "generator", "synthesis")
"Tables that a run takes from the model that it starts from, where it does not set them itself."

_OWN = {"layout", "resample", "convolution", "batch", "memory_mib", "precision"}
"Keys of these tables that belong to the run's scans and machine."

_FURTHER: dict[str, tuple[str, ...]] = {
    "training": ("patch", "margin", "validation_stride"),
    "context": ("stages", "input", "stride"),
}
"Further keys that it takes."

_FIXED: dict[str, tuple[str, ...]] = {
    "prepare": ("percentile",),
    "generator": ("name", "options", "residual", "slope", "output"),
    "context": ("stages",),
}
"Settings without which the weights are another function."


def resolve_run(
    preset: str | None = None, file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """Return the settings of a run: as `resolve` does, and where it starts from a model, above what it takes from that.

    Args:
        preset: One of `preset_names()`; None takes the one that the file names, else that of the model that the run
            starts from, else resgan.
        file: As for `resolve`.
        overrides: As for `resolve`.

    Raises:
        SettingsError: As for `resolve`, or as for `load_start`.
        CheckpointError: The model that the run starts from cannot be read.
    """
    settings = merge(preset, file, overrides)
    if settings.training.start is not None:
        model = load_model(settings.training.start)
        own = model.settings.preset if model.settings.preset in preset_names() else None
        settings = merge(preset, file, overrides, usual=own, base=_taken(model.settings))
        _check(settings, model)
    check(settings)
    return settings


def load_start(settings: Settings) -> Model | None:
    """Return the model that a run starts from; None where its weights are drawn.

    Raises:
        SettingsError: The run has another network or another scale of intensities than the model.
        CheckpointError: As for `load_model`.
    """
    if settings.training.start is None:
        return None
    model = load_model(settings.training.start)
    _check(settings, model)
    return model


def constants_from(start: Model, own: Normalization) -> Normalization:
    """Return the intensity constants of a run: z-scores as the model has them, scales and minima of its own scans.

    So the first step sees what the model has learned to see, and volumes come out on the scale of the run's targets.

    Args:
        start: The model that the run starts from.
        own: Of the run's training cases.
    """

    def mixed(theirs: Contrast, ours: Contrast) -> Contrast:
        return dataclasses.replace(ours, mean=theirs.mean, std=theirs.std)

    theirs = start.normalization
    return Normalization(own.percentile, mixed(theirs.source, own.source), mixed(theirs.target, own.target))


def taken_from(start: Model) -> dict[str, Any]:
    """Return what the provenance of a model says of the one that its training started from."""
    return {
        "name": start.name,
        "source": start.source,
        "target": start.target,
        "sha256": start.sha256,
        "weights_sha256": start.weights_sha256,
        "training_cases": start.provenance.get("training_cases", []),
        "started_from": start.provenance.get("started_from"),
    }


def warn_of_seen(
    held_out: Iterable[Content],
    start: Model,
    words: str = "held out here, so that their scores will be too good",
) -> None:
    """Say which scans that a part of the run must not train on are among those that the model was trained on.

    Args:
        held_out: Of the run: to choose the epoch with or to test on, or of a fold.
        start: The model that it starts from.
        words: What the scans are here, and what comes of it.

    Warns:
        UserWarning: There are such scans.
    """
    seen = {case[scan]["sha256"] for case in _training_cases(start.provenance) for scan in ("source", "target")}
    cases = dict.fromkeys(content.case for content in held_out if content.sha256 in seen)
    if cases:
        warn(f"the model that the weights start from was trained on scans that are {words}: {listed(cases)}")


def _training_cases(provenance: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the training cases of a model, and of those that it started from."""
    if not provenance:
        return []
    return [*provenance.get("training_cases", []), *_training_cases(provenance.get("started_from"))]


def _check(settings: Settings, model: Model) -> None:
    found, wanted = _part(settings, _FIXED), _part(model.settings, _FIXED)
    if found != wanted:
        raise SettingsError(
            "not the network or the intensities of the model that the weights start from",
            where=settings.training.start,
            found=difference(wanted, found, second="here"),
            do="Leave these settings out: they come from the model. Or leave out --from, and start from fresh weights.",
        )


def _taken(settings: Settings) -> dict[str, Any]:
    content = to_dict(settings)
    tables = {table: {key: value for key, value in content[table].items() if key not in _OWN} for table in _TABLES}
    return {**tables, **_part(settings, _FURTHER)}


def _part(settings: Settings, keys: Mapping[str, Collection[str]]) -> dict[str, Any]:
    content = to_dict(settings)
    return {table: {key: content[table][key] for key in names} for table, names in keys.items()}
