"""The adversary: one object that owns the discriminator and its optimizer (after audiocraft's adversarial loss)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unscanned.losses import CRITERIA, Criterion, gradient_penalty
from unscanned.machine import ranks
from unscanned.machine.precision import autocast
from unscanned.training.health import check_finite
from unscanned.training.optimizers import clip
from unscanned.training.parts import in_parts

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
        clip_norm: Norm that the discriminator's gradient is cut to; None leaves it.
        penalty: Weight of the squared gradient of the logits at acquired patches.
        parts: That patches pass through the discriminator in, one after another.

    Attributes:
        takes_part: Whether steps train the discriminator and give the generator its term.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: str = "float32",
        criterion: Criterion = CRITERIA["cross_entropy"],
        *,
        clip_norm: float | None = None,
        penalty: float = 0.0,
        parts: int = 1,
    ) -> None:
        self.discriminator, self.optimizer = discriminator, optimizer
        self.precision, self.criterion, self.clip_norm, self.penalty = precision, criterion, clip_norm, penalty
        self.parts = parts
        self.takes_part = True

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
        patches, loss = ranks.total(len(source)), source.new_zeros(())
        self.optimizer.zero_grad(set_to_none=True)
        for condition, acquired, made in in_parts(self.parts, source, target.detach(), synthetic.detach()):
            own = self._loss(condition, acquired.requires_grad_(self.penalty > 0), made)
            share = len(condition) / patches
            (share * own).backward()
            loss += share * own.detach()
        ranks.add_gradients(self.discriminator)
        loss = loss.new_tensor(ranks.total(float(loss)))
        clip(self.discriminator, check_finite(loss, self.discriminator, "discriminator"), self.clip_norm)
        self.optimizer.step()
        return loss

    def _loss(self, source: Tensor, target: Tensor, synthetic: Tensor) -> Tensor:
        real = self.logits(source, target)
        loss = self.criterion.discriminator(real, self.logits(source, synthetic))
        return loss + self.penalty * gradient_penalty(real, target) if self.penalty > 0 else loss

    def generator_loss(self, source: Tensor, synthetic: Tensor) -> Tensor:
        """Return the generator's adversarial term; no gradient reaches the discriminator's weights."""
        self.discriminator.requires_grad_(False)
        try:
            return self.criterion.generator(self.logits(source, synthetic))
        finally:
            self.discriminator.requires_grad_(True)
