"""What all stages of a run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from unscanned.progress import Progress
from unscanned.settings import Settings
from unscanned.synthesis.model import Model
from unscanned.training.prepare import Case
from unscanned.training.simulated import SimulatedPairs
from unscanned.volumes.intensity import Normalization

__all__ = ["TrainingRun"]


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What all stages of a run share.

    Attributes:
        folder: The run's.
        settings: What to train.
        training: Cases to train on.
        validation: Cases to choose the epoch with.
        normalization: Intensity constants of all training cases, those that a fold leaves out included.
        device: Where the networks are.
        progress: For each part of the run by its name, as `run_costs` has them, called with (done, total, label).
        should_stop: Asked after each step.
        simulated: Pairs that some patches come from beside the training cases; None: there are none.
        start: Model whose generators the stages start from; None: their weights are drawn.
    """

    folder: Path
    settings: Settings
    training: Sequence[Case]
    validation: Sequence[Case]
    normalization: Normalization
    device: torch.device
    progress: Mapping[str, Progress | None] = field(default_factory=dict)
    should_stop: Callable[[], bool] = lambda: False
    simulated: SimulatedPairs | None = None
    start: Model | None = None
