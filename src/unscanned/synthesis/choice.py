"""Which model makes a contrast of a scan: by what the scan's name and JSON file say, and by what it looks like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import isdir
from pathlib import Path

from unscanned.contrast.appearance import measure_appearance
from unscanned.contrast.check import THRESHOLD, named_contrasts, too_coarse
from unscanned.datasets.layout import bids_suffix, contrast_key, has_bids_suffix, identify
from unscanned.errors import DatasetError, SettingsError, UnscannedError, VolumeError, listed
from unscanned.machine.crash import of_one
from unscanned.synthesis.shelf import ShelvedModel, list_models, there_are
from unscanned.synthesis.synthesize import list_inputs
from unscanned.volumes.nifti import read_volume

__all__ = ["Choice", "choose_models", "pick_model"]


_NAME_IT = "Give it a name such as sub-01_T1w.nii.gz, or name the model: unscanned synthesize MODEL SCAN."


@dataclass(frozen=True)
class Choice:
    """A model for some scans.

    Attributes:
        model: On its shelf.
        reason: Why this one, in words.
        scans: As `list_inputs` returns them: (scan, case).
    """

    model: ShelvedModel
    reason: str
    scans: tuple[tuple[Path, str | None], ...] = ()


def choose_models(
    inputs: Iterable[str | Path], to: str, *, models_in: str | Path | None = None
) -> tuple[list[Choice], dict[str, UnscannedError]]:
    """Return which model makes a contrast of which scans. A scan that has none does not stop the others.

    Args:
        inputs: As for `list_inputs`. From a dataset, every scan of the one contrast in it that there is a model for.
        to: Contrast to make.
        models_in: Folder of models to look at, in place of the package's and the fetched ones.

    Returns:
        A choice for each model that takes part, and the errors by scan, or by dataset and case.

    Raises:
        SettingsError: No model makes this contrast, which says what there is.
        DatasetError: A dataset cannot be read, or has scans for no model or for several.
        CheckpointError: As for `list_models`.
    """
    models = _that_make(to, list_models(models_in))
    chosen: dict[tuple[str, str], Choice] = {}
    failures: dict[str, UnscannedError] = {}
    for entry in map(Path, inputs):
        try:
            if isdir(entry) or entry.suffix.lower() in (".csv", ".tsv"):
                choice, ambiguous = _of_dataset(entry, to, models)
                failures |= ambiguous
            else:
                choice = _of_scan(entry, to, models)
        except DatasetError:
            raise
        except Exception as error:
            failures[str(entry)] = of_one(error, where=entry)
            continue
        key = choice.model.name, choice.reason
        before = chosen.get(key, Choice(choice.model, choice.reason))
        chosen[key] = Choice(choice.model, choice.reason, before.scans + choice.scans)
    return list(chosen.values()), failures


def pick_model(scan: str | Path, to: str, *, models_in: str | Path | None = None) -> Choice:
    """Return the model that makes a contrast of a scan.

    The scan's name and the JSON file beside it decide, where they name a contrast; otherwise what the scan looks like,
    if that fits the training scans of one model alone. Several models of the same contrasts are never chosen among.

    Args:
        scan: A file.
        to: Contrast to make.
        models_in: As for `choose_models`.

    Raises:
        SettingsError: No model makes this contrast, or none makes it from the scan's, or several do.
        VolumeError: The scan cannot be read, or its contrast is not known.
        CheckpointError: As for `list_models`.
    """
    return _of_scan(Path(scan), to, _that_make(to, list_models(models_in)))


def _that_make(to: str, models: Sequence[ShelvedModel]) -> list[ShelvedModel]:
    found = [model for model in models if contrast_key(model.record.target) == contrast_key(to)]
    if not found:
        raise SettingsError(
            "no model makes this contrast",
            where="--to",
            found=to if models else there_are(models),
            expected=f"one of {_made(models)}" if models else None,
            do="`unscanned models` lists all; unscanned fetch model takes another, and unscanned train makes one.",
        )
    return found


def _made(models: Sequence[ShelvedModel]) -> str:
    return listed([f"{model.record.target} ({model.name})" for model in models])


def _of_scan(scan: Path, to: str, models: Sequence[ShelvedModel]) -> Choice:
    said = _said(scan)
    if len({key for _, key in said}) > 1:
        raise VolumeError(
            "the contrast of the scan is not clear",
            where=scan,
            found=" and ".join(f"{place} says {bids_suffix(key)}" for place, key in said),
            do="Mend the one that is wrong, or name the model: unscanned synthesize MODEL SCAN.",
        )
    if said:
        reason = (
            f"{' and '.join(place for place, _ in said)} {'say' if len(said) > 1 else 'says'} {bids_suffix(said[0][1])}"
        )
        return Choice(_one_from(said[0][1], to, models, scan, reason), reason, ((scan, None),))
    model, reason = _that_it_looks_like(scan, to, models)
    return Choice(model, reason, ((scan, None),))


def _said(scan: Path) -> list[tuple[str, str]]:
    """Return the contrasts that the scan's name and JSON file say, as (place, key); of names, all that BIDS has."""
    said = named_contrasts(scan)
    known = identify(scan)
    if known is not None and has_bids_suffix(known.contrast):
        said = [("its name", known.contrast), *(one for one in said if one[0] != "its name")]
    return said


