"""One step of the training: the discriminator's and the generator's (the reference, section IV)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unscanned.losses import GeneratorLoss
from unscanned.machine.precision import autocast
from unscanned.training.adversary import Adversary
from unscanned.training.average import Average
from unscanned.training.health import check_finite
from unscanned.training.optimizers import clip

__all__ = ["Step"]


@dataclass(frozen=True, eq=False)
class Step:
    """Takes one step of both networks.

    Attributes:
        generator: Maps (batch, 1 or 2, i, j, k) to (batch, 1, i, j, k).
        optimizer: Over the generator's parameters.
        loss: The generator's, but for its adversarial term.
        adversary: None trains without the adversarial term.
        adversarial: Weight of that term.
        previous: For an auto-context stage whose context is the previous output on the same patch: the earlier stages.
        precision: Of the networks' forward and backward passes.
        order: Which network takes its step first: discriminator_first or generator_first.
        average: Of the generator's weights; None keeps none.
        clip_norm: Norm that the generator's gradient is cut to; None leaves it.
        outside: What is left of the error outside the head, for batches that say where that is.
        adversarial_after: Steps without the adversary at the beginning.
        goes_on: Whether training goes on without the adversary when it has collapsed.
    """

    generator: nn.Module
    optimizer: torch.optim.Optimizer
    loss: GeneratorLoss
    adversary: Adversary | None = None
    adversarial: float = 0.0
    previous: nn.Module | None = None
    precision: str = "float32"
    order: str = "discriminator_first"
    average: Average | None = None
    clip_norm: float | None = None
    outside: float = 1.0
    adversarial_after: int = 0
    goes_on: bool = False

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What a step changes, by name."""
        networks = {"generator": self.generator}
        if self.adversary is not None:
            networks["discriminator"] = self.adversary.discriminator
        if self.average is not None:
            networks["average"] = self.average.network
        return networks

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """What moves the networks, by name."""
        own = {"generator_optimizer": self.optimizer}
        return own if self.adversary is None else {**own, "discriminator_optimizer": self.adversary.optimizer}

    def __call__(self, source: Tensor, target: Tensor, head: Tensor | None = None) -> dict[str, float]:
        """Return the losses before the step; the terms of `GeneratorLoss` are given per voxel.

        Args:
            source: (batch, 1 or 2, i, j, k), z-scores; may be wider than the target by a margin on each side.
            target: (batch, 1, i, j, k), z-scores.
            head: As the target, bool; where it is false, `outside` of the error is left. None: inside everywhere.

        Raises:
            TrainingError: A loss or gradient is not finite; the network that it belongs to has not taken the step.
        """
        with autocast(self.precision, source.device):
            if self.previous is not None:
                with torch.no_grad():
                    source = torch.cat([source[:, :1], self.previous(source[:, :1])], 1)
            synthetic = self.generator(source).to(target.dtype)
        condition, synthetic = (_centre(tensor, target.shape[2:]) for tensor in (source[:, :1], synthetic))
        if head is not None:
            synthetic = torch.where(head, synthetic, target + self.outside * (synthetic - target))
        adversary = self.adversary if self.adversary is not None and self.adversary.takes_part else None
        losses: dict[str, float] = {}
        if adversary is not None and self.order == "discriminator_first":
            losses["d_loss"] = float(adversary.train(condition, target, synthetic))
        loss, terms = self.loss(synthetic, target)
        if adversary is not None:
            adversarial_term = adversary.generator_loss(condition, synthetic)
            losses["adversarial"] = float(adversarial_term.detach())
            loss = loss + self.adversarial * adversarial_term
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip(self.generator, check_finite(loss, self.generator, "generator"), self.clip_norm)
        self.optimizer.step()
        if adversary is not None and self.order == "generator_first":
            losses["d_loss"] = float(adversary.train(condition, target, synthetic))
        return {**losses, "g_loss": float(loss.detach()), **terms}


def _centre(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Cut the margin off a (batch, channel, i, j, k) tensor."""
    if tensor.shape[2:] == shape:
        return tensor
    i, j, k = ((n - m) // 2 for n, m in zip(tensor.shape[2:], shape, strict=True))
    return tensor[:, :, i : i + shape[0], j : j + shape[1], k : k + shape[2]]
