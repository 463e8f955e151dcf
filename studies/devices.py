"""One training on several devices against the same on one: how equal the steps are, and how much faster.

    python studies/devices.py equal --preset resgan --generator small --patch 16 --steps 50 --precision float64
    python studies/devices.py equal --preset strong --prepared runs/strong/prepared --precision float64
    python studies/devices.py nudged --preset strong --precision float64
    python studies/devices.py efficiency --preset strong --patch 32 --steps 8 --alone

Each process has one thread. Without the prepared volumes of a run the patches are noise, on which the target depends;
the number of the step is the seed. `nudged` is one process against itself with weights that are changed by 1e-15 of
themselves: how far two ways to compute the same must come apart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unscanned.machine import ranks
from unscanned.machine.started import tells
from unscanned.settings import Settings, resolve
from unscanned.training.batches import PatchBatches
from unscanned.training.optimizers import rate, set_rate
from unscanned.training.prepare import Case, normalization
from unscanned.training.stage import build_step, weights_digest

Result = dict[str, Any]

LENGTH = 10_000
"Steps of a training, for the schedule of its learning rate."


def wanted(preset: str, generator: str | None, patch: int, batch: int | None, accumulate: int) -> Settings:
    """Return the settings of a preset with other patches; where there is an adversary, it is there from the start."""
    tables: dict[str, dict[str, Any]] = {
        "training": {"patch": patch, "validation_stride": min(patch, 32), "accumulate": accumulate},
        "synthesis": {"stride": min(patch, 8)},
        "context": {"stride": min(patch, 8)},
        "loss": {"adversarial_after": 0},
    }
    if batch is not None:
        tables["training"]["batch"] = batch
    if generator is not None:
        tables |= {"generator": {"name": generator, "options": {}}, "discriminator": {"name": "small"}}
    return resolve(preset, overrides=tables)


def noise(settings: Settings) -> Callable[[int], tuple[Tensor, ...]]:
    """Return what maps a step to this rank's share of a batch of noise."""
    size, edge, outer = settings.training.batch, settings.training.patch, settings.training.margin

    def batch(step: int) -> tuple[Tensor, ...]:
        random, own = torch.Generator().manual_seed(step), ranks.share(size)
        source = torch.randn(size, 1, *(edge + 2 * outer,) * 3, generator=random)
        centre = source[(..., *(slice(outer, outer + edge),) * 3)]
        target = 0.5 * centre + 0.1 * torch.randn(size, 1, *(edge,) * 3, generator=random)
        return source[own.start : own.stop], target[own.start : own.stop]

    return batch


def patches(settings: Settings, prepared: Path) -> PatchBatches:
    """Return the batches of a training on all prepared cases of a folder."""
    cases = [Case(folder.name, folder.name, folder) for folder in sorted(prepared.iterdir())]
    return PatchBatches(cases, normalization(cases), settings.training, augmentation=settings.augmentation)


@contextlib.contextmanager
def undisturbed(wanted: bool) -> Iterator[None]:
    """Have all threads of this process go before those of others meanwhile, which only root may."""
    tasks = [int(task) for task in os.listdir("/proc/self/task")] if wanted else []
    for task in tasks:
        os.sched_setscheduler(task, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        for task in tasks:
            os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))


