"""What the times belong to."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from unscanned.benchmark.rounds import timed

__all__ = ["machine"]

ROUNDS = 20
"Each peak is the best of so many."


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the times belong to, and the peaks that the machine reaches itself."""
    name = platform.processor() or platform.machine()
    about = Path("/proc/cpuinfo")
    if about.exists():
        models = [line.split(":", 1)[1].strip() for line in about.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    square = torch.randn(2048, 2048, device=device)
    large = torch.randn(2**26, device=device)
    target = torch.empty_like(large)
    product = min(timed(lambda: square @ square)["seconds"] for _ in range(ROUNDS))
    copying = min(timed(lambda: target.copy_(large))["seconds"] for _ in range(ROUNDS))
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gigaflop_per_second": 2 * 2048**3 / product / 1e9,
        "copied_gigabyte_per_second": 2 * 4 * 2**26 / copying / 1e9,
    }
