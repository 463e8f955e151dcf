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
        keep: Share of the generator's weights as they are now that every average holds, below 1: a fine-tuned network
            forgets less of what it knew (Wortsman et al., CVPR 2022, eq. 1, on the way instead of at the end).

    Attributes:
        network: A copy of the generator with the averaged weights; without gradients.
    """

    def __init__(self, generator: nn.Module, decay: float, *, keep: float = 0.0) -> None:
        self.generator, self.decay, self.keep = generator, decay, keep
        self.network = copy.deepcopy(generator).requires_grad_(False)
        self._start = copy.deepcopy(self.network.state_dict()) if keep > 0 else None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, from 1."""
        kept = min(self.decay, step / (step + 9))
        now = self.generator.state_dict()
        for name, mean in self.network.state_dict().items():
            if mean.is_floating_point():
                latest = now[name] if self._start is None else now[name].lerp(self._start[name], self.keep)
                mean.lerp_(latest, 1 - kept)
            else:
                mean.copy_(now[name])
