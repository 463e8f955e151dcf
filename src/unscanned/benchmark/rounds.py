"""Fair timing: in each round every contender runs once, so that what else the machine does hits all of them alike.

A ratio is formed within a round, and its median and spread over the rounds are shown. CPU seconds stand beside
seconds: on a machine that is shared they tell the cost without the waiting.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

__all__ = ["rounds", "timed"]


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds and CPU seconds that one call takes."""
    _wait()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    _wait()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def _wait() -> None:
    """Wait for what a GPU was given to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def rounds(runs: Mapping[str, Callable[[], dict[str, float]]], repeats: int) -> dict[str, dict[str, Any]]:
    """Time each once a round; ratios are the first one's time over each one's.

    Args:
        runs: What to time: each returns its times, as `timed` does.
        repeats: Rounds.
    """
    times: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(run())
    base = times[next(iter(runs))]
    table: dict[str, dict[str, Any]] = {}
    for name, own in times.items():
        table[name] = {}
        for unit in ("seconds", "cpu_seconds"):
            ratios = [b[unit] / max(o[unit], 1e-9) for b, o in zip(base, own, strict=True)]
            table[name][unit] = statistics.median(o[unit] for o in own)
            table[name][f"{unit}_ratio"] = statistics.median(ratios)
            table[name][f"{unit}_ratio_range"] = [min(ratios), max(ratios)]
    return table
