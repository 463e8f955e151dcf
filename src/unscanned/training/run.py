"""A run: one arm trained from a dataset into a folder, the auto-context chain and its folds included."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unscanned.datasets.check import Content, contents_of, refuse_copies
from unscanned.datasets.pairs import Pair, Selection, select_pairs
from unscanned.datasets.split import split_subjects
from unscanned.display import AUTOMATIC, draws_progress, warn
from unscanned.errors import DatasetError, ResourceError, SettingsError, TrainingError, UnscannedError, listed, quoted
from unscanned.files import lock, read_text, remove_partials
from unscanned.machine import ranks, started
from unscanned.machine.device import choose_device
from unscanned.machine.limits import raise_file_limit_of_process
from unscanned.machine.memory import keep_freed_memory_in_process, machine_bytes
from unscanned.machine.precision import check_precision, set_process_precision
from unscanned.machine.threads import set_process_threads
from unscanned.models import discriminators, generators
from unscanned.models.base import check_edge
from unscanned.outputs import check_apart
from unscanned.progress import Progress, interruptible, labelled, shares
from unscanned.settings import Settings, Training, check, to_dict, without_effect
from unscanned.synthesis.model import Model
from unscanned.synthesis.whole_volume import check_network
from unscanned.training.chain import Chain
from unscanned.training.effort import run_costs
from unscanned.training.inputs import TrainingRun
from unscanned.training.maps import MOST_MAPS
from unscanned.training.prepare import Case, normalization, prepare
from unscanned.training.run_folder import claim_settings, claim_split, save_run_model
from unscanned.training.simulated import simulated_pairs
from unscanned.training.start import constants_from, load_start, resolve_run, warn_of_seen
from unscanned.volumes.intensity import Normalization

__all__ = ["Trained", "check_alone", "check_settings", "train", "warn_of_settings"]

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
        SettingsError: As for `check`; a network's name is not known, a network does not take patches of this size, or
            so few at a time, the device lacks the precision, the generator the mode of synthesis or the way to
            convolve, the machine the memory for the patches of a step, or contrasts or grid cannot be simulated.
        ResourceError: The device is not there, or a network needs software that is not installed.
    """
    device = _device(settings.training)
    convolution = settings.generator.convolution
    for name, table in (("synthesis", settings.synthesis), ("training", settings.training)):
        check_precision(table.precision, device, convolution=convolution, where=f"{name}.precision")
    patch, margin = settings.training.patch, settings.training.margin
    with torch.device("meta"):  # without memory: one for large patches is large, and it may not be trained
        discriminator = discriminators.build(patch=patch, **to_dict(settings.discriminator))
    generator = generators.build(**to_dict(settings.generator))
    if settings.loss.adversarial > 0:
        check_edge(discriminator, noun="discriminator", name=settings.discriminator.name, patch=patch)
    # Steps see patches with their margin; validation and synthesis in mode patches see them bare.
    for around in {margin, 0} if settings.synthesis.mode == "patches" else {margin}:
        generators.check_patch(generator, name=settings.generator.name, patch=patch, margin=around)
    together = settings.training.batch // settings.training.accumulate
    generators.check_norms(generator, name=settings.generator.name, patch=patch, patches=together, margin=margin)
    if settings.synthesis.mode == "volume":
        check_network(generator)
    check(settings)
    simulated_pairs(settings)
    _check_batch(settings.training.batch, patch + 2 * margin)
    return device


def warn_of_settings(settings: Settings) -> None:
    """Say which settings have no effect.

    Warns:
        UserWarning: Something was set of a part that is switched off: `without_effect`.
    """
    if started.tells():
        for why, values in without_effect(settings).items():
            idle = ", ".join(f"{name} = {quoted(value)}" for name, value in values.items())
            warn(f"{settings.preset}: {why}, so this has no effect: {idle}")


def _device(training: Training) -> torch.device:
    """Return the device of this process, and refuse more of them than there are, or than there are patches for.

    Raises:
        SettingsError: One GPU is named for several processes, the processes are not as many as the settings say, or
            one would have no patch.
        ResourceError: There are not as many GPUs.
    """
    device = choose_device(training.device)
    devices, here = started.sizes() if started.is_rank() else (training.devices, training.devices)
    if training.devices not in (1, devices):
        raise SettingsError(
            "torchrun has started another number of processes",
            where="training.devices",
            found=training.devices,
            expected=f"{devices}, or the setting left out",
        )
    if devices * training.accumulate > training.batch:
        raise SettingsError(
            "fewer patches in a step than the parts that it is cut into",
            where="training.batch",
            found=f"{training.batch} for {devices} device{'s' * (devices > 1)} and training.accumulate = "
            f"{training.accumulate}",
            expected=f"at least {devices * training.accumulate}",
            do="Another training.batch is another training; take fewer devices or parts to keep it.",
        )
    if devices == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise SettingsError(
            "one GPU is named for several processes", where="training.device", found=device, expected="cuda or auto"
        )
    if here > torch.cuda.device_count():
        raise ResourceError(
            "not as many GPUs as the training has processes here",
            where="training.devices",
            found=f"{torch.cuda.device_count()} CUDA devices",
            expected=here,
            do="Set training.devices lower, or training.device to cpu.",
        )
    return torch.device("cuda", started.local_rank()) if started.is_rank() else device


