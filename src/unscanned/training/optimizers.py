"""Optimizers by name, and their learning rate over the steps.

The reference names no optimizer; Adam is its author's earlier choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from unscanned.errors import SettingsError
from unscanned.settings import Training

__all__ = ["OPTIMIZERS", "build", "clip", "rate", "set_rate"]

Parameters = Iterable[nn.Parameter]


def adam(parameters: Parameters, settings: Training) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015), in one pass over the weights."""
    return torch.optim.Adam(parameters, settings.learning_rate, (settings.beta1, settings.beta2), fused=True)


def adamw(parameters: Parameters, settings: Training) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    betas, decay = (settings.beta1, settings.beta2), settings.weight_decay
    return torch.optim.AdamW(parameters, settings.learning_rate, betas, weight_decay=decay, fused=True)


def rmsprop(parameters: Parameters, settings: Training) -> torch.optim.Optimizer:
    """RMSprop (Tieleman and Hinton 2012): momentum beta1, and beta2 as the decay of the squares."""
    return torch.optim.RMSprop(parameters, settings.learning_rate, alpha=settings.beta2, momentum=settings.beta1)


def sgd(parameters: Parameters, settings: Training) -> torch.optim.Optimizer:
    """Gradient descent with momentum beta1."""
    return torch.optim.SGD(parameters, settings.learning_rate, momentum=settings.beta1)


OPTIMIZERS: dict[str, Callable[[Parameters, Training], torch.optim.Optimizer]] = {
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
    return OPTIMIZERS[name](network.parameters(), settings)


def rate(settings: Training, step: int, total: int) -> float:
    """Return the share of the learning rate that a step takes: a function of its number alone.

    After a linear warm-up it stays, or goes down by half a cosine (Loshchilov and Hutter, ICLR 2017, eq. 5, one cycle).

    Args:
        settings: The schedule.
        step: From 0.
        total: Steps of the training.

    Example:
        >>> cosine = Training(schedule="cosine", final_rate=0.2)
        >>> [round(rate(cosine, step, 4), 3) for step in (0, 2, 4)]
        [1.0, 0.6, 0.2]
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * done)) / 2


def set_rate(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Give optimizers that share of the learning rate that they were built with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * share


def clip(network: nn.Module, norm: Tensor, most: float | None) -> None:
    """Cut a network's gradient to a norm, where it has a larger one (Pascanu et al., ICML 2013).

    Args:
        network: After the backward pass.
        norm: Of its gradient.
        most: Norm that is left; None leaves the gradient as it is.
    """
    if most is not None:
        torch.nn.utils.clip_grads_with_norm_(network.parameters(), most, norm)
