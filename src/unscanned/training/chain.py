"""The order of a run's stages: plain for a chain of one, and the auto-context chain with its folds.

The reference, section VIII: each generator after the first also sees what the one before it made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from unscanned.errors import CheckpointError, DatasetError
from unscanned.progress import labelled
from unscanned.settings import decisive, difference
from unscanned.synthesis.model_file import load_model
from unscanned.training.context_volumes import context_volumes
from unscanned.training.inputs import TrainingRun
from unscanned.training.prepare import Case
from unscanned.training.stage import Stage, StageFailed

__all__ = ["Chain"]


class Chain:
    """The stages of one run, each on the volumes that the one before made.

    Args:
        run: What they share.

    Attributes:
        networks: The generators so far, in order.
        results: What the training of each took.
    """

    def __init__(self, run: TrainingRun) -> None:
        self.run, self.context = run, run.settings.context
        self.networks: list[nn.Module] = []
        self.results: list[dict[str, Any]] = []

    @property
    def is_complete(self) -> bool:
        """Whether there is a generator for each stage, be it the best epoch of a training that failed later."""
        return len(self.networks) == self.context.stages

    def train(self, first_stage: str | Path | None = None) -> None:
        """Train the stages one after another.

        Args:
            first_stage: Folder of a model to take as the first stage, in place of a training.

        Raises:
            DatasetError: There are fewer training subjects than folds.
            StageFailed: A stage diverged or collapsed; if it is the last one, its best epoch completes the chain.
            UnscannedError: As for `Stage.train`.
        """
        self._check_folds()
        count = self.context.stages
        volumes: Mapping[str, np.ndarray] = {}
        for number in range(1, count + 1):
            folder = self.run.folder if count == 1 else self.run.folder / f"stage-{number}"
            stage = self._stage(number, folder, [*self.run.training], volumes)
            try:
                trained = self._given(first_stage) if number == 1 and first_stage is not None else stage.train(self.run)
            except StageFailed as error:
                if number == count and error.best is not None:
                    self._keep(*error.best)
                raise
            self._keep(*trained)
            if number < count and self.context.input == "volume":
                makers = self._makers(stage)
                volumes = context_volumes(self.run, folder / "context", number, makers, volumes)

    def _keep(self, network: nn.Module, result: dict[str, Any]) -> None:
        self.networks.append(network)
        self.results.append(result)

    def _stage(
        self, number: int, folder: Path, cases: list[Case], volumes: Mapping[str, np.ndarray], fold: int = 0
    ) -> Stage:
        earlier = self.networks[: number - 1] if self.context.input == "patch" else ()
        seed = self.run.settings.training.seed + 100 * fold
        part, count = f"stage {number}" + (f", fold {fold}" if fold else ""), self.context.stages
        label = f"stage {number} of {count}, " if count > 1 else ""
        label += f"fold {fold} of {self.context.folds}, " if fold else ""
        progress = labelled(self.run.progress.get(part), label)
        return Stage(number, folder, cases, seed, volumes, earlier, progress)

    def _given(self, path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
        """Return the generator of a model that was trained as the first stage would be."""
        model = load_model(path, self.run.device)
        found, wanted = (
            {table: values for table, values in decisive(settings).items() if table != "context"}
            for settings in (model.settings, self.run.settings)
        )
        facts = model.provenance
        scans = [case.scans for case in self.run.training]
        validation = [case.name for case in self.run.validation]
        start = (facts.get("started_from") or {}).get("sha256"), self.run.start and self.run.start.sha256
        same = facts["training_cases"] == scans and facts["validation_cases"] == validation and start[0] == start[1]
        if found != wanted or not same:
            names = ", ".join(case["case"] for case in facts["training_cases"])
            raise CheckpointError(
                "the model given as first stage was trained with other settings or scans",
                where=path,
                found=difference(found, wanted)
                or f"scans of {names}, validated on {', '.join(facts['validation_cases'])}",
                do="Leave it out; the first stage is then trained here.",
            )
        return model.generators[0], facts["stages"][0]

    def _makers(self, stage: Stage) -> dict[str, nn.Module]:
        """Return for each case the generator that makes its volume: out of fold, one that did not train on it."""
        makers = {case.name: self.networks[-1] for case in [*self.run.validation, *self.run.training]}
        if self.context.training_input == "out_of_fold":
            for fold, held_out in enumerate(self._folds(), 1):
                inside = [case for case in self.run.training if case.subject not in held_out]
                folder = stage.folder / f"fold-{fold}"
                maker, _ = self._stage(stage.number, folder, inside, stage.volumes, fold).train(self.run)
                makers |= {case.name: maker for case in self.run.training if case.subject in held_out}
        return makers

    def _subjects(self) -> list[str]:
        return sorted({case.subject for case in self.run.training})

    def _check_folds(self) -> None:
        is_divided = self.context.stages > 1 and self.context.training_input == "out_of_fold"
        if is_divided and len(self._subjects()) < self.context.folds:
            raise DatasetError(
                "fewer training subjects than folds",
                where="context.folds",
                found=f"{len(self._subjects())} subjects",
                expected=f"at least {self.context.folds}",
                do="Set context.folds lower, or context.training_input to in_sample.",
            )

    def _folds(self) -> list[set[str]]:
        """Return the subjects that each fold does not train on; sessions of a subject stay together."""
        subjects, count = self._subjects(), self.context.folds
        return [set(subjects[fold::count]) for fold in range(count)]
