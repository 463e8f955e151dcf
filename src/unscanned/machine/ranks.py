"""The processes that train one network together, one a device: who they are, and what they tell each other.

`torchrun` or `unscanned train --training.devices N` starts them; each is a rank, from 0. In a process of its own every
function here returns at once, with what it was given. Rank 0 alone writes files. What one rank refuses, all refuse.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from unscanned.errors import ResourceError, UnscannedError
from unscanned.machine.started import RankLost, hand_over, is_rank

__all__ = [
    "add_gradients",
    "count",
    "each",
    "each_tells",
    "first",
    "joined",
    "most",
    "number",
    "share",
    "summed",
    "total",
    "totals",
]

T = TypeVar("T")
S = TypeVar("S")

SILENT_S = 15.0
"Without a sign of life from a rank until it counts as hanging. torchrun then takes 30 s more to kill it."
STEP_S = 600.0
"That a rank waits for the others within a step."
_BEAT_S = 1.0
_PATIENT = timedelta(days=7)
"For work that one rank does while the others wait: preparation, validation."
_patient: list[dist.ProcessGroup] = []


def number() -> int:
    """Return the rank of this process; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Return how many processes train together; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: int) -> range:
    """Return the slots of a batch that are this rank's; the shares differ by one slot at most."""
    return range(batch * number() // count(), batch * (number() + 1) // count())


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Belong to the ranks that were started together while the body runs, where this process is one of them.

    A rank that is stopped, or whose host has gone, ends this process with exit code 7 after `SILENT_S`.

    Args:
        device: Of this rank. Gradients are exchanged by NCCL on CUDA and by Gloo on a CPU.

    Raises:
        RankLost: The others did not come.
    """
    if not is_rank() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _exchanging():
        store, rank, size = next(iter(rendezvous("env://")))
        beat = _Beat(store, rank, size)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("unscanned", store),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=STEP_S),
        )
        _patient.append(dist.new_group(backend="gloo", timeout=_PATIENT))
    beat.start()
    try:
        yield
        with _exchanging():
            dist.barrier(_patient[-1])
    finally:
        beat.end()
        _patient.pop()
        dist.destroy_process_group()


def first(work: Callable[[], T]) -> T:
    """Return what rank 0 makes of the work, to all ranks; the others wait.

    Raises:
        UnscannedError: Rank 0 raised it.
    """
    if count() == 1:
        return work()
    told = [_outcome(work) if number() == 0 else None]
    with _exchanging():
        dist.broadcast_object_list(told, src=0, group=_patient[-1], device=torch.device("cpu"))
    return _result(told[0])


def each(work: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Return what the work makes of each item, in their order, to all ranks, which share the items.

    Raises:
        UnscannedError: A rank raised it.
    """
    if count() == 1:
        return [work(item) for item in items]
    own = _outcome(lambda: [work(item) for item in items[number() :: count()]])
    results = [_result(told) for told in _gathered(own)]
    return [results[place % count()][place // count()] for place in range(len(items))]


def each_tells(error: UnscannedError | None) -> UnscannedError | None:
    """Return to all ranks the error of the lowest that has one; None where none has."""
    if count() == 1 or not any(most(error is not None)):
        return error
    return next(told for told in _gathered(error) if told is not None)


def most(*values: int) -> list[int]:
    """Return the largest of the ranks' values, place by place."""
    if count() == 1:
        return [*values]
    largest = torch.tensor(values)
    with _exchanging():
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def total(value: float) -> float:
    """Return the sum of the ranks' values."""
    return totals({"": value})[""]


def totals(values: Mapping[str, float]) -> dict[str, float]:
    """Return the sums of the ranks' values by name; all ranks have the same names in the same order."""
    if count() == 1:
        return dict(values)
    sums = torch.tensor(list(values.values()), dtype=torch.float64)
    with _exchanging():
        dist.all_reduce(sums)
    return dict(zip(values, sums.tolist(), strict=True))


def add_gradients(network: nn.Module) -> None:
    """Give each parameter the sum of its gradients on all ranks, in one exchange.

    `DistributedDataParallel` would begin it while the backward pass runs. It takes one backward pass through a network
    for each forward pass, which neither the two networks of a step nor the gradient penalty keep to.
    """
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    with _exchanging():
        dist.all_reduce(flat)
    for gradient, sums in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(sums.view_as(gradient))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        with _exchanging():
            dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def summed(x: Tensor) -> Tensor:
    """Return the sum of the ranks' tensors, as often differentiable as is wanted.

    The loss that its gradient belongs to is the sum of the ranks' losses.
    """
    return x if count() == 1 else _Sum.apply(x)


class _Beat:
    """A thread that shows that this rank lives, and looks whether the next one does.

    A rank that waits for another within an exchange cannot look itself, and an exchange may wait for long where one
    rank has more to do.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.store: dist.Store = store.clone()  # type: ignore[attr-defined]
        self.rank, self.watched = rank, (rank + 1) % size
        self.store.set(f"beat/{rank}", "0")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin; all ranks have shown themselves."""
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._end.set()
        self._thread.join(timeout=5 * _BEAT_S)

    def _run(self) -> None:
        beats, seen, seen_at = 0, b"", time.monotonic()
        while not self._end.wait(_BEAT_S):
            beats += 1
            try:
                self.store.set(f"beat/{self.rank}", str(beats))
                now = self.store.get(f"beat/{self.watched}")
            except RuntimeError as error:
                self._give_up("what started this training is gone", found=error, told_by_others=False)
                return
            if now != seen:
                seen, seen_at = now, time.monotonic()
            elif time.monotonic() - seen_at > SILENT_S:
                self._give_up(
                    "a process of the training hangs",
                    found=f"no sign of life from rank {self.watched} for {SILENT_S:.0f} s",
                )

    def _give_up(self, what: str, *, found: object, told_by_others: bool = True) -> None:
        if self._end.is_set():
            return
        error = ResourceError(what, found=found, do="The last checkpoint is kept. Run it again to go on.")
        if not told_by_others or not hand_over(str(error), error):
            os.write(2, f"unscanned: {error}\n".encode())
        os._exit(ResourceError.exit_code)  # the main thread may wait within an exchange, where nothing reaches it


@contextlib.contextmanager
def _exchanging() -> Iterator[None]:
    """Turn the ways in which an exchange tells that a rank is not there into one."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            "another process of the training is lost",
            found=f"rank {os.environ['RANK']} waits for it in vain",
            do="The last checkpoint is kept. Run it again to go on.",
        ) from error


def _gathered(told: Any) -> list[Any]:
    everything: list[Any] = [None] * count()
    with _exchanging():
        dist.all_gather_object(everything, told, group=_patient[-1])
    return everything


def _outcome(work: Callable[[], Any]) -> tuple[Any, UnscannedError | None]:
    try:
        return work(), None
    except RankLost:
        raise
    except UnscannedError as error:
        return None, error


def _result(outcome: Any) -> Any:
    value, error = outcome
    if error is not None:
        raise error
    return value
