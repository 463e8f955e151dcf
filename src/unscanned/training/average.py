"""The average of a generator's weights over the last steps: what the recipe validates, keeps and calls the model."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["Average"]


class Average:
    """An exponential moving average of weights (Polyak and Juditsky 1992; Tarvainen and Valpola, NeurIPS 2017).

    After step t the average keeps min(decay, t / (t + 9)) of itself, so that the first weights are soon forgotten. The
    running means and variances of batch norm are averaged as the weights are, since they belong to those weights; what
    is counted is taken as it is.

    Args:
        generator: Whose weights are averaged; not changed.
        decay: Share of the average that a step leaves, below 1.

    Attributes:
        network: A copy of the generator with the averaged weights; without gradients.
    """

    def __init__(self, generator: nn.Module, decay: float) -> None:
        self.generator, self.decay = generator, decay
        self.network = copy.deepcopy(generator).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, from 1."""
        kept = min(self.decay, step / (step + 9))
        now = self.generator.state_dict()
        for name, mean in self.network.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(now[name], 1 - kept)
            else:
                mean.copy_(now[name])
