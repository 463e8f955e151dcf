"""A stage of a run: one generator to train, as a value that says all that it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import convert_conv3d_weight_memory_format

from unscanned.errors import TrainingError
from unscanned.losses import CRITERIA, TERMS, UNIT_TERMS, GeneratorLoss
from unscanned.models import discriminators, generators
from unscanned.models.base import GeneratorBase
from unscanned.models.shared_norm import share_batch_norm
from unscanned.models.wrappers import inner
from unscanned.progress import Progress
from unscanned.settings import Settings, Training, decisive, to_dict
from unscanned.synthesis.context import PatchChain
from unscanned.training import optimizers
from unscanned.training.adversary import Adversary
from unscanned.training.average import Average
from unscanned.training.batches import PatchBatches
from unscanned.training.checkpoint import load_checkpoint, restore
from unscanned.training.inputs import TrainingRun
from unscanned.training.loop import train_stage
from unscanned.training.prepare import Case
from unscanned.training.step import Step
from unscanned.training.validation import validate
from unscanned.volumes.intensity import Contrast

__all__ = ["Stage", "StageFailed", "build_generator", "build_step", "digest_of", "weights_digest"]


class StageFailed(TrainingError):
    """A training that diverged or collapsed.

    Attributes:
        best: The generator of its best epoch, if one had ended, and that epoch with its scores.
    """

    best: tuple[nn.Module, dict[str, Any]] | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """One generator to train.

    Attributes:
        number: Place in the chain, from 1.
        folder: Gets logs, checkpoints and the best epoch.
        cases: Cases to train on: all of the run's, or those of a fold.
        seed: Of the weights, the batches and the steps.
        volumes: What the stage before made of each case, by name, (i, j, k) z-scores; empty where there is none.
        earlier: The generators before this one, where its context is their output on the same patch.
        progress: Called with (steps done, all steps, label).
    """

    number: int
    folder: Path
    cases: Sequence[Case]
    seed: int
    volumes: Mapping[str, np.ndarray] = field(default_factory=dict)
    earlier: Sequence[nn.Module] = ()
    progress: Progress | None = None

    @cached_property
    def previous(self) -> PatchChain | None:
        """The generators before this one as a network of a patch; None where the context is a volume or none."""
        return PatchChain(self.earlier).eval() if self.earlier else None

    def train(self, run: TrainingRun) -> tuple[nn.Module, dict[str, Any]]:
        """Train it, or go on where an interrupted training was.

        Returns:
            The generator of the best epoch, and what the training took.

        Raises:
            StageFailed: The training diverged or collapsed.
            UnscannedError: As for `train_stage`.
        """
        seed = (1000 * self.seed + self.number) % 2**63  # what PyTorch takes
        torch.manual_seed(seed)
        start = None if run.start is None else run.start.generators[self.number - 1]
        step = build_step(run.settings, self.number, run.device, self.previous, run.normalization.target, start)
        settings = run.settings.training.model_copy(update={"seed": seed})
        identity = self.identity(run)
        try:
            result = train_stage(
                self.folder,
                step,
                self._batches(run, settings),
                partial(validate, run, self.volumes, self.previous, step.adversary),
                settings,
                device=run.device,
                identity=identity,
                progress=self.progress,
                should_stop=run.should_stop,
                validates=bool(run.validation),
            )
        except TrainingError as error:
            failed = StageFailed(**error.parts)
            chosen = load_checkpoint(self.folder / "best", identity)
            if chosen is not None:
                restore(chosen.tensors, {"generator": step.generator}, {})
                failed.best = step.generator.eval(), {"best": chosen.facts.best, "ended": str(error)}
            raise failed from error
        return step.generator, result

    def _batches(self, run: TrainingRun, settings: Training) -> PatchBatches:
        return PatchBatches(
            self.cases,
            run.normalization,
            settings,
            self.volumes or None,
            augmentation=run.settings.augmentation,
            gives_head=run.settings.loss.outside < 1,
            simulated=run.simulated,
        )

    def identity(self, run: TrainingRun) -> dict[str, Any]:
        """Return what a checkpoint of this stage depends on, table by table."""
        all_cases = [*self.cases, *run.validation]
        identity = {
            **decisive(run.settings),
            "stage": {"number": self.number, "seed": self.seed},
            "training subjects": {"cases": [case.name for case in self.cases]},
            "validation subjects": {"cases": [case.name for case in run.validation]},
            "scans of": {case.name: _hashes(case) for case in all_cases},
            "intensities": run.normalization.of_z_scores(),
        }
        if run.simulated is not None:
            identity["label maps"] = run.simulated.identity()
        if run.start is not None:
            identity["start"] = {"weights": weights_digest(run.start.generators[self.number - 1])}
        # An earlier stage that trained on, to another best epoch, makes another input for this one.
        if self.volumes:
            identity["earlier stages' volume of"] = {
                case.name: digest_of(self.volumes[case.name]) for case in all_cases
            }
        elif self.previous is not None:
            identity["earlier stages'"] = {"weights": weights_digest(self.previous)}
        return identity


def build_generator(settings: Settings, stage: int, device: torch.device | str) -> nn.Module:
    """Return the fresh generator of a stage, from torch's global random state."""
    network = generators.build(in_channels=1 if stage == 1 else 2, **to_dict(settings.generator)).to(device)
    kind = inner(network)
    if torch.device(device).type == "cpu" and isinstance(kind, GeneratorBase):
        convert_conv3d_weight_memory_format(network, kind.layout)
    return network


