"""The stages of a run: plain for a chain of one, and the auto-context chain with its folds (report, section VIII)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unscanned.errors import CheckpointError, DatasetError, TrainingError
from unscanned.evaluation.metrics import mae, psnr
from unscanned.files import atomic_path
from unscanned.machine.precision import autocast
from unscanned.models import discriminators, generators
from unscanned.progress import Progress, interruptible
from unscanned.settings import Settings, decisive, difference, short_digest
from unscanned.synthesis.context import PatchChain, chain
from unscanned.synthesis.model import load_model
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.synthesis.whole_volume import map_volume
from unscanned.training.batches import PatchBatches
from unscanned.training.checkpoint import load_checkpoint, restore
from unscanned.training.health import discriminator_accuracy, fixed_patches, output_signs
from unscanned.training.loop import train_stage
from unscanned.training.prepare import Case, normalization
from unscanned.volumes.intensity import Normalization

__all__ = ["Chain"]


class Chain:
    """The stages of one run, each on the volumes that the one before made."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        training: Sequence[Case],
        validation: Sequence[Case],
        device: torch.device,
        progress: Progress | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self.folder, self.settings, self.device = folder, settings, device
        self.training, self.validation = list(training), list(validation)
        self.progress, self.should_stop = progress, should_stop
        self.normalization: Normalization = normalization(training, percentile=settings.prepare.percentile)
        self.networks: list[nn.Module] = []
        self.results: list[dict[str, Any]] = []

    @property
    def is_complete(self) -> bool:
        """Whether there is a generator for each stage, be it the best epoch of a training that failed later."""
        return len(self.networks) == self.settings.context.stages

    def train(self, first_stage: str | Path | None) -> None:
        """Train the stages one after another; `networks` and `results` hold their generators and what each took."""
        count = self.settings.context.stages
        context: dict[str, np.ndarray] = {}
        for number in range(1, count + 1):
            folder = self.folder if count == 1 else self.folder / f"stage-{number}"
            if number == 1 and first_stage is not None:
                network, result = self._given(first_stage)
            else:
                network, result = self._stage(
                    number, folder, self.training, context, self.networks, seed=self.settings.training.seed
                )
            self.networks.append(network)
            self.results.append(result)
            if number < count and self.settings.context.input == "volume":
                context = self._context(number, folder, network, context, self.networks)

    def _stage(
        self,
        number: int,
        folder: Path,
        cases: list[Case],
        context: dict[str, np.ndarray],
        earlier: list[nn.Module],
        *,
        seed: int,
        label: str = "",
    ) -> tuple[nn.Module, dict[str, Any]]:
        s = self.settings
        torch.manual_seed(seed * 1000 + number)
        generator = self._network(number)
        discriminator = None
        if s.loss.adversarial > 0:
            discriminator = discriminators.build(patch=s.training.patch, **dataclasses.asdict(s.discriminator)).to(
                self.device
            )
        batches = PatchBatches(
            cases,
            self.normalization,
            patch=s.training.patch,
            batch=s.training.batch,
            seed=seed * 1000 + number,
            min_head=s.training.min_head,
            earlier=[context[case.name] for case in cases] if context else None,
            margin=s.training.margin,
        )
        previous = None
        if number > 1 and s.context.input == "patch":
            previous = PatchChain(earlier).eval()
        identity = self._identity(number, cases, seed, context, previous)
        train = partial(
            train_stage,
            folder,
            generator,
            discriminator,
            batches,
            lambda network: self._validate(network, discriminator, context, previous),
            epochs=s.training.epochs,
            steps_per_epoch=s.training.steps_per_epoch,
            **dataclasses.asdict(s.loss),
            optimizer=s.training.optimizer,
            learning_rate=s.training.learning_rate,
            betas=(s.training.beta1, s.training.beta2),
            order=s.training.order,
            seed=seed * 1000 + number,
            workers=s.training.workers,
            checkpoint_minutes=s.training.checkpoint_minutes,
            device=self.device,
            precision=s.training.precision,
            previous=previous,
            identity=identity,
            progress=_labelled(self.progress, label or (f"stage {number}, " if s.context.stages > 1 else "")),
            should_stop=self.should_stop,
        )
        try:
            return generator, train()
        except TrainingError as error:
            if number == s.context.stages:
                self._keep_best(folder, generator, identity, error)
            raise

    def _keep_best(self, folder: Path, generator: nn.Module, identity: dict[str, Any], error: TrainingError) -> None:
        """Complete the chain with the best epoch of a last stage that failed, if an epoch had ended."""
        chosen = load_checkpoint(folder / "best", identity)
        if chosen is not None:
            restore(chosen.tensors, {"generator": generator}, {})
            self.networks.append(generator.eval())
            self.results.append({"best": chosen.facts["best"], "ended": str(error)})

    def _network(self, number: int) -> nn.Module:
        in_channels = 1 if number == 1 else 2
        options = dataclasses.asdict(self.settings.generator)
        return generators.build(in_channels=in_channels, **options).to(self.device)

    def _given(self, path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
        model = load_model(path, self.device)
        wanted = decisive(self.settings)
        wanted.pop("context")
        found = {key: decisive(model.settings)[key] for key in wanted}
        names = [case["case"] for case in model.provenance["training_cases"]]
        scans = [{k: case.facts[k] for k in ("case", "source", "target")} for case in self.training]
        validation = [case.name for case in self.validation]
        same = model.provenance["training_cases"] == scans and model.provenance["validation_cases"] == validation
        if found != wanted or not same:
            raise CheckpointError(
                "the model given as first stage was trained with other settings or scans",
                where=path,
                found=difference(found, wanted)
                or f"scans of {', '.join(names)}, validated on {', '.join(model.provenance['validation_cases'])}",
                do="Leave it out; the first stage is then trained here.",
            )
        return model.generators[0], model.provenance["stages"][0]

    def _context(
        self,
        number: int,
        folder: Path,
        network: nn.Module,
        context: dict[str, np.ndarray],
        earlier: list[nn.Module],
    ) -> dict[str, np.ndarray]:
        """Return for each case the volume that this stage makes: the next stage's second channel, in z-scores."""
        makers = {case.name: network for case in self.validation}
        if self.settings.context.training_input == "in_sample":
            makers |= {case.name: network for case in self.training}
        else:
            for fold, (inside, outside) in enumerate(self._folds(), 1):
                maker, _ = self._stage(
                    number,
                    folder / f"fold-{fold}",
                    inside,
                    context,
                    earlier[:-1],
                    seed=self.settings.training.seed + 100 * fold,
                    label=f"stage {number}, fold {fold}, ",
                )
                makers |= {case.name: maker for case in outside}
        made, kept = {}, set()
        for index, case in enumerate([*self.training, *self.validation]):
            if self.progress:
                self.progress(index, len(makers), f"context of stage {number + 1}")
            maker = makers[case.name]
            path = folder / "context" / f"{case.name}_{self._made_from(maker, case, context)}.npy"
            if not path.exists():
                volume = self._map(maker, case, context, None, self.settings.context.stride)
                with atomic_path(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, volume)
            made[case.name] = np.load(path, mmap_mode="r")
            kept.add(path)
        for path in {*(folder / "context").glob("*.npy")} - kept:
            path.unlink()  # of an earlier best epoch, or of a scan that was corrected
        return made

    def _made_from(self, network: nn.Module, case: Case, context: dict[str, np.ndarray]) -> str:
        """Return 16 digits of all that decides what a stage makes of a case, but for settings, which a run keeps."""
        given: dict[str, Any] = {
            "source": case.facts["source"]["sha256"],
            "frame": case.facts["frame"],
            "intensities": dataclasses.asdict(self.normalization),
            "weights": _weights(network),
        }
        if case.name in context:
            given["context"] = _digest(context[case.name])
        return short_digest(given)

    def _folds(self) -> list[tuple[list[Case], list[Case]]]:
        """Return (train on, predict) cases of each fold; sessions of a subject stay together."""
        subjects = sorted({case.subject for case in self.training})
        count = self.settings.context.folds
        if len(subjects) < count:
            raise DatasetError(
                "fewer training subjects than folds",
                where="context.folds",
                found=f"{len(subjects)} subjects",
                expected=f"at least {count}",
                do="Set context.folds lower, or context.training_input to in_sample.",
            )
        folds = []
        for fold in range(count):
            held_out = set(subjects[fold::count])
            folds.append(
                (
                    [case for case in self.training if case.subject not in held_out],
                    [case for case in self.training if case.subject in held_out],
                )
            )
        return folds

    def _map(
        self,
        network: nn.Module,
        case: Case,
        context: dict[str, np.ndarray],
        previous: nn.Module | None,
        stride: int,
    ) -> np.ndarray:
        """Return what a network makes of a case, in z-scores."""
        channels = [self.normalization.source.standardize(case.source)]
        if case.name in context:
            channels.append(np.asarray(context[case.name]))
        networks: list[nn.Module] = [*(previous.generators if previous is not None else ()), network]  # type: ignore[misc]
        options = self.settings.synthesis
        progress = interruptible(None, self.should_stop, self.folder)
        with autocast(options.precision, self.device):
            if options.mode == "volume" and len(networks) > 1:
                return chain(
                    channels[0],
                    networks,
                    mode="volume",
                    memory_mib=options.memory_mib,
                    device=self.device,
                    progress=progress,
                )
            if options.mode == "volume":
                return map_volume(
                    np.stack(channels), network, memory_mib=options.memory_mib, device=self.device, progress=progress
                )
            return reconstruct(
                np.stack(channels),
                PatchChain(networks) if len(networks) > 1 else network,
                patch=self.settings.training.patch,
                stride=stride,
                device=self.device,
                progress=progress,
            )

    def _validate(
        self,
        network: nn.Module,
        discriminator: nn.Module | None,
        context: dict[str, np.ndarray],
        previous: nn.Module | None,
    ) -> dict[str, float]:
        """Return means over the validation volumes: `psnr` (dB, unit scale), `mae` (z-scores) and the signs."""
        if not self.validation:
            return {}
        contrasts, patch = self.normalization, self.settings.training.patch
        scores: dict[str, list[float]] = {}
        for case in self.validation:
            synthetic = self._map(network, case, context, previous, self.settings.training.validation_stride)
            target, head = contrasts.target.standardize(case.target), np.asarray(case.head)
            signs = output_signs(synthetic, target, head, patch)
            places = fixed_patches(head, patch)
            if discriminator is not None and places:
                source = contrasts.source.standardize(case.source)
                signs["d_accuracy"] = discriminator_accuracy(
                    discriminator, source, target, synthetic, places, patch, self.device
                )
            unit = psnr(np.asarray(case.target), contrasts.target.unit(synthetic), data_range=1.0)
            for name, value in {"psnr": unit, "mae": mae(target, synthetic), **signs}.items():
                scores.setdefault(name, []).append(value)
        return {name: float(np.mean(values)) for name, values in scores.items()}

    def _identity(
        self,
        number: int,
        cases: list[Case],
        seed: int,
        context: dict[str, np.ndarray],
        previous: nn.Module | None,
    ) -> dict[str, Any]:
        """Return what a checkpoint of a stage depends on, table by table."""
        all_cases = [*cases, *self.validation]
        identity = {
            **decisive(self.settings),
            "stage": {"number": number, "seed": seed},
            "training subjects": {"cases": [case.name for case in cases]},
            "validation subjects": {"cases": [case.name for case in self.validation]},
            "scans of": {case.name: _hashes(case) for case in all_cases},
            # of all training cases, also those that a fold does not train on
            "intensities": dataclasses.asdict(self.normalization),
        }
        # An earlier stage that trained on, to another best epoch, makes another input for this one.
        if context:
            identity["earlier stages' volume of"] = {case.name: _digest(context[case.name]) for case in all_cases}
        elif previous is not None:
            identity["earlier stages'"] = {"weights": _weights(previous)}
        return identity


def _weights(network: nn.Module) -> str:
    return _digest(*(tensor.detach().cpu().numpy() for tensor in network.state_dict().values()))


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _hashes(case: Case) -> str:
    return " ".join(str(case.facts[scan]["sha256"])[:16] for scan in ("source", "target"))


def _labelled(progress: Progress | None, prefix: str) -> Progress | None:
    if progress is None or not prefix:
        return progress
    return lambda done, total, label: progress(done, total, prefix + label)