def check_alone(settings: Settings) -> None:
    """Refuse several devices where this process has to do the work alone.

    Raises:
        SettingsError: The settings ask for them, or torchrun started several processes.
    """
    if settings.training.devices > 1 or started.is_rank():
        raise SettingsError(
            "several devices train one arm, in processes of their own",
            where="training.devices",
            found=max(settings.training.devices, started.sizes()[0]),
            expected=1,
            do="Call unscanned train for each arm, or from Python unscanned.train in a program that torchrun starts.",
        )


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

    In the processes that torchrun starts, all of which call it alike, the arm is trained on a device each.

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
    warn_of_settings(settings)
    start = load_start(settings)
    simulated = simulated_pairs(settings)
    if simulated is not None:
        simulated.stream.check()
        if settings.training.workers:  # which then share them
            simulated.stream.load()
    set_process_threads(settings.training.threads)
    set_process_precision(settings.training.precision, device)
    keep_freed_memory_in_process()
    check_apart(dataset, folder)
    if not started.is_rank():
        check_alone(settings)
    with ranks.joined(device), _held(folder):
        if ranks.number() > 0:
            progress = None
        found, split = ranks.first(lambda: _claim(dataset, folder, settings))
        counts = [sum(pair.subject in split[part] for pair in found.pairs) for part in ("train", "validation")]
        costs = run_costs(settings, *counts, has_first_stage=first_stage is not None)
        parts = dict(zip(costs, shares(progress, [*costs.values()]), strict=True))
        used = [pair for pair in found.pairs if pair.subject in {*split["train"], *split["validation"]}]
        telling = labelled(interruptible(parts["prepare"], should_stop, folder), "prepare: ")
        to = cache or folder / "prepared"
        prepared, refused = ranks.first(lambda: prepare(used, to, settings.prepare, progress=telling))
        failures = {**found.refused, **refused}
        tested = [pair for pair in found.pairs if pair.subject in split["test"]]
        test_contents = ranks.first(lambda: _without_copies(prepared, tested))
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
        maps = min(_maps_a_case(settings) * len(prepared), MOST_MAPS)
        raise_file_limit_of_process(maps + _FILES_OF_A_PROCESS)
        constants = ranks.first(lambda: _constants(settings, training, validation, test_contents, start))
        run = TrainingRun(
            folder, settings, training, validation, constants, device, parts, should_stop, simulated, start
        )
        chain = Chain(run)
        try:
            chain.train(first_stage)
        except TrainingError as error:
            if not chain.is_complete:
                raise
            model = ranks.first(lambda: save_run_model(run, chain, failures, found.incomplete))
            do = f"{error.do} The best epoch so far is the model {model}."
            raise TrainingError(**{**error.parts, "do": do}) from error
        model = ranks.first(lambda: save_run_model(run, chain, failures, found.incomplete))
    return Trained(model, chain.results, failures, found.incomplete)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which rank 0 does for all, and refuse a folder that they do not share."""
    with contextlib.ExitStack() as stack:

        def hold() -> str:
            stack.enter_context(lock(folder))
            return read_text(folder / ".lock")

        owner, seen = ranks.first(hold), None
        with contextlib.suppress(OSError, ValueError):
            seen = read_text(folder / ".lock")
        elsewhere = SettingsError(
            "the processes that train together do not see one folder",
            where=folder,
            found=f"rank {ranks.number()} sees {'another run' if seen else 'no run'} there",
            expected=f"that of {owner}",
            do="Choose a folder on a file system that all hosts share.",
        )
        error = ranks.each_tells(None if seen == owner else elsewhere)
        if error is not None:
            raise error
        yield


def _claim(dataset: str | Path, folder: Path, settings: Settings) -> tuple[Selection, dict[str, list[str]]]:
    """Return the pairs of a dataset and their split, and take the folder for a run of them."""
    remove_partials(folder)
    found = select_pairs(dataset, **to_dict(settings.data))
    split = split_subjects(found.pairs, **to_dict(settings.split))
    claim_settings(folder, settings)
    claim_split(folder, split)
    return found, split


def _without_copies(prepared: list[Case], tested: list[Pair]) -> list[Content]:
    """Return the contents of the test scans, and refuse one file that stands for two scans."""
    test_contents = [*contents_of(tested)]
    refuse_copies([*(content for case in prepared for content in _contents(case)), *test_contents])
    return test_contents


def _constants(
    settings: Settings, training: list[Case], validation: list[Case], tested: list[Content], start: Model | None
) -> Normalization:
    """Return the intensity constants of a run; warn where the model that it starts from has seen its held-out scans."""
    constants = normalization(training, percentile=settings.prepare.percentile)
    if start is None:
        return constants
    warn_of_seen([*(content for case in validation for content in _contents(case)), *tested], start)
    if settings.context.stages > 1 and settings.context.training_input == "out_of_fold":
        inside = [content for case in training for content in _contents(case)]
        warn_of_seen(inside, start, "given a context out of fold here, so that it is too good")
    return constants_from(start, constants)


def _maps_a_case(settings: Settings) -> int:
    """Source, target and head; in a chain the context, and the one before it while a third stage's is made."""
    contexts = min(settings.context.stages - 1, 2) if settings.context.input == "volume" else 0
    return 3 + contexts


def _contents(case: Case) -> list[Content]:
    scans = {"source": case.facts.source, "target": case.facts.target}
    return [Content(case.subject, case.name, what, Path(file.name), file.sha256) for what, file in scans.items()]
