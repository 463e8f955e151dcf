"""A full training step, plain and not: both networks, both optimizers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from unscanned.benchmark.inference import PATCH, Network, noise
from unscanned.benchmark.rounds import rounds
from unscanned.benchmark.worker import Worker
from unscanned.machine.precision import autocast, set_process_precision
from unscanned.settings import resolve
from unscanned.training.stage import build_step
from unscanned.training.step import Step

__all__ = ["step_of", "training"]


MODES = {
    "plain PyTorch": ("plain", "float32"),
    "unscanned": ("auto", "float32"),
    "frequency domain": ("spectral", "float32"),
    "plain PyTorch, bfloat16": ("plain", "bfloat16"),
}
"Ways to convolve, and precisions; the last two are compared on a GPU only."


WARM_UP = 10.0
"Seconds before each timed step: memory that a step needs is kept for the next from the third or fourth on."


def training(network: Network, batch: int, steps: int) -> dict[str, Any]:
    """Take full steps of both networks, from the same weights, plain and not.

    Args:
        network: The generator; the discriminator is that of the same name.
        batch: Patches of a step.
        steps: Rounds.
    """
    names = list(MODES)[:2] if network.is_on_cpu else list(MODES)
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(_prepared, name, network, batch)) for name in names}
        table = rounds({name: partial(worker.timed, WARM_UP) for name, worker in workers.items()}, steps)
        for name, row in table.items():
            row["peak_mib"] = workers[name].peak_mib()
    errors = _gradient_errors(network, names)
    for name, row in table.items():
        row["gradient_error"] = errors[name]
    return {"batch": batch, "contenders": table}


def _prepared(name: str, network: Network, batch: int) -> Callable[[], dict[str, float]]:
    """Return a step of that many patches."""
    source, target = (
        torch.from_numpy(noise(network.seed + number, batch, 1, PATCH, PATCH, PATCH)).to(network.device)
        for number in (1, 2)
    )
    set_process_precision("float32", network.device)
    return partial(step_of(network, *MODES[name]), source, target)


def step_of(network: Network, convolution: str, precision: str) -> Step:
    """Return a step as training with the preset adv-gdl takes it, with networks that begin alike whatever the way."""
    settings = resolve(
        "adv-gdl",
        overrides={
            "generator": {"name": network.name, "convolution": convolution},
            "discriminator": {"name": network.name},
            "training": {"patch": PATCH, "precision": precision},
        },
    )
    torch.manual_seed(network.seed)
    return build_step(settings, 1, network.device)


def _gradient_errors(network: Network, names: Sequence[str]) -> dict[str, float]:
    """Return the relative error of the kernels' gradients against float64, of the layer where it is largest.

    The patch is smaller, so that float64 takes seconds. Loss and activation are linear: at a kink (LeakyReLU, L1, GDL)
    one value whose sign rounding decides changes the gradient a thousand times more than rounding does, either way.
    """
    edge = PATCH // 2
    source, cotangent = (torch.from_numpy(noise(network.seed + number, 1, 1, edge, edge, edge)) for number in (3, 4))

    def gradients(convolution: str, precision: str, dtype: torch.dtype) -> list[Tensor]:
        generator = network.build(convolution, slope=1.0).to(dtype)
        with autocast(precision, network.device):
            y = generator(source.to(network.device, dtype))
        (y.to(dtype) * cotangent.to(network.device, dtype)).sum().backward()
        convolutions = [module for module in generator.modules() if isinstance(module, nn.Conv3d)]
        return [cast(Tensor, c.weight.grad).double() for c in convolutions]

    exact = gradients("plain", "float32", torch.float64)
    found = {name: gradients(*MODES[name], torch.float32) for name in names}
    return {
        name: max(float((a - b).norm() / b.norm()) for a, b in zip(own, exact, strict=True))
        for name, own in found.items()
    }