def build_step(
    settings: Settings,
    stage: int,
    device: torch.device | str,
    previous: nn.Module | None = None,
    target: Contrast | None = None,
    start: nn.Module | None = None,
) -> Step:
    """Return fresh networks with their losses and optimizers, from torch's global random state: what a step needs.

    Args:
        settings: What to train.
        stage: Place in the chain, from 1; a later one has two input channels.
        device: Where to put the networks.
        previous: The earlier stages, where the context is their output on the same patch.
        target: The target's constants, for terms of the loss in unit scale; None takes z-scores for it.
        start: A generator of the same kind, whose weights the fresh one gets.
    """
    loss, training = settings.loss, settings.training
    generator, adversary = build_generator(settings, stage, device), None
    if start is not None:
        generator.load_state_dict(start.state_dict())
    share_batch_norm(generator)
    if loss.adversarial > 0:
        network = discriminators.build(patch=training.patch, **to_dict(settings.discriminator)).to(device)
        share_batch_norm(network)
        optimizer = optimizers.build(network, training, share=training.discriminator_rate)
        criterion, clip_norm = CRITERIA[loss.criterion], training.clip_norm
        adversary = Adversary(
            network,
            optimizer,
            training.precision,
            criterion,
            clip_norm=clip_norm,
            penalty=loss.gradient_penalty,
            parts=training.accumulate,
        )
    return Step(
        generator,
        optimizers.build(generator, training),
        GeneratorLoss(
            {name: getattr(loss, name) for name in (*TERMS, *UNIT_TERMS)},
            loss.reduction,
            mean=target.mean if target else 0.0,
            std=target.std if target else 1.0,
        ),
        adversary,
        adversarial=loss.adversarial,
        previous=previous,
        precision=training.precision,
        order=training.order,
        average=Average(generator, training.average, keep=training.keep) if training.average > 0 else None,
        clip_norm=training.clip_norm,
        outside=loss.outside,
        adversarial_after=loss.adversarial_after,
        goes_on=loss.on_collapse == "regression",
        parts=training.accumulate,
        offload=training.offload,
    )


def weights_digest(network: nn.Module) -> str:
    """Return 16 hexadecimal digits of a network's weights and buffers."""
    return digest_of(*(tensor.detach().cpu().numpy() for tensor in network.state_dict().values()))


def digest_of(*arrays: np.ndarray) -> str:
    """Return 16 hexadecimal digits of the content of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _hashes(case: Case) -> str:
    return f"{case.facts.source.sha256[:16]} {case.facts.target.sha256[:16]}"
