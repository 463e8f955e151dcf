"""Batches in the order of their steps, cut ahead of time by worker processes that may die, fail or hang."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

from unscanned.errors import DatasetError, ResourceError

__all__ = ["Feed"]

Batch = TypeVar("Batch")

_POLL_S = 5.0
_PR_SET_PDEATHSIG = 1
_FEWER = "Run it again to go on; if it comes back, set training.workers lower, or to 0."


class Feed(Generic[Batch], Iterator[Batch]):
    """Yields the batch of each step.

    Args:
        batch_of: Maps a step to its batch; runs in the workers.
        first: The first step.
        last: One after the last step.
        workers: Processes; 0 cuts the batches here, when they are asked for.
        timeout_s: A batch that is not there after so many seconds never comes.
    """

    def __init__(
        self, batch_of: Callable[[int], Batch], first: int, last: int, workers: int = 0, timeout_s: float = 120.0
    ) -> None:
        self.step, self.timeout_s = first, timeout_s
        if workers == 0:
            self._batches: Iterator[Batch] = (batch_of(step) for step in range(first, last))
            return
        loader = torch.utils.data.DataLoader(
            _Steps(batch_of),
            sampler=range(first, last),
            batch_size=None,
            num_workers=workers,
            timeout=min(_POLL_S, timeout_s),
            worker_init_fn=_follow_the_parent,
        )
        self._batches = _without_child_signals(loader)

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            DatasetError: Its scans can no longer be read.
            ResourceError: The worker was killed, hangs, or had too little memory.
        """
        began = time.monotonic()
        while True:
            try:
                batch = next(self._batches)
            except (OSError, ValueError, EOFError) as error:
                raise DatasetError("a batch cannot be cut", found=_last_line(error)) from error
            except MemoryError as error:
                raise ResourceError("too little memory to cut a batch", found=_last_line(error), do=_FEWER) from error
            except RuntimeError as error:
                if "DataLoader timed out" in str(error) and time.monotonic() - began < self.timeout_s:
                    continue
                raise self._lost(error) from error
            self.step += 1
            return batch

    def _lost(self, error: RuntimeError) -> ResourceError | RuntimeError:
        if "DataLoader timed out" in str(error):
            return ResourceError("a loader worker hangs", found=f"no batch for {self.timeout_s:g} s", do=_FEWER)
        if "DataLoader worker" in str(error):
            return ResourceError(
                "a loader worker was killed", found=_last_line(error), expected="enough memory and /dev/shm", do=_FEWER
            )
        return error


class _Steps(torch.utils.data.Dataset[Batch]):
    def __init__(self, batch_of: Callable[[int], Batch]) -> None:
        self.batch_of = batch_of

    def __getitem__(self, step: int) -> Batch:
        return self.batch_of(step)


def _without_child_signals(loader: torch.utils.data.DataLoader[Batch]) -> Iterator[Batch]:
    """Start the workers, without PyTorch's SIGCHLD handler.

    It would raise in the middle of a training step, between the two networks' updates. Without it, a death is noticed
    when the dead worker's batch is missing.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    signal.signal(signal.SIGCHLD, before)
    return batches


def _follow_the_parent(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to the workers too, to the parent, and die with it.

    A worker that outlived a killed parent would hold on to its memory for seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
