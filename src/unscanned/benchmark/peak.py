"""The most memory that a piece of work takes, beyond the interpreter with its imports."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from unscanned.memory import keep_freed_memory

__all__ = ["high_water_mib", "peak_mib"]


def peak_mib(work: Callable[..., Any], *arguments: Any, device: str, imports: Sequence[str] = ()) -> float | None:
    """Do the work once, and return the MiB that it took; None where the system does not tell.

    Args:
        work: A function of a module; on a CPU it is called in a process of its own, which keeps freed memory.
        arguments: What it takes.
        device: Where it works: on CUDA, what PyTorch had allocated is counted.
        imports: Modules that it imports; their memory is not counted.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work(*arguments)
        return torch.cuda.max_memory_allocated(device) / 2**20
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_here, work, arguments, imports, torch.get_num_threads()).result()


def _here(work: Callable[..., Any], arguments: Sequence[Any], imports: Sequence[str], threads: int) -> float | None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    for module in imports:
        importlib.import_module(module)
    before = high_water_mib()
    work(*arguments)
    after = high_water_mib()
    return None if before is None or after is None else after - before


def high_water_mib() -> float | None:
    """Return the most memory that this process has had; None where the system does not tell.

    `getrusage` would count what the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**10
