"""A run: one arm trained from a dataset into a folder, the auto-context chain and its folds included."""

from __future__ import annotations

import dataclasses
import hashlib
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unscanned.contrast.check import ContrastProfile
from unscanned.datasets.check import Content, contents_of, refuse_copies
from unscanned.datasets.pairs import select_pairs
from unscanned.datasets.split import split_subjects
from unscanned.errors import (
    CheckpointError,
    DatasetError,
    ResourceError,
    SettingsError,
    TrainingError,
    UnscannedError,
    listed,
)
from unscanned.files import (
    check_apart,
    lock,
    read_json,
    read_sealed,
    remove_partials,
    sha256,
    write_json,
    write_text,
)
from unscanned.machine import device as devices
from unscanned.machine import precision as precisions
from unscanned.machine.provenance import environment, utc_now
from unscanned.models import discriminators, generators
from unscanned.progress import Progress, interruptible
from unscanned.settings import Settings, decisive, difference, resolve, to_dict, to_toml
from unscanned.synthesis.model import Model, save_model, weights_bytes
from unscanned.synthesis.whole_volume import check_network
from unscanned.training.chain import Chain
from unscanned.training.prepare import Case, prepare

__all__ = ["Trained", "check_settings", "train", "train_run"]

_FILES_OF_A_PROCESS = 256
"Open files that a process may need beside the memory maps of its cases."


@dataclass(frozen=True)
class Trained:
    """What a run made.

    Attributes:
        model: Folder of the model.
        stages: For each stage its epochs, steps, patches, seconds and best epoch.
        failures: Cases that were refused and left out, with the reason.
        incomplete: What each case lacks that was left out because it has not both contrasts.
    """

    model: Path
    stages: list[dict[str, Any]]
    failures: dict[str, UnscannedError]
    incomplete: dict[str, str]


def train(
    dataset: str | Path,
    folder: str | Path,
    *,
    preset: str = "resgan",
    file: str | Path | None = None,
    progress: Progress | None = None,
    **overrides: dict[str, Any],
) -> Trained:
    """Train one arm from a preset; a later call goes on where an interrupted one was.

    Args:
        dataset: BIDS dataset, folder of IXI files, or CSV table of paired scans.
        folder: The run.
        preset: Settings to start from.
        file: TOML settings that override the preset.
        progress: Called with (done, total, label).
        **overrides: Tables of `Settings` that override both, such as `training={"epochs": 3}`.

    Raises:
        UnscannedError: As for `resolve` and `train_run`.
    """
    return train_run(dataset, folder, resolve(preset, file, overrides), progress=progress)


def check_settings(settings: Settings) -> torch.device:
    """Refuse settings that no run can have: networks that cannot be built, a device or a precision that is not there.

    Returns:
        The device to train on.

    Raises:
        SettingsError: A network's name is not known, a network does not take patches of this size, the device lacks the
            precision, or the generator the mode of synthesis or the way to convolve.
        ResourceError: The device is not there, or a network needs software that is not installed.
    """
    device = devices.choose(settings.training.device, threads=settings.training.threads)
    for table in ("synthesis", "training"):
        precisions.choose(
            to_dict(settings)[table]["precision"],
            device,
            convolution=settings.generator.convolution,
            where=f"{table}.precision",
        )
    discriminators.build(patch=settings.training.patch, **dataclasses.asdict(settings.discriminator))
    generator = generators.build(**dataclasses.asdict(settings.generator))
    _check_patch(settings, generators.inner(generator))
    if settings.synthesis.mode == "volume":
        check_network(generator)
    return device


