"""One step of the training: the discriminator's and the generator's (the reference, section IV)."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unscanned.losses import GeneratorLoss
from unscanned.machine import ranks
from unscanned.machine.offload import keep_on_host
from unscanned.machine.precision import autocast
from unscanned.training.adversary import Adversary
from unscanned.training.average import Average
from unscanned.training.health import check_finite
from unscanned.training.optimizers import clip
from unscanned.training.parts import Part, in_parts

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
        parts: That the patches pass through the networks in, one after another, so that they need less memory.
        offload: Whether a GPU's forward passes leave what the backward pass needs in the host's memory.
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
    parts: int = 1
    offload: bool = False

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

        Where several ranks train together, each has some patches of the step, and losses, gradients and the statistics
        of batch norm are those of all of them.

        Args:
            source: (batch, 1 or 2, i, j, k), z-scores; may be wider than the target by a margin on each side.
            target: (batch, 1, i, j, k), z-scores.
            head: As the target, bool; where it is false, `outside` of the error is left. None: inside everywhere.

        Raises:
            TrainingError: A loss or gradient is not finite; the network that it belongs to has not taken the step.
        """
        with keep_on_host() if self.offload and source.device.type == "cuda" else contextlib.nullcontext():
            return self._take(source, target, head)

    def _take(self, source: Tensor, target: Tensor, head: Tensor | None) -> dict[str, float]:
        adversary = self.adversary if self.adversary is not None and self.adversary.takes_part else None
        condition = _centre(source[:, :1], target.shape[2:])
        parts = [*in_parts(self.parts, source, target, head)]
        # One part keeps its graph for the generator's step. Of several, each is made again when its turn comes.
        kept = [self._synthesize(*part) for part in parts] if len(parts) == 1 else []
        losses: dict[str, float] = {}
        if adversary is not None and self.order == "discriminator_first":
            synthetic = torch.cat(kept or self._drafts(parts))
            losses["d_loss"] = float(adversary.train(condition, target, synthetic))
        patches, made = ranks.total(len(source)), []
        sums: dict[str, float] = defaultdict(float)
        self.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            synthetic = kept.pop() if kept else self._synthesize(*part)
            loss, values = self._losses(part, synthetic, adversary)
            share = len(synthetic) / patches
            (share * loss).backward()
            made.append(synthetic.detach())
            for name, value in values.items():
                sums[name] += share * value
        ranks.add_gradients(self.generator)
        losses |= ranks.totals(sums)
        loss = target.new_tensor(losses["g_loss"])
        clip(self.generator, check_finite(loss, self.generator, "generator"), self.clip_norm)
        self.optimizer.step()
        if adversary is not None and self.order == "generator_first":
            losses["d_loss"] = float(adversary.train(condition, target, torch.cat(made)))
        return losses

    def _synthesize(self, source: Tensor, target: Tensor, head: Tensor | None) -> Tensor:
        """Return what the generator makes of patches, as the losses see it."""
        with autocast(self.precision, source.device):
            if self.previous is not None:
                with torch.no_grad():
                    source = torch.cat([source[:, :1], self.previous(source[:, :1])], 1)
            synthetic = self.generator(source).to(target.dtype)
        synthetic = _centre(synthetic, target.shape[2:])
        return synthetic if head is None else torch.where(head, synthetic, target + self.outside * (synthetic - target))

    @torch.no_grad()
    def _drafts(self, parts: Sequence[Part]) -> list[Tensor]:
        """Return what the generator makes of all parts, without a trace in its buffers."""
        buffers = {name: buffer.clone() for name, buffer in self.generator.named_buffers()}
        drafts = [self._synthesize(*part) for part in parts]
        for name, buffer in self.generator.named_buffers():
            buffer.copy_(buffers[name])
        return drafts

    def _losses(self, part: Part, synthetic: Tensor, adversary: Adversary | None) -> tuple[Tensor, dict[str, float]]:
        """Return the generator's loss of some patches, and what it consists of."""
        source, target, _ = part
        loss, terms = self.loss(synthetic, target)
        values: dict[str, float] = {}
        if adversary is not None:
            adversarial_term = adversary.generator_loss(_centre(source[:, :1], target.shape[2:]), synthetic)
            values["adversarial"] = float(adversarial_term.detach())
            loss = loss + self.adversarial * adversarial_term
        return loss, {**values, "g_loss": float(loss.detach()), **terms}


def _centre(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Cut the margin off a (batch, channel, i, j, k) tensor."""
    if tensor.shape[2:] == shape:
        return tensor
    i, j, k = ((n - m) // 2 for n, m in zip(tensor.shape[2:], shape, strict=True))
    return tensor[:, :, i : i + shape[0], j : j + shape[1], k : k + shape[2]]
