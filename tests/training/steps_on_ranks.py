"""Steps of several settings, taken by one process or by several that torchrun starts, for `test_devices.py`."""

from __future__ import annotations

import sys

import devices
import torch

from unscanned.machine import ranks
from unscanned.machine.started import tells

CASES = {
    "the nine layers and their discriminator": {"preset": "resgan", "batch": 3},
    "the small networks in parts": {"preset": "resgan", "generator": "small", "batch": 5, "accumulate": 2},
    "a residual U-Net": {"preset": "strong", "batch": 3},
    "a gradient penalty": {"preset": "strong-gan", "batch": 3},
    "a U-Net": {"preset": "unet", "batch": 3},
}
"Batches that two processes do not share evenly."


def take_all() -> dict[str, devices.Result]:
    """Take two steps of each."""
    given = {"generator": None, "patch": 16, "accumulate": 1}
    return {name: devices.take_steps(devices.wanted(**{**given, **case}), 2, "float64") for name, case in CASES.items()}


if __name__ == "__main__":
    with ranks.joined(torch.device("cpu")):
        taken = take_all()
    if tells():
        torch.save(taken, sys.argv[1])