def take_steps(
    settings: Settings,
    count: int,
    precision: str,
    prepared: Path | None = None,
    *,
    alone: bool = False,
    nudge: float = 0.0,
) -> Result:
    """Take steps in this process, by itself or as one of several.

    Args:
        settings: What to train.
        count: Steps.
        precision: float32 or float64.
        prepared: Prepared volumes to cut patches from; None takes noise.
        alone: Whether no other process of the machine may take part of its time.
        nudge: What the weights are changed by before, as a share of themselves.

    Returns:
        A digest of the weights of each rank, the losses of each step, the gradients of the first, the weights at the
        end, and the seconds of each step.
    """
    torch.set_num_threads(1)
    dtype = getattr(torch, precision)
    with ranks.joined(torch.device("cpu")):
        torch.manual_seed(0)
        step = build_step(settings, 1, "cpu")
        for network in step.networks.values():
            network.to(dtype)
            with torch.no_grad():
                for weight in network.parameters():
                    weight.mul_(1 + nudge * torch.randn_like(weight))
        step.generator.train()
        batches = noise(settings) if prepared is None else patches(settings, prepared)
        losses, seconds, gradients = [], [], {}
        drawn = [[part.to(dtype) for part in batches(number)] for number in range(count)]
        ranks.most(0)  # all begin at once
        for number, batch in enumerate(drawn):
            set_rate(step.optimizers.values(), rate(settings.training, number, LENGTH))
            began = time.perf_counter()
            with undisturbed(alone):
                losses.append(step(*batch))
            seconds.append(time.perf_counter() - began)
            if number == 0:
                gradients = {
                    f"{name}/{key}": parameter.grad.clone()
                    for name, network in step.networks.items()
                    for key, parameter in network.named_parameters()
                    if parameter.grad is not None
                }
        weights = {
            f"{n}/{key}": value for n, network in step.networks.items() for key, value in network.state_dict().items()
        }
        digest = weights_digest(torch.nn.ModuleDict(step.networks))
        on_all = ranks.each(lambda _: digest, range(ranks.count()))
    return {"digests": on_all, "losses": losses, "gradients": gradients, "weights": weights, "seconds": seconds}


def on_devices(devices: int, words: list[str]) -> Result:
    """Take the same steps in several processes, which torchrun starts, and return what the first of them has."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.pt"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
        subprocess.run([*torchrun, __file__, *words, "--out", str(out)], check=True)
        return torch.load(out)


def differences(one: Result, other: Result) -> dict[str, float]:
    """Return the largest relative difference of losses and gradients and the largest difference of weights.

    A bias in front of a batch norm has no effect. Its gradient is what rounding leaves, and Adam makes whole steps of
    it, so in float32 such biases and the running means behind them are of no use for a comparison: they stand apart.
    """
    told = {"losses": 0.0}
    for first, second in zip(one["losses"], other["losses"], strict=True):
        told["losses"] = max(told["losses"], *(abs(first[key] - second[key]) / abs(first[key]) for key in first))
    idle = {
        key
        for key, value in one["gradients"].items()
        if key.endswith("bias") and value.norm() < 1e-5 * _beside(one, key)
    }
    for kind in ("gradients", "weights"):
        for key, first in one[kind].items():
            difference = (first.double() - other[kind][key].double()).norm(torch.inf if kind == "weights" else 2)
            if kind == "gradients":
                difference /= first.double().norm().clamp_min(1e-300)
            name = f"{kind} of no effect" if key in idle or key.endswith("running_mean") else kind
            told[name] = max(told.get(name, 0.0), float(difference))
    return told


def _beside(one: Result, key: str) -> float:
    """Return the norm of the gradient of the weight that a bias belongs to."""
    return float(one["gradients"][key.removesuffix("bias") + "weight"].norm())


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("equal", "nudged", "efficiency"))
    parser.add_argument("--preset", default="resgan")
    parser.add_argument("--generator")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", choices=("float32", "float64"), default="float32")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--prepared", type=Path, help="prepared volumes of a run, in place of noise")
    parser.add_argument("--alone", action="store_true", help="no other process may take part of the steps' time (root)")
    parser.add_argument("--out", type=Path, help="of a process that torchrun started")
    asked = parser.parse_args()
    settings = wanted(asked.preset, asked.generator, asked.patch, asked.batch, asked.accumulate)
    result = take_steps(settings, asked.steps, asked.precision, asked.prepared, alone=asked.alone)
    if asked.out is not None:
        if tells():
            torch.save(result, asked.out)
        return
    if asked.what == "nudged":
        other = take_steps(settings, asked.steps, asked.precision, asked.prepared, nudge=1e-15)
    else:
        other = on_devices(asked.devices, sys.argv[1:])
    if asked.what != "efficiency":
        print(json.dumps(differences(result, other), indent=2))
        return
    alone, together = (sorted(taken["seconds"])[len(taken["seconds"]) // 2] for taken in (result, other))
    print(
        f"{asked.preset}, patches of {asked.patch}, batch {settings.training.batch}: a step takes {alone:.3f} s alone, "
        f"{together:.3f} s on {asked.devices}; efficiency {alone / together / asked.devices:.0%}, "
        f"median of {asked.steps} steps"
    )


if __name__ == "__main__":
    main()
