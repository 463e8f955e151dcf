"""A run: one arm trained from a dataset into a folder, the auto-context chain and its folds included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unscanned.datasets.check import Content, contents_of, refuse_copies
from unscanned.datasets.pairs import select_pairs
from unscanned.datasets.split import split_subjects
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import DatasetError, SettingsError, TrainingError, UnscannedError, listed
from unscanned.files import lock, remove_partials
from unscanned.machine.device import choose_device
from unscanned.machine.limits import raise_file_limit_of_process
from unscanned.machine.memory import keep_freed_memory_in_process, machine_bytes
from unscanned.machine.precision import check_precision, set_process_precision
from unscanned.machine.threads import set_process_threads
from unscanned.models import discriminators, generators
from unscanned.models.base import check_edge
from unscanned.outputs import check_apart
from unscanned.progress import Progress, interruptible, labelled, shares
from unscanned.settings import Settings, check, to_dict
from unscanned.synthesis.whole_volume import check_network
from unscanned.training.chain import Chain
from unscanned.training.effort import run_costs
from unscanned.training.inputs import TrainingRun
from unscanned.training.prepare import Case, normalization, prepare
from unscanned.training.run_folder import claim_settings, claim_split, save_run_model
from unscanned.training.simulated import simulated_pairs
from unscanned.training.start import constants_from, load_start, resolve_run, warn_of_seen

__all__ = ["Trained", "check_settings", "train"]

_FILES_OF_A_PROCESS = 256
"Open files that a process may need beside the memory maps of its cases."


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        left_out = len(self.failures) + len(self.incomplete)
        stages = f", {len(self.stages)} stages" if len(self.stages) > 1 else ""
        return f"Trained({self.model}{stages}" + (f", {left_out} cases left out)" if left_out else ")")


def check_settings(settings: Settings) -> torch.device:
    """Refuse settings that no run can have: networks that cannot be built, a device or a precision that is not there.

    Returns:
        The device to train on.

    Raises:
        SettingsError: As for `check`; a network's name is not known, a network does not take patches of this size, the
            device lacks the precision, the generator the mode of synthesis or the way to convolve, the machine the
            memory for the patches of a step, or contrasts or grid cannot be simulated.
        ResourceError: The device is not there, or a network needs software that is not installed.
    """
    device = choose_device(settings.training.device)
    convolution = settings.generator.convolution
    for name, table in (("synthesis", settings.synthesis), ("training", settings.training)):
        check_precision(table.precision, device, convolution=convolution, where=f"{name}.precision")
    patch, margin = settings.training.patch, settings.training.margin
    discriminator = discriminators.build(patch=patch, **to_dict(settings.discriminator))
    generator = generators.build(**to_dict(settings.generator))
    if settings.loss.adversarial > 0:
        check_edge(discriminator, noun="discriminator", name=settings.discriminator.name, patch=patch)
    generators.check_patch(generator, name=settings.generator.name, patch=patch, margin=margin)
    if settings.synthesis.mode == "volume":
        check_network(generator)
    check(settings)
    simulated_pairs(settings)
    _check_batch(settings.training.batch, patch + 2 * margin)
    return device


def _check_batch(batch: int, edge: int) -> None:
    """Refuse more patches than the memory holds without any network: source, target, synthetic and its gradient."""
    fits = (machine_bytes() or 2**62) // (4 * 4 * edge**3)
    if batch > fits:
        raise SettingsError(
            "more patches in a step than the machine's memory holds",
            where="training.batch",
            found=f"{batch} patches with edges of {edge} voxels",
            expected=f"at most {fits}, and fewer for the networks' sake",
            do="--dry-run measures what a step takes.",
        )


@draws_progress
def train(
    dataset: str | Path,
    folder: str | Path,
    settings: Settings | None = None,
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    cache: str | Path | None = None,
    first_stage: str | Path | None = None,
    progress: Progress | None = AUTOMATIC,
    should_stop: Callable[[], bool] = lambda: False,
    **overrides: dict[str, Any],
) -> Trained:
    """Train one arm; run again after an interruption, it goes on where it was.

    Args:
        dataset: BIDS dataset, folder of IXI files, or CSV table of paired scans.
        folder: The run. Gets settings.toml first, then split.json, prepared/, the stages' logs and checkpoints, and
            model/.
        settings: What to train, and on what; None takes the preset, the file and the overrides.
        preset: Settings to start from; None takes the one that the file names, else that of the model whose weights the
            run starts from (`training={"start": ...}`), else resgan.
        file: TOML settings that override the preset.
        cache: Folder of prepared volumes that several runs share; None keeps them inside the run.
        first_stage: Model that was trained with the same settings but a chain of one: taken as the first stage.
        progress: Called with (done, total, label). Without it a bar, in a terminal and in Jupyter; None draws none.
        should_stop: Asked after each step.
        **overrides: Tables of `Settings` that override both, such as `training={"epochs": 3}`.

    Raises:
        SettingsError: As for `resolve_run`, `check_settings`, or the folder is the dataset; nothing was written.
        BusyError: Another run uses the folder.
        CheckpointError: The folder holds a run with other settings or subjects, or one that is beyond its epochs; or
            the model to start from cannot be read.
        DatasetError: Too few usable subjects, none to validate on, or one file that stands for two scans.
        TrainingError: Training diverged or collapsed; where an epoch had ended, model/ is the best one.
        Interrupted: `should_stop` said so; the state is saved.
        ResourceError: The disk is full, too many files would be open, or as for `check_settings`.
    """
    folder = Path(folder)
    settings = settings or resolve_run(preset, file, overrides)
    device = check_settings(settings)
    start = load_start(settings)
    simulated = simulated_pairs(settings)
    if simulated is not None:
        simulated.stream.check()
    set_process_threads(settings.training.threads)
    set_process_precision(settings.training.precision, device)
    keep_freed_memory_in_process()
    check_apart(dataset, folder)
    with lock(folder):
        remove_partials(folder)
        found = select_pairs(dataset, **to_dict(settings.data))
        split = split_subjects(found.pairs, **to_dict(settings.split))
        claim_settings(folder, settings)
        claim_split(folder, split)
        counts = [sum(pair.subject in split[part] for pair in found.pairs) for part in ("train", "validation")]
        costs = run_costs(settings, *counts, has_first_stage=first_stage is not None)
        parts = dict(zip(costs, shares(progress, [*costs.values()]), strict=True))
        used = [pair for pair in found.pairs if pair.subject in {*split["train"], *split["validation"]}]
        prepared, refused = prepare(
            used,
            cache or folder / "prepared",
            settings.prepare,
            progress=labelled(interruptible(parts["prepare"], should_stop, folder), "prepare: "),
        )
        failures = {**found.refused, **refused}
        tested = [pair for pair in found.pairs if pair.subject in split["test"]]
        test_contents = [*contents_of(tested)]
        refuse_copies([*(content for case in prepared for content in _contents(case)), *test_contents])
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
        raise_file_limit_of_process(_maps_a_case(settings) * len(prepared) + _FILES_OF_A_PROCESS)
        constants = normalization(training, percentile=settings.prepare.percentile)
        if start is not None:
            held_out = [content for case in validation for content in _contents(case)]
            warn_of_seen([*held_out, *test_contents], start)
            constants = constants_from(start, constants)
        run = TrainingRun(
            folder, settings, training, validation, constants, device, parts, should_stop, simulated, start
        )
        chain = Chain(run)
        try:
            chain.train(first_stage)
        except TrainingError as error:
            if not chain.is_complete:
                raise
            model = save_run_model(run, chain, failures, found.incomplete)
            do = f"{error.do} The best epoch so far is the model {model}."
            raise TrainingError(**{**error.parts, "do": do}) from error
        model = save_run_model(run, chain, failures, found.incomplete)
    return Trained(model, chain.results, failures, found.incomplete)


def _maps_a_case(settings: Settings) -> int:
    """Source, target and head; in a chain the context, and the one before it while a third stage's is made."""
    contexts = min(settings.context.stages - 1, 2) if settings.context.input == "volume" else 0
    return 3 + contexts


def _contents(case: Case) -> list[Content]:
    scans = {"source": case.facts.source, "target": case.facts.target}
    return [Content(case.subject, case.name, what, Path(file.name), file.sha256) for what, file in scans.items()]
