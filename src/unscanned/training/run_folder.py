"""The folder of a run: whose it is, and the model that it ends with."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from unscanned.contrast.check import ContrastProfile
from unscanned.contrast.familiarity import FamiliarityProfile
from unscanned.errors import CheckpointError, UnscannedError, quoted
from unscanned.files import read_json, read_text, sha256, write_json, write_text
from unscanned.formats.model import read_model_record
from unscanned.machine import ranks
from unscanned.machine.provenance import environment, utc_now
from unscanned.outputs import claim, nothing
from unscanned.settings import Settings, decisive, difference, read_settings, to_dict, to_toml
from unscanned.synthesis.familiarity import measure_prepared, some
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import save_model, weights_bytes
from unscanned.training.chain import Chain
from unscanned.training.inputs import TrainingRun
from unscanned.training.start import taken_from
from unscanned.volumes.grid import Frame

__all__ = ["claim_settings", "claim_split", "save_run_model"]

T = TypeVar("T")

_ELSEWHERE = "Choose another folder for the run."


def claim_settings(folder: Path, settings: Settings) -> None:
    """Write the settings into a run's folder, or refuse one that holds another run."""
    path = folder / "settings.json"
    if not path.exists():
        text = to_toml(settings)  # a run that was ended between its first two files has this one
        claim(folder / "settings.toml", lambda file: read_text(file) == text, "a new run, or the same", do=_ELSEWHERE)
        for name in ("split.json", "model", "log.jsonl", "checkpoints", "best", "stage-1"):
            claim(folder / name, nothing, "a new run, or the same", do=_ELSEWHERE)
    else:
        found = decisive(_read_own(path, "settings", partial(read_settings, where=str(path), error=CheckpointError)))
        wanted = decisive(settings)
        if found != wanted:
            raise CheckpointError(
                "the folder holds a run with other settings",
                where=folder,
                found=difference(found, wanted),
                do="Choose another folder, or the settings in its settings.toml.",
            )
    write_text(folder / "settings.toml", to_toml(settings))
    write_json(path, to_dict(settings))


def _read_own(path: Path, what: str, understand: Callable[[Any], T]) -> T:
    """Return what an earlier call wrote into the run's folder."""
    try:
        return understand(read_json(path))
    except (OSError, ValueError, TypeError, AttributeError, CheckpointError) as error:
        raise CheckpointError(
            f"the {what} of the run in this folder cannot be read",
            where=path,
            found=error,
            do="Choose another folder, or put this file back as it was.",
        ) from error


def claim_split(folder: Path, split: dict[str, list[str]]) -> None:
    """Write the split into a run's folder, or refuse one that was begun on other subjects."""
    path = folder / "split.json"
    if path.exists():
        found = _read_own(path, "split", dict)
        other = [part for part in ("train", "validation") if found.get(part) != split[part]]
        if other:
            raise CheckpointError(
                "the folder holds a run on other subjects",
                where=folder,
                found="; ".join(f"{part}: {quoted(found.get(part))}, now {quoted(split[part])}" for part in other),
                do=f"Choose another folder, or set split.file to {path}.",
            )
    write_json(path, split)


def save_run_model(
    run: TrainingRun, chain: Chain, failures: Mapping[str, UnscannedError], incomplete: Mapping[str, str]
) -> Path:
    """Write the model of a run, unless it is there already, and return its folder."""
    provenance: dict[str, Any] = {
        "made": utc_now(),
        "training_cases": [case.scans for case in run.training],
        "validation_cases": [case.name for case in run.validation],
        "left_out": {case: str(error) for case, error in failures.items()},
        "incomplete": dict(incomplete),
        "stages": chain.results,
        "environment": {**environment(run.device), **({"devices": ranks.count()} if ranks.count() > 1 else {})},
    }
    if run.simulated is not None:
        provenance["label_maps"] = run.simulated.identity()
    if run.start is not None:
        provenance["started_from"] = taken_from(run.start)
    model = Model(chain.networks, run.settings, run.normalization, provenance)
    folder = run.folder / "model"
    if not _is_saved(model, folder):
        facts = [case.facts for case in run.training]
        contrast = ContrastProfile.of(
            [known.appearance for known in facts], [known.target_appearance for known in facts]
        )
        measured, scans, progress = [], some(run.training), run.progress.get("profile")
        for number, case in enumerate(scans):
            if progress:
                progress(number, len(scans), "profile of the training scans")
            working = Frame.from_json(case.facts.frame).working_affine
            measured.append(measure_prepared(model, np.asarray(case.source, np.float32), case.head, working))
        known = dataclasses.replace(model, profile=contrast, familiarity=FamiliarityProfile.of(measured))
        save_model(known, folder)
    return folder


def _is_saved(model: Model, folder: Path) -> bool:
    """Whether the folder holds just this model, of the same scans, so that running again changes no file."""
    try:
        record, _ = read_model_record(folder)
        settings = read_settings(record.settings, where=str(folder), error=CheckpointError)
        found, own = record.provenance, model.provenance
        ended = any("ended" in stage for stage in found["stages"])
        same = all(found[key] == own[key] for key in ("training_cases", "validation_cases"))
        weights = hashlib.sha256(weights_bytes(model)).hexdigest()
        whole = sha256(folder / "model.safetensors") == record.weights_sha256 == weights
        return settings == model.settings and same and whole and not ended
    except (OSError, ValueError, KeyError, CheckpointError):
        return False