def _one_from(key: str, to: str, models: Sequence[ShelvedModel], where: Path, reason: str) -> ShelvedModel:
    """Return the one model that takes a contrast."""
    found = [model for model in models if contrast_key(model.record.source) == key]
    if not found:
        raise SettingsError(
            f"no model makes {to} from this contrast",
            where=where,
            found=reason,
            expected="a scan of "
            + " or ".join(f"{bids_suffix(model.record.source)} ({model.name})" for model in models),
        )
    return _only(found, where, reason)


def _only(found: Sequence[ShelvedModel], where: Path, reason: str) -> ShelvedModel:
    if len(found) > 1:
        raise SettingsError(
            "several models do this",
            where=where,
            found=f"{reason}; {' and '.join(model.name for model in found)}",
            do=f"Name the one that you want: unscanned synthesize {found[0].name} SCAN.",
        )
    return found[0]


def _that_it_looks_like(scan: Path, to: str, models: Sequence[ShelvedModel]) -> tuple[ShelvedModel, str]:
    """Return the one model whose training scans look like a scan that says nothing of its contrast, and why."""
    volume = read_volume(scan)
    seen = measure_appearance(volume.array, volume.affine)
    why = too_coarse(volume) or ("" if seen else "no head in which a contrast can be measured")
    if why or seen is None:
        raise VolumeError(
            "the contrast of the scan is not known",
            where=scan,
            found=f"neither its name nor a JSON file says; {why}",
            do=_NAME_IT,
        )
    scores = {model: model.record.fingerprint.score(seen) for model in models if model.record.fingerprint}
    looks = "; ".join(f"{bids_suffix(model.record.source)} scores {score:.1f}" for model, score in scores.items())
    fitting = [model for model in scores if model.record.fingerprint and model.record.fingerprint.fits(seen)]
    if not fitting:
        raise VolumeError(
            "the contrast of the scan is not known",
            where=scan,
            found=f"neither its name nor a JSON file says; it looks like none that a model for {to} takes"
            + (f": {looks}" if looks else ""),
            expected=f"a score of at most {THRESHOLD}, and looks that are not more like what the model makes",
            do=_NAME_IT,
        )
    reason = f"it looks like the scans that the model was trained on: {looks}, at most {THRESHOLD} fits"
    return _only(fitting, scan, reason), reason


def _of_dataset(dataset: Path, to: str, models: Sequence[ShelvedModel]) -> tuple[Choice, dict[str, UnscannedError]]:
    """Return the one model that a dataset has scans for, with these, and the errors of cases among them."""
    found: dict[ShelvedModel, tuple[list[tuple[Path, str | None]], dict[str, UnscannedError]]] = {}
    refusal: DatasetError | None = None
    for model in models:
        try:
            found[model] = list_inputs([dataset], source=model.record.source, target=model.record.target)
        except DatasetError as error:
            refusal = error
    if refusal is not None and not found:
        raise refusal
    if len(found) > 1:
        names = " and ".join(f"{bids_suffix(model.record.source)} for {model.name}" for model in found)
        raise DatasetError(
            "the dataset has scans for several models",
            where=dataset,
            found=names,
            do=f"Name the one that you want: unscanned synthesize {next(iter(found)).name} {dataset}.",
        )
    model, (scans, failures) = next(iter(found.items()))
    return Choice(model, f"the dataset has {bids_suffix(model.record.source)} scans", tuple(scans)), failures
