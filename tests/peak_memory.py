"""The most memory that a piece of work takes, whatever this process took and freed before it."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

MEASURABLE = Path("/proc/self/clear_refs").exists()
WHERE = "only Linux lets a process forget its peak of memory"


def forget_peak() -> float:
    """Give freed memory back to the system, begin a new peak, and return the memory in use, in MiB."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM to the memory in use
    return peak_mib()


def peak_mib() -> float:
    """Return the most memory in use since `forget_peak`, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def peak_growth_mib(work: Callable[[], object]) -> float:
    """Do work, and return by how much it raised the memory in use at its peak, in MiB."""
    before = forget_peak()
    work()
    return peak_mib() - before


def in_fresh_process(work: Callable[[], object]) -> object:
    """Return what work, a function of a module, returns in a process that has done nothing before it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()
