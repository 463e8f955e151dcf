"""The adversary: one object that owns the discriminator and its optimizer (after audiocraft's adversarial loss)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unscanned.losses import CRITERIA, Criterion
from unscanned.machine.precision import autocast
from unscanned.training.health import check_finite

__all__ = ["Adversary"]


class Adversary:
    """Trains the discriminator, and gives the generator its adversarial term.

    Args:
        discriminator: Maps source and target to logits.
        optimizer: Over the discriminator's parameters.
        precision: Of the discriminator's arithmetic on a GPU; the losses are float32. On a CPU it is float32 always:
            oneDNN's bfloat16 gradient of 3^3 weights on 2^3 voxels, where the last convolution is for 16^3 patches, is
            now and then not a number.
        criterion: What both networks' losses are.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: str = "float32",
        criterion: Criterion = CRITERIA["cross_entropy"],
    ) -> None:
        self.discriminator, self.optimizer = discriminator, optimizer
        self.precision, self.criterion = precision, criterion

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """Return what the discriminator says, (batch, 1)."""
        with autocast("float32" if source.device.type == "cpu" else self.precision, source.device):
            return self.discriminator(source, target).to(source.dtype)

    def train(self, source: Tensor, target: Tensor, synthetic: Tensor) -> Tensor:
        """Take one step on an acquired and a synthetic batch, and return the loss before it.

        Args:
            source: (batch, 1, i, j, k), the condition.
            target: Acquired.
            synthetic: Made by the generator; detached here.

        Raises:
            TrainingError: The loss or its gradient is not finite; no step is taken.
        """
        loss = self.criterion.discriminator(self.logits(source, target), self.logits(source, synthetic.detach()))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        check_finite(loss, self.discriminator, "discriminator")
        self.optimizer.step()
        return loss.detach()

    def generator_loss(self, source: Tensor, synthetic: Tensor) -> Tensor:
        """Return the generator's adversarial term; no gradient reaches the discriminator's weights."""
        self.discriminator.requires_grad_(False)
        try:
            return self.criterion.generator(self.logits(source, synthetic))
        finally:
            self.discriminator.requires_grad_(True)
