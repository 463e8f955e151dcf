"""The stages of a run: plain for a chain of one, and the auto-context chain with its folds (report, section VIII)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unscanned.config import Settings, decisive, difference
from unscanned.data.intensity import Normalization
from unscanned.data.patches import PatchBatches
from unscanned.data.prepare import Case, normalization
from unscanned.errors import CheckpointError, DatasetError
from unscanned.evaluation.metrics import mae, psnr
from unscanned.files import atomic_path
from unscanned.models import discriminators, generators
from unscanned.progress import Progress
from unscanned.synthesis.context import PatchChain
from unscanned.synthesis.model import load_model
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.training.loop import train_stage

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

    def train(self, first_stage: str | Path | None) -> tuple[list[nn.Module], list[dict[str, Any]]]:
        """Train the stages one after another, and return their generators and what each took."""
        count = self.settings.context.stages
        networks: list[nn.Module] = []
        results: list[dict[str, Any]] = []
        context: dict[str, np.ndarray] = {}
        for number in range(1, count + 1):
            folder = self.folder if count == 1 else self.folder / f"stage-{number}"
            if number == 1 and first_stage is not None:
                network, result = self._given(first_stage)
            else:
                network, result = self._stage(
                    number, folder, self.training, context, networks, seed=self.settings.training.seed
                )
            networks.append(network)
            results.append(result)
            if number < count and self.settings.context.input == "volume":
                context = self._context(number, folder, network, result, context, networks)
        return networks, results

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
            discriminator = discriminators.build(
                s.discriminator.name, patch=s.training.patch, slope=s.discriminator.slope
            ).to(self.device)
        batches = PatchBatches(
            cases,
            self.normalization,
            patch=s.training.patch,
            batch=s.training.batch,
            seed=seed * 1000 + number,
            min_head=s.training.min_head,
            context=[context[case.name] for case in cases] if context else None,
            margin=s.training.context,
        )
        previous = None
        if number > 1 and s.context.input == "patch":
            previous = PatchChain(earlier).eval()
        result = train_stage(
            folder,
            generator,
            discriminator,
            batches,
            lambda network: self._validate(network, context, previous),
            epochs=s.training.epochs,
            steps_per_epoch=s.training.steps_per_epoch,
            **dataclasses.asdict(s.loss),
            learning_rate=s.training.learning_rate,
            betas=(s.training.beta1, s.training.beta2),
            seed=seed * 1000 + number,
            workers=s.training.workers,
            checkpoint_minutes=s.training.checkpoint_minutes,
            device=self.device,
            precision=s.training.precision,
            previous=previous,
            identity=self._identity(number, cases, seed),
            progress=_labelled(self.progress, label or (f"stage {number}, " if s.context.stages > 1 else "")),
            should_stop=self.should_stop,
        )
        return generator, result

    def _network(self, number: int) -> nn.Module:
        options = self.settings.generator
        in_channels = 1 if number == 1 else 2
        generator = generators.build(
            options.name,
            in_channels=in_channels,
            residual=options.residual,
            slope=options.slope,
            convolution=options.convolution,
        )
        return generator.to(self.device)

    def _given(self, path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
        model = load_model(path, self.device)
        wanted = decisive(self.settings)
        for table in ("context", "synthesis"):
            wanted.pop(table)
        found = {key: decisive(model.settings)[key] for key in wanted}
        names = [case["case"] for case in model.provenance["training_cases"]]
        if found != wanted or names != [case.name for case in self.training]:
            raise CheckpointError(
                "the model given as first stage was trained with other settings or subjects",
                where=path,
                found=difference(found, wanted) or f"subjects {names}",
                do="Leave it out; the first stage is then trained here.",
            )
        return model.generators[0], model.provenance["stages"][0]

    def _context(
        self,
        number: int,
        folder: Path,
        network: nn.Module,
        result: dict[str, Any],
        context: dict[str, np.ndarray],
        earlier: list[nn.Module],
    ) -> dict[str, np.ndarray]:
        """Return for each case the volume that this stage makes: the next stage's second channel, in z-scores."""
        makers = {case.name: (network, result) for case in self.validation}
        if self.settings.context.training_input == "in_sample":
            makers |= {case.name: (network, result) for case in self.training}
        else:
            for fold, (inside, outside) in enumerate(self._folds(), 1):
                maker, outcome = self._stage(
                    number,
                    folder / f"fold-{fold}",
                    inside,
                    context,
                    earlier[:-1],
                    seed=self.settings.training.seed + 100 * fold,
                    label=f"stage {number}, fold {fold}, ",
                )
                makers |= {case.name: (maker, outcome) for case in outside}
        made = {}
        for index, case in enumerate([*self.training, *self.validation]):
            if self.progress:
                self.progress(index, len(makers), f"context of stage {number + 1}")
            maker, result = makers[case.name]
            path = folder / "context" / f"{case.name}_step-{result['best']['step']}.npy"
            if not path.exists():
                volume = self._map(maker, case, context, None, self.settings.context.stride)
                with atomic_path(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, volume)
            made[case.name] = np.load(path, mmap_mode="r")
        return made

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
        channels = [self.normalization.source.standardize(case.source)]
        if case.name in context:
            channels.append(np.asarray(context[case.name]))
        if previous is not None:
            network = PatchChain([*previous.generators, network])  # type: ignore[misc]
        return reconstruct(
            np.stack(channels), network, patch=self.settings.training.patch, stride=stride, device=self.device
        )

    def _validate(
        self, network: nn.Module, context: dict[str, np.ndarray], previous: nn.Module | None
    ) -> dict[str, float]:
        """Return the mean `psnr` (dB, unit scale, range 1) and `mae` (z-scores) over the validation volumes."""
        if not self.validation:
            return {}
        target = self.normalization.target
        scores = []
        for case in self.validation:
            synthetic = self._map(network, case, context, previous, self.settings.training.validation_stride)
            truth = np.asarray(case.target)
            scores.append(
                (
                    psnr(truth, target.unit(synthetic), data_range=1.0),
                    mae(target.standardize(truth), synthetic),
                )
            )
        mean = np.mean(scores, 0)
        return {"psnr": float(mean[0]), "mae": float(mean[1])}

    def _identity(self, number: int, cases: list[Case], seed: int) -> dict[str, Any]:
        """Return what a checkpoint of a stage depends on, table by table."""
        return {
            **decisive(self.settings),
            "stage": {"number": number, "seed": seed},
            "training subjects": {"cases": [case.name for case in cases]},
            "validation subjects": {"cases": [case.name for case in self.validation]},
            "scans of": {case.name: _hashes(case) for case in [*cases, *self.validation]},
        }


def _hashes(case: Case) -> str:
    return " ".join(str(case.facts[scan]["sha256"])[:16] for scan in ("source", "target"))


def _labelled(progress: Progress | None, prefix: str) -> Progress | None:
    if progress is None or not prefix:
        return progress
    return lambda done, total, label: progress(done, total, prefix + label)
