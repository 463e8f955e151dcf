"""A full training step, plain and not: both networks, both optimizers."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unscanned.benchmark.inference import PATCH, Network, noise
from unscanned.benchmark.rounds import rounds
from unscanned.models import discriminators
from unscanned.training.adversary import Adversary
from unscanned.training.step import Step

__all__ = ["training"]


def _step(generator: nn.Module, discriminator: nn.Module) -> Step:
    """Return one step of Adv. + GDL with the optimizers of the reference presets."""

    def adam(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.5, 0.999))

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
    _step(network.build("auto"), copy.deepcopy(discriminator))(
        source, target
    )  # memory and kernels are at hand after it
    networks = {name: network.build(mode) for name, mode in modes.items()}
    taken = {name: _step(generator, copy.deepcopy(discriminator)) for name, generator in networks.items()}
    gradients: dict[str, Tensor] = {}

    def run(name: str) -> None:
        taken[name](source, target)
        if name not in gradients:
            weights = [c.weight for c in networks[name].modules() if isinstance(c, nn.Conv3d)]
            gradients[name] = torch.cat([w.grad.flatten() for w in weights if w.grad is not None])

    table = rounds({name: partial(run, name) for name in networks}, steps)
    for name, row in table.items():
        difference = gradients[name] - gradients["plain PyTorch"]
        row["gradient_relative_difference"] = float(difference.norm() / gradients["plain PyTorch"].norm())
    return {"batch": batch, "contenders": table}
