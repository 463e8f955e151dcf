"""A contender in a process of its own, as a user would run it: made once, run many times, its memory its own.

In one process, what a contender frees is what the next one finds, in pieces that may not fit it, and its peak of memory
would be that of all before it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from unscanned.benchmark.rounds import timed
from unscanned.machine.memory import high_water_mib, keep_freed_memory_in_process

__all__ = ["Worker"]


class Worker(ProcessPoolExecutor):
    """Runs one contender; a context that ends its process.

    Args:
        make: A function of a module that returns what is to be run, without arguments.
        arguments: What `make` takes.
        imports: Modules whose memory is not counted.

    Raises:
        ImportError: What the contender needs is not installed.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *arguments: Any, imports: Sequence[str] = ()) -> None:
        super().__init__(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            self._do(_begin, make, arguments, imports, torch.get_num_threads())
        except BaseException:
            self.shutdown()
            raise

    def run(self) -> Any:
        """Run once, and return the result."""
        return self._do(_run)

    def timed(self, warm_up_seconds: float | None = None) -> dict[str, float]:
        """Return the seconds and CPU seconds of a run.

        Args:
            warm_up_seconds: Run before, at least once and for that long; None does not.
        """
        times: dict[str, float] = self._do(_timed, warm_up_seconds)
        return times

    def peak_mib(self) -> float | None:
        """Return the MiB that all took beyond the imports, on CUDA what PyTorch allocated; None if that is unknown."""
        peak: float | None = self._do(_peak_mib)
        return peak

    def _do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.submit(function, *arguments).result()


_contender: dict[str, Any] = {}
"In a worker's process: what it runs, and the memory that it began with."


def _begin(
    make: Callable[..., Callable[[], Any]], arguments: Sequence[Any], imports: Sequence[str], threads: int
) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory_in_process()
    for module in imports:
        importlib.import_module(module)
    _contender["before"] = high_water_mib()
    _contender["run"] = make(*arguments)


def _run() -> Any:
    return _contender["run"]()


def _timed(warm_up_seconds: float | None) -> dict[str, float]:
    if warm_up_seconds is not None:
        end = time.perf_counter() + warm_up_seconds
        timed(_run)
        while time.perf_counter() < end:
            timed(_run)
    return timed(_run)


def _peak_mib() -> float | None:
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    before, after = _contender["before"], high_water_mib()
    return None if before is None or after is None else after - before
