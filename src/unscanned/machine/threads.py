"""The CPU's threads: how many there are, and the pieces of one computation, each piece whole on one of them.

PyTorch cuts every operator among its threads. Where an operator takes a fraction of a millisecond, on data that one
core has in its cache, handing it out costs more than it brings. Here a thread takes a piece through all its operators.
So the pieces do not depend on the number of threads, bit for bit, up to `LARGEST`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from unscanned.errors import SettingsError

__all__ = ["LARGEST", "for_each", "set_process_threads"]

LARGEST = 8
"Pieces at a time: more would wait for Python's lock. With more threads than that, PyTorch cuts operators among them."

Piece = TypeVar("Piece")

_creation = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def set_process_threads(count: int | None) -> None:
    """Set the CPU threads for all that follows in this process; None leaves their number to PyTorch.

    Raises:
        SettingsError: Less than one, or more than any machine has.
    """
    if count is not None:
        if not 1 <= count <= 4096:
            raise SettingsError("no such number of threads", where="threads", found=count, expected="1 to 4096")
        torch.set_num_threads(count)


def for_each(pieces: Iterable[Piece], work: Callable[[Piece], None], device: torch.device) -> None:
    """Do the work of every piece, in any order, in the caller's inference mode and without gradients.

    Args:
        pieces: What to work on; none may depend on another one's result.
        work: Takes one piece. Its error, if any, is raised here, and pieces not yet begun are left out.
        device: Where the work is done; only a CPU has threads to share it.
    """
    waiting = list(pieces)
    threads = torch.get_num_threads()
    count = min(threads, len(waiting), LARGEST)
    if count < 2 or device.type != "cpu":
        with torch.no_grad():
            for piece in waiting:
                work(piece)
        return
    remaining, mode = iter(waiting), torch.is_inference_mode_enabled()
    tasks = [_pool(threads).submit(_take, remaining, work, mode) for _ in range(count)]
    errors = [error for task in tasks if (error := task.exception()) is not None]
    if errors:
        raise errors[0]


def _take(remaining: Iterator[Piece], work: Callable[[Piece], None], mode: bool) -> None:
    with torch.inference_mode(mode), torch.no_grad():
        try:
            for piece in remaining:
                work(piece)
        except BaseException:
            for _ in remaining:  # the others stop after the piece in hand
                pass
            raise


def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads of which each gives PyTorch its share of the processor."""
    with _creation:
        if threads not in _pools:
            count = min(threads, LARGEST)
            ready = threading.Barrier(count)
            share = threads // count

            def begin() -> None:
                torch.set_num_threads(share)
                torch.get_num_threads()  # else a thread's first operator takes the number from the process
                ready.wait()

            _pools[threads] = ThreadPoolExecutor(count, thread_name_prefix="unscanned", initializer=begin)
            list(_pools[threads].map(lambda _: None, range(count)))
            torch.set_num_threads(threads)  # what a thread sets is also what threads to come begin with
        return _pools[threads]
