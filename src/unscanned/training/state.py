"""Everything that a training step changes, and how it is put on disk and taken back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unscanned.machine import ranks
from unscanned.machine.provenance import environment
from unscanned.training.checkpoint import Checkpoint, load_checkpoint, restore, save_checkpoint, state

__all__ = ["Record", "TrainingState"]


@dataclass
class Record:
    """What a stage remembers beside its networks.

    Attributes:
        best: The best epoch so far, its step and its scores.
        seconds: Taken by all steps.
        waited: Seconds of them spent waiting for patches.
        validated: Steps taken at the last validation.
        scores: Of the last validation.
        rolled_back_from: The step that was not finite, if there was one; then the patches come in another order.
        signs: For each sign of a training that goes wrong, the validations in a row that showed it.
        adversary_left: Steps taken when the adversary was given up; None where it was not.
    """

    best: dict[str, Any] | None = None
    seconds: float = 0.0
    waited: float = 0.0
    validated: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    rolled_back_from: int | None = None
    signs: dict[str, int] = field(default_factory=dict)
    adversary_left: int | None = None


class TrainingState:
    """The networks, their optimizers, the number of steps taken and the record.

    All ranks of a training have the same; the first reads and writes the files, and the others wait for it.

    Args:
        folder: The stage's; gets checkpoints/ and best/.
        modules: The networks, by name.
        optimizers: By name.
        identity: Settings and data, table by table; a checkpoint with another one is refused.
        device: Where the networks are.
    """

    def __init__(
        self,
        folder: Path,
        modules: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        identity: Mapping[str, Any],
        device: torch.device | str,
    ) -> None:
        self.folder, self.modules, self.optimizers, self.identity = folder, modules, optimizers, identity
        made_with = environment(device)
        self.environment = {key: made_with[key] for key in ("device", "torch", "threads")}
        if ranks.count() > 1:
            self.environment["devices"] = ranks.count()
        self.step, self.record = 0, Record()

    @property
    def chosen(self) -> nn.Module:
        """The network that is validated and kept: the average of the generator's weights where there is one."""
        return self.modules.get("average", self.modules["generator"])

    def load(self, *, last: int | None = None) -> list[str] | None:
        """Take back the newest checkpoint.

        Args:
            last: Later steps are left alone.

        Returns:
            What the user should know about it; None where there is no checkpoint.

        Raises:
            CheckpointError: As for `load_checkpoint`.
        """
        checkpoint = ranks.first(lambda: load_checkpoint(self.folder / "checkpoints", self.identity, last=last))
        if checkpoint is None:
            return None
        restore(checkpoint.tensors, self.modules, self.optimizers)
        self.step, self.record = checkpoint.step, Record(**checkpoint.facts.record)
        return [*checkpoint.warnings, *self._changes(checkpoint)]

    def save(self, *, keep: int) -> None:
        """Write a checkpoint; that of step `keep` stays.

        Raises:
            ResourceError: The disk is full.
        """
        facts = {"record": asdict(self.record), "environment": self.environment}
        self._write("checkpoints", state(self.modules, self.optimizers), facts, keep={keep})

    def save_best(self) -> None:
        """Write the chosen network as the best generator.

        Raises:
            ResourceError: The disk is full.
        """
        self._write("best", state({"generator": self.chosen}, {}), {"best": self.record.best})

    def load_best(self) -> bool:
        """Give the generator the best epoch's weights; False where no epoch has ended yet."""
        chosen = ranks.first(lambda: load_checkpoint(self.folder / "best", self.identity))
        if chosen is None:
            return False
        restore(chosen.tensors, {"generator": self.modules["generator"]}, {})
        self.modules["generator"].eval()
        return True

    def _write(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any], keep: Collection[int] = ()) -> None:
        ranks.first(
            lambda: save_checkpoint(self.folder / name, self.step, tensors, facts, identity=self.identity, keep=keep)
        )

    def _changes(self, checkpoint: Checkpoint) -> list[str]:
        before, after = ({"devices": 1, **facts} for facts in (checkpoint.facts.environment, self.environment))
        changes = [f"{key} was {before.get(key)}, is {now}" for key, now in after.items() if before.get(key) != now]
        if not changes:
            return []
        return [
            f"resumed on other devices or another number of threads ({', '.join(changes)}): from here the run equals "
            "an uninterrupted one statistically, not bit for bit"
        ]
