"""What the C library does with freed memory, and what to do when there is not enough of it."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["high_water_mib", "is_out_of_memory", "keep_freed_memory_in_process", "largest_that_fits", "machine_bytes"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)


@functools.cache
def keep_freed_memory_in_process() -> bool:
    """Let this process keep freed memory for its next tensors instead of returning it to the system each time.

    glibc maps blocks above 32 MiB anew for each use, and touching their pages for the first time costs several times as
    much as computing their contents. From the first call on, the process keeps its peak of memory until it ends.
    Training and synthesis call this themselves; a further call costs nothing.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, 1 << 30) and mallopt(TRIM_THRESHOLD, 2**31 - 1))


def high_water_mib() -> float | None:
    """Return the most memory that this process has had; None where the system does not tell.

    `getrusage` would count what the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    peak = re.search(r"^VmHWM:\s*(\d+)", status.read_text(), re.MULTILINE)
    return int(peak[1]) / 2**10 if peak else None


@functools.cache
def machine_bytes() -> int | None:
    """Return the memory of the machine, or of the container if that is less; None where the system does not tell."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # none of these on Windows
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(found, int(limit.read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        return found


_OF_ONEDNN = ("could not create a memory", "could not create a primitive")
"What oneDNN says where memory is short."


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch, NumPy or Python means that memory does not suffice.

    On a CPU, PyTorch raises a plain RuntimeError, so that its words have to be read.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = ("can't allocate memory", "out of memory", "bad_alloc", "ALLOC_FAILED", *_OF_ONEDNN)
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def largest_that_fits(attempt: Callable[[int], object], at_most: int) -> int:
    """Return the first of at_most, its half, its quarter, ... for which an attempt has enough memory; 0 if none does.

    Args:
        attempt: Does the work for that many samples.
        at_most: Where to begin.
    """
    size = at_most
    while size > 0:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            break
        size //= 2
    return size