def _check_patch(settings: Settings, generator: nn.Module) -> None:
    """Refuse a patch, with the context around it, that the generator does not take as it is set to compute."""
    patch, context, name = settings.training.patch, settings.training.margin, settings.generator.name
    edge, multiple = patch + 2 * context, getattr(generator, "multiple", 1)
    found = f"{patch} and {context} around it" if context else str(patch)
    if edge % multiple:
        raise SettingsError(
            "the generator does not take patches of this size",
            where="training.patch",
            found=f"{found} with generator.name = {name}",
            expected=f"a multiple of {multiple}" + (" in all" if context else ""),
        )
    if settings.generator.convolution == "spectral" and not isinstance(generator, generators.NieGenerator):
        raise SettingsError(
            "this generator has no pass through the frequency domain",
            where="generator.convolution",
            found=f"spectral with generator.name = {name}",
            expected="auto or plain",
        )
    if settings.generator.convolution == "spectral" and edge % 2:
        raise SettingsError(
            "the frequency domain takes patches of even edges",
            where="training.patch",
            found=f"{found} with generator.convolution = spectral",
            expected="an even number, or generator.convolution auto or plain",
        )


def train_run(
    dataset: str | Path,
    folder: str | Path,
    settings: Settings,
    *,
    cache: str | Path | None = None,
    first_stage: str | Path | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train one arm; run again after an interruption, it goes on where it was.

    Args:
        dataset: Folder or CSV of paired scans.
        folder: The run. Gets settings.toml first, then split.json, prepared/, the stages' logs and checkpoints, and
            model/.
        settings: What to train, and on what.
        cache: Folder of prepared volumes that several runs share; None keeps them inside the run.
        first_stage: Model that was trained with the same settings but a chain of one: taken as the first stage.
        progress: Called with (done, total, label).
        should_stop: Asked after each step.

    Raises:
        SettingsError: As for `check_settings`, or the folder is the dataset; nothing was written.
        BusyError: Another run uses the folder.
        CheckpointError: The folder holds a run with other settings or subjects, or one that is beyond its epochs.
        DatasetError: Too few usable subjects, none to validate on, or one file that stands for two scans.
        TrainingError: Training diverged or collapsed; where an epoch had ended, model/ is the best one.
        Interrupted: `should_stop` said so; the state is saved.
        ResourceError: The disk is full, too many files would be open, or as for `check_settings`.
    """
    folder = Path(folder)
    device = check_settings(settings)
    check_apart(dataset, folder)
    with lock(folder):
        remove_partials(folder)
        _claim(folder, settings)
        found = select_pairs(dataset, **to_dict(settings.data))
        split = split_subjects(found.pairs, **to_dict(settings.split))
        _claim_split(folder, split)
        used = [pair for pair in found.pairs if pair.subject in {*split["train"], *split["validation"]}]
        prepared, refused = prepare(
            used,
            cache or folder / "prepared",
            settings.prepare,
            progress=interruptible(progress, should_stop, folder),
        )
        failures = {**found.refused, **refused}
        tested = [pair for pair in found.pairs if pair.subject in split["test"]]
        refuse_copies([*(content for case in prepared for content in _contents(case)), *contents_of(tested)])
        training, validation = (
            [case for case in prepared if case.subject in split[part]] for part in ("train", "validation")
        )
        if not training:
            raise DatasetError("no training subject is usable", where=dataset, found=listed(failures.values(), "; "))
        if split["validation"] and not validation:
            raise DatasetError(
                "no validation subject is usable, so no epoch could be chosen",
                where=dataset,
                found=listed([refused[pair.case] for pair in used if pair.subject in split["validation"]], "; "),
                do="Mend the scans, or set split.validation to 0 to keep the last epoch.",
            )
        _allow_open_files(_maps_a_case(settings) * len(prepared) + _FILES_OF_A_PROCESS)
        chain = Chain(folder, settings, training, validation, device, progress, should_stop)
        try:
            chain.train(first_stage)
        except TrainingError as error:
            if chain.is_complete:
                _save(folder, settings, chain, failures, found.incomplete)
                error = TrainingError(
                    error.what,
                    where=error.where,
                    found=error.found,
                    expected=error.expected,
                    do=f"{error.do} The best epoch so far is the model {folder / 'model'}.",
                )
            raise error
        _save(folder, settings, chain, failures, found.incomplete)
    return Trained(folder / "model", chain.results, failures, found.incomplete)


def _maps_a_case(settings: Settings) -> int:
    """Source, target and head; in a chain the context, and the one before it while a third stage's is made."""
    contexts = min(settings.context.stages - 1, 2) if settings.context.input == "volume" else 0
    return 3 + contexts


def _allow_open_files(count: int) -> None:
    """Let this process and its children have so many files open; each memory map counts as one.

    Raises:
        ResourceError: The system does not allow as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or count <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    except (ValueError, OSError) as error:  # beyond the hard limit, or the kernel's own
        raise ResourceError(
            "the system does not allow as many open files as there are prepared volumes",
            found=f"{soft} open files, and no more",
            expected=f"{count}",
            do="Have the hard limit of open files raised (ulimit -Hn), or train on fewer subjects.",
        ) from error


def _save(
    folder: Path, settings: Settings, chain: Chain, failures: dict[str, UnscannedError], incomplete: dict[str, str]
) -> None:
    """Write the model, unless it is there already."""
    provenance = {
        "made": utc_now(),
        "training_cases": [{k: case.facts[k] for k in ("case", "source", "target")} for case in chain.training],
        "validation_cases": [case.name for case in chain.validation],
        "left_out": {case: str(error) for case, error in failures.items()},
        "incomplete": incomplete,
        "stages": chain.results,
        "environment": environment(chain.device),
    }
    profile = ContrastProfile.of([case.appearance for case in chain.training])
    model = Model(chain.networks, to_dict(settings), chain.normalization, provenance, profile=profile)
    if not _is_saved(model, folder / "model"):
        save_model(model, folder / "model")


def _claim(folder: Path, settings: Settings) -> None:
    """Write the settings into a run's folder, or refuse one that holds another run."""
    path = folder / "settings.json"
    if path.exists():
        found, wanted = _read_own(path, "settings", decisive), decisive(settings)
        if found != wanted:
            raise CheckpointError(
                "the folder holds a run with other settings",
                where=folder,
                found=difference(found, wanted),
                do="Choose another folder, or the settings in its settings.toml.",
            )
    write_text(folder / "settings.toml", to_toml(settings))
    write_json(path, to_dict(settings))


def _read_own(path: Path, what: str, understand: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier call wrote into the run's folder."""
    try:
        return understand(read_json(path))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"the {what} of the run in this folder cannot be read",
            where=path,
            found=error,
            do="Choose another folder, or put this file back as it was.",
        ) from error


def _claim_split(folder: Path, split: dict[str, list[str]]) -> None:
    """Write the split into a run's folder, or refuse one that was begun on other subjects."""
    path = folder / "split.json"
    if path.exists():
        found = _read_own(path, "split", dict)
        other = [part for part in ("train", "validation") if found.get(part) != split[part]]
        if other:
            raise CheckpointError(
                "the folder holds a run on other subjects",
                where=folder,
                found="; ".join(f"{part}: {found.get(part)}, now {split[part]}" for part in other),
                do=f"Choose another folder, or set split.file to {path}.",
            )
    write_json(path, split)


def _contents(case: Case) -> list[Content]:
    return [
        Content(case.subject, case.name, scan, Path(case.facts[scan]["name"]), case.facts[scan]["sha256"])
        for scan in ("source", "target")
    ]


def _is_saved(model: Model, folder: Path) -> bool:
    """Whether the folder holds just this model, of the same scans, so that running again changes no file."""
    try:
        facts = read_sealed(folder / "model.json")
        found, own = facts["provenance"], model.provenance
        ended = any("ended" in stage for stage in found["stages"])
        same = all(found[key] == own[key] for key in ("training_cases", "validation_cases"))
        weights = hashlib.sha256(weights_bytes(model)).hexdigest()
        whole = sha256(folder / "model.safetensors") == facts["weights_sha256"] == weights
        return bool(facts["settings"] == model.settings and same and whole and not ended)
    except (OSError, ValueError, KeyError):
        return False
