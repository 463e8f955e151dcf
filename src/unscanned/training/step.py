"""One step of the training: the discriminator's and the generator's (the reference, section IV)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unscanned.losses import GeneratorLoss
from unscanned.machine.precision import autocast
from unscanned.training.adversary import Adversary
from unscanned.training.health import check_finite

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
    """

    generator: nn.Module
    optimizer: torch.optim.Optimizer
    loss: GeneratorLoss
    adversary: Adversary | None = None
    adversarial: float = 0.0
    previous: nn.Module | None = None
    precision: str = "float32"
    order: str = "discriminator_first"

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What it trains, by name."""
        generator = {"generator": self.generator}
        return generator if self.adversary is None else {**generator, "discriminator": self.adversary.discriminator}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """What moves the networks, by name."""
        own = {"generator_optimizer": self.optimizer}
        return own if self.adversary is None else {**own, "discriminator_optimizer": self.adversary.optimizer}

    def __call__(self, source: Tensor, target: Tensor) -> dict[str, float]:
        """Return the losses before the step; the terms of `GeneratorLoss` are given per voxel.

        Args:
            source: (batch, 1 or 2, i, j, k), z-scores; may be wider than the target by a margin on each side.
            target: (batch, 1, i, j, k), z-scores.

        Raises:
            TrainingError: A loss or gradient is not finite; the network that it belongs to has not taken the step.
        """
        with autocast(self.precision, source.device):
            if self.previous is not None:
                with torch.no_grad():
                    source = torch.cat([source[:, :1], self.previous(source[:, :1])], 1)
            synthetic = self.generator(source).to(target.dtype)
        condition, synthetic = (_centre(tensor, target.shape[2:]) for tensor in (source[:, :1], synthetic))
        losses: dict[str, float] = {}
        if self.adversary is not None and self.order == "discriminator_first":
            losses["d_loss"] = float(self.adversary.train(condition, target, synthetic))
        loss, terms = self.loss(synthetic, target)
        if self.adversary is not None:
            adversarial_term = self.adversary.generator_loss(condition, synthetic)
            losses["adversarial"] = float(adversarial_term.detach())
            loss = loss + self.adversarial * adversarial_term
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        check_finite(loss, self.generator, "generator")
        self.optimizer.step()
        if self.adversary is not None and self.order == "generator_first":
            losses["d_loss"] = float(self.adversary.train(condition, target, synthetic))
        return {**losses, "g_loss": float(loss.detach()), **terms}


def _centre(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Cut the margin off a (batch, channel, i, j, k) tensor."""
    if tensor.shape[2:] == shape:
        return tensor
    i, j, k = ((n - m) // 2 for n, m in zip(tensor.shape[2:], shape, strict=True))
    return tensor[:, :, i : i + shape[0], j : j + shape[1], k : k + shape[2]]
