"""What the C library does with freed memory, which decides how fast large tensors are made on a CPU."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for its next tensors instead of returning it to the system each time.

    glibc maps blocks above 32 MiB anew for each use, and touching their pages for the first time costs several times as much
    as computing their contents. Call it once at the start of training or of a benchmark: it holds for the whole process, which
    then keeps its peak of memory until it ends.

    Returns:
        Whether it was done: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, 1 << 30) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
