"""Batches in the order of their steps, cut ahead of time by worker processes that may die, fail or hang."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from unscanned.errors import DatasetError, ResourceError

__all__ = ["Feed"]

Batch = tuple[Tensor, ...]

_AHEAD = 2
_PR_SET_PDEATHSIG = 1
_FEWER = "Run it again to go on; if it comes back, set training.workers lower, or to 0."


class Feed(Iterator[Batch]):
    """Yields the batch of each step.

    Each worker cuts every n-th batch and has a pipe of its own. PyTorch's loader, in contrast, waits for ever for a
    worker that stopped while it handed over a tensor, and raises the death of another in the middle of a training step.

    Args:
        batch_of: Maps a step to its batch; runs in the workers.
        first: The first step.
        last: One after the last step.
        workers: Processes; 0 cuts the batches here, when they are asked for.
        timeout_s: Seconds to wait for a batch before its worker counts as hanging.
    """

    def __init__(
        self, batch_of: Callable[[int], Batch], first: int, last: int, workers: int = 0, timeout_s: float = 120.0
    ) -> None:
        self.batch_of, self.step, self.last, self.timeout_s = batch_of, first, last, timeout_s
        self._first = first
        self._workers: list[_Worker] = []
        for number in range(min(workers, last - first)):
            self._workers.append(_Worker(batch_of, range(first + number, last, workers)))
        for worker in self._workers:
            worker.listen()

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            DatasetError: Its scans can no longer be read.
            ResourceError: The worker was killed, hangs, or had too little memory.
        """
        if self.step >= self.last:
            self.close()
            raise StopIteration
        try:
            batch = self._take()
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError("a batch cannot be cut", found=error) from error
        except MemoryError as error:
            raise ResourceError("too little memory to cut a batch", found=error, do=_FEWER) from error
        self.step += 1
        return batch

    def close(self) -> None:
        """End the workers."""
        while self._workers:
            self._workers.pop().end()

    def __del__(self) -> None:
        self.close()

    def _take(self) -> Batch:
        if not self._workers:
            return self.batch_of(self.step)
        worker = self._workers[(self.step - self._first) % len(self._workers)]
        try:
            content = worker.received.get(timeout=self.timeout_s)
        except queue.Empty:
            self.close()
            raise ResourceError(
                "a loader worker hangs", found=f"no batch for {self.timeout_s:g} s", do=_FEWER
            ) from None
        if content is None:
            worker.process.join()
            self.close()
            raise ResourceError(
                "a loader worker was killed",
                found=f"exit code {worker.process.exitcode}",
                expected="memory for all workers",
                do=_FEWER,
            )
        if isinstance(content, Exception):
            self.close()
            raise content
        return tuple(torch.from_numpy(array) for array in content)


class _Worker:
    """A process that cuts batches, and a thread that takes them, so that waiting for them can end."""

    def __init__(self, batch_of: Callable[[int], Batch], steps: range) -> None:
        self.received: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._reading, writing = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.Process(target=_cut, args=(batch_of, steps, writing), daemon=True)
        self.process.start()
        writing.close()

    def listen(self) -> None:
        """Start the thread; only once all processes are there, since a fork should copy no thread."""
        threading.Thread(target=_receive, args=(self._reading, self.received), daemon=True).start()

    def end(self) -> None:
        """Kill the process, and let the thread find that out."""
        self.process.kill()
        with contextlib.suppress(queue.Empty):
            while True:
                self.received.get_nowait()


def _receive(reading: Connection, received: queue.Queue[Any]) -> None:
    try:
        while True:
            received.put(reading.recv())
    except (EOFError, OSError):
        received.put(None)


def _cut(batch_of: Callable[[int], Batch], steps: range, writing: Connection) -> None:
    _follow_the_parent()
    for step in steps:
        try:
            writing.send([tensor.numpy() for tensor in batch_of(step)])
        except BrokenPipeError:
            return
        except (OSError, ValueError, EOFError, MemoryError, DatasetError) as error:
            return writing.send(error)
        except Exception:
            return writing.send(RuntimeError(traceback.format_exc()))


def _follow_the_parent() -> None:
    """Leave Ctrl-C, which a terminal sends to the workers too, to the parent, and die with it.

    A worker that outlived a killed parent would hold on to its memory until it next wrote to the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
