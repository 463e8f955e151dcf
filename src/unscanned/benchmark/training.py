"""A full training step, plain and not: both networks, both optimizers."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from unscanned.benchmark.inference import PATCH, Network, noise
from unscanned.benchmark.rounds import rounds
from unscanned.models import discriminators
from unscanned.training import optimizers
from unscanned.training.adversary import Adversary
from unscanned.training.step import Step

__all__ = ["training"]


def _step(generator: nn.Module, discriminator: nn.Module) -> Step:
    """Return one step of Adv. + GDL with the optimizers of the reference presets."""

    def adam(network: nn.Module) -> torch.optim.Optimizer:
        return optimizers.build("adam", network, learning_rate=1e-4, betas=(0.5, 0.999))

    adversary = Adversary(discriminator, adam(discriminator))
    return Step(
        generator, adam(generator), adversary, None, "float32", adversarial=0.5, l1=1.0, gdl=1.0, reduction="sum"
    )


def training(network: Network, batch: int, steps: int) -> dict[str, Any]:
    """Take full steps of both networks, from the same weights, plain and not.

    Args:
        network: The generator; the discriminator is that of the same name.
        batch: Patches of a step.
        steps: Rounds.
    """
    source, target = (
        torch.from_numpy(noise(network.seed + number, batch, 1, PATCH, PATCH, PATCH)).to(network.device)
        for number in (1, 2)
    )
    torch.manual_seed(network.seed)
    discriminator = discriminators.build(network.name, patch=PATCH).to(network.device)
    modes = {"plain PyTorch": "plain", "unscanned": "auto"}
    networks = {name: network.build(mode) for name, mode in modes.items()}
    taken = {name: _step(generator, copy.deepcopy(discriminator)) for name, generator in networks.items()}
    table = rounds({name: partial(step, source, target) for name, step in taken.items()}, steps, is_second_timed=True)
    errors = _gradient_errors(network, modes)
    for name, row in table.items():
        row["gradient_error"] = errors[name]
    return {"batch": batch, "contenders": table}


def _gradient_errors(network: Network, modes: dict[str, str]) -> dict[str, float]:
    """Return the relative errors of the weights' gradients against float64.

    The patch is smaller, so that float64 takes seconds. Loss and activation are linear: at a kink (LeakyReLU, L1, GDL)
    one value whose sign rounding decides changes the gradient a thousand times more than rounding does, either way.
    """
    edge = PATCH // 2
    source, cotangent = (torch.from_numpy(noise(network.seed + number, 1, 1, edge, edge, edge)) for number in (3, 4))

    def gradient(mode: str, dtype: torch.dtype) -> Tensor:
        generator = network.build(mode, slope=1.0).to(dtype)
        (generator(source.to(network.device, dtype)) * cotangent.to(network.device, dtype)).sum().backward()
        convolutions = [module for module in generator.modules() if isinstance(module, nn.Conv3d)]
        return torch.cat([cast(Tensor, c.weight.grad).double().flatten() for c in convolutions])

    exact = gradient("plain", torch.float64)
    return {name: float((gradient(mode, torch.float32) - exact).norm() / exact.norm()) for name, mode in modes.items()}
