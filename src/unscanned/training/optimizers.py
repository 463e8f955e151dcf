"""Optimizers by name. The reference names none; Adam is its author's earlier choice."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from unscanned.errors import SettingsError
from unscanned.settings import Training

__all__ = ["OPTIMIZERS", "build"]

Betas = tuple[float, float]
Parameters = Iterable[nn.Parameter]


def adam(parameters: Parameters, learning_rate: float, betas: Betas) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), in one pass over the weights."""
    return torch.optim.Adam(parameters, learning_rate, betas, fused=True)


def adamw(parameters: Parameters, learning_rate: float, betas: Betas) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay of 0.01 (Loshchilov and Hutter 2019)."""
    return torch.optim.AdamW(parameters, learning_rate, betas, fused=True)


def rmsprop(parameters: Parameters, learning_rate: float, betas: Betas) -> torch.optim.Optimizer:
    """RMSprop (Tieleman and Hinton 2012): momentum betas[0], and betas[1] as the decay of the squares."""
    return torch.optim.RMSprop(parameters, learning_rate, alpha=betas[1], momentum=betas[0])


def sgd(parameters: Parameters, learning_rate: float, betas: Betas) -> torch.optim.Optimizer:
    """Gradient descent with momentum betas[0]."""
    return torch.optim.SGD(parameters, learning_rate, momentum=betas[0])


OPTIMIZERS: dict[str, Callable[[Parameters, float, Betas], torch.optim.Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "sgd": sgd,
}


def build(network: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name, over a network's weights.

    Raises:
        SettingsError: Unknown name; lists the known ones.
    """
    name = settings.optimizer
    if name not in OPTIMIZERS:
        raise SettingsError(
            "no such optimizer", where="training.optimizer", found=name, expected=f"one of {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name](network.parameters(), settings.learning_rate, (settings.beta1, settings.beta2))
