"""One piece of work for each of many cases: one after the other in this process, or side by side on a cluster.

All verbs that go over a dataset use `map_cases`. On a cluster, Dask does the scheduling: a case is one task, and a
worker takes one task at a time. A case whose worker dies is taken up again by another one, and given up after a few
tries.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from unscanned.cluster.workers import TRIES, Cluster, has_gpu
from unscanned.display import warn
from unscanned.errors import Interrupted, ResourceError, UnscannedError, WorkerLost, in_words
from unscanned.machine.crash import of_one
from unscanned.machine.provenance import NAME, version
from unscanned.progress import Progress, within

__all__ = ["Outcome", "ReadsAhead", "in_order", "map_cases"]

C = TypeVar("C")
R = TypeVar("R")

Work = Callable[[C, Progress | None], R]
"Takes a case and how it tells how far it is."

_AHEAD = 256
"Cases that the scheduler knows of at least: it needs over twice as many as threads of workers to hold any back."

_COMPUTING = threading.Lock()
"Held on a worker that reads ahead by the one of its threads that computes."

_READYING = threading.Lock()
"Held while a worker gets ready, so that of two threads only one loads a model."

_LOOKS_EVERY_S = 1.0


@runtime_checkable
class ReadsAhead(Protocol):
    """Work whose first part reads, so that a worker can do it while it computes another case."""

    def read_ahead(self, case: Any) -> Callable[[Progress | None], Any]:
        """Read a case, and return what is left to do; it returns and raises what the work does."""


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of one case.

    Attributes:
        value: What the work returned.
        error: What it raised instead.
        seconds: That it took, without its wait for the case that was computed before it.
        worker: That did it, such as `0@node7`; empty for this process.
        address: Of that worker.
        warnings: That the work gave on a worker; those of this process were given already.
        is_unfit: Whether the error is the worker's, which can do none of this work.
    """

    value: R | None = None
    error: Exception | None = None
    seconds: float = 0.0
    worker: str = ""
    address: str = ""
    warnings: tuple[str, ...] = ()
    is_unfit: bool = False

    def get(self) -> R:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def map_cases(
    work: Work[C, R] | None,
    cases: Sequence[C],
    *,
    names: Sequence[str] = (),
    cluster: Cluster | None = None,
    on_worker: Callable[[str], Work[C, R]] | None = None,
    folder: str | Path | None = None,
    after: Mapping[int, int] | None = None,
    progress: Progress | None = None,
    words: Callable[[int, str], str] = lambda number, label: label,
    unit: int | None = None,
) -> Iterator[tuple[int, Outcome[R]]]:
    """Yield the place and the outcome of each case: in order in this process, and as they end on a cluster.

    Args:
        work: In this process, and on a cluster unless `on_worker` makes it.
        cases: What to work on. On a cluster, paths in them are absolute.
        names: Of each case, for messages of a cluster.
        cluster: None works in this process.
        on_worker: Takes the device of a worker and returns the work as it is done there, such as with a model that was
            loaded once; its errors end the whole.
        folder: That the workers write into.
        after: Of cases that need another one's result on disk, the number of that case, which comes before it. Where
            that fails on a cluster, they are not begun.
        progress: Called with (done, total, label).
        words: Makes the label of the whole from the number of the case and its own label, in this process.
        unit: What a case counts in the progress, where the work tells how far it is.

    Raises:
        Interrupted: As `progress` raises it.
        ResourceError: No worker, one with another version of the package, one that does not see the folder, or a case
            for which each worker that took it lacked a resource. What is finished is kept.
        UnscannedError: What `on_worker` raises.
    """
    if cluster is None:
        assert work is not None
        yield from _here(work, cases, progress, words, unit)
    else:
        send = _Sent(
            work,
            on_worker,
            version(),
            cluster.device,
            cluster.threads,
            str(folder) if folder else None,
            cluster.reads_ahead,
        )
        total = (unit or 1) * len(cases)
        cluster.wait_for_workers(lambda: progress(0, total, "no worker yet") if progress is not None else None)
        _refuse_unfit(cluster, send)
        yield from _there(send, cases, names, cluster, after or {}, progress, unit or 1)


def in_order(outcomes: Iterable[tuple[int, Outcome[R]]]) -> Iterator[Outcome[R]]:
    """Yield the outcomes in the order of their cases, each as soon as all before it are there."""
    early: dict[int, Outcome[R]] = {}
    due = 0
    for number, outcome in outcomes:
        early[number] = outcome
        while due in early:
            yield early.pop(due)
            due += 1


def _here(
    work: Work[C, R],
    cases: Sequence[C],
    progress: Progress | None,
    words: Callable[[int, str], str],
    unit: int | None,
) -> Iterator[tuple[int, Outcome[R]]]:
    for number, case in enumerate(cases):
        began = time.monotonic()
        report = within(progress, number, len(cases), partial(words, number), unit=unit)
        try:
            found: Outcome[R] = Outcome(work(case, report))
        except Interrupted:
            raise
        except Exception as error:
            found = Outcome(error=error)
        yield number, replace(found, seconds=time.monotonic() - began)


@dataclass(frozen=True)
class _Sent:
    """What a worker needs to know beside the case."""

    work: Work[Any, Any] | None
    on_worker: Callable[[str], Work[Any, Any]] | None
    version: str
    device: str
    threads: int | None
    folder: str | None
    reads_ahead: bool | None

    def ready(self, worker: Any) -> Work[Any, Any]:
        """Return the work as a worker of Dask does it, in whose process this is.

        Raises:
            UnscannedError: The worker cannot do it.
        """
        from unscanned.machine.threads import set_process_threads

        if version() != self.version:
            raise _other_version(version(), self.version)
        if self.folder is not None and not os.path.isdir(self.folder):
            raise ResourceError(
                "the worker does not see the output folder",
                where=self.folder,
                do="Workers write the volumes themselves: choose a folder on a file system that all of them share.",
            )
        set_process_threads(self.threads)
        work = self.work if self.on_worker is None else self.on_worker(_device(self.device, worker.name))
        assert work is not None
        return work

    def is_reading_ahead(self) -> bool:
        """Whether this worker computes one case at a time, whatever the number of its threads."""
        return has_gpu(self.device) if self.reads_ahead is None else self.reads_ahead


def _device(asked: str, name: object) -> str:
    """Return the device of the worker of this name: of several GPUs, the one that its number gives it."""
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{name % count}" if asked in ("auto", "cuda") and count > 1 and isinstance(name, int) else asked


def _other_version(found: str, expected: str) -> ResourceError:
    return ResourceError(
        f"the worker has another version of {NAME}",
        found=found,
        expected=f"{expected}, as here",
        do="Start the workers with the same installation.",
    )


def _try_ready(send: _Sent, dask_worker: Any = None) -> UnscannedError | None:
    try:
        send.ready(dask_worker)
    except Exception as error:
        return of_one(error, where="worker")
    return None


def _refuse_unfit(cluster: Cluster, send: _Sent) -> None:
    """Refuse workers that cannot do the work, before any case is begun."""
    client = cluster.client
    known = client.get_versions(check=False, packages=[NAME])["workers"]
    names = {address: f"worker {facts['name']}" for address, facts in cluster.workers.items()}
    for address, facts in known.items():
        found = facts["packages"].get(NAME)
        if found != send.version:
            raise _other_version(found or "none", send.version).at(names.get(address, address))
    for address, error in client.run(_try_ready, send, on_error="return").items():
        if error is not None:
            raise _of_worker(error, names.get(address, address))


def _of_worker(error: Exception, worker: str) -> UnscannedError:
    told = of_one(error, where=worker)
    return told.but(where=worker if told.where in (None, worker, "worker") else f"{worker}: {told.where}")


def _task(send: _Sent, case: Any, name: str) -> Outcome[Any]:
    """Work on one case, on a worker."""
    from distributed import get_worker

    began, here = time.monotonic(), get_worker()
    own: Any = {"worker": f"{here.name}@{socket.gethostname()}", "address": here.address}
    given: list[warnings.WarningMessage] = []
    waited = 0.0
    try:
        with _READYING:
            work, is_ahead = send.ready(here), send.is_reading_ahead()
    except Exception as error:
        return Outcome(error=of_one(error, where=None), is_unfit=True, **own)
    try:
        rest = work.read_ahead(case) if is_ahead and isinstance(work, ReadsAhead) else partial(work, case)
        asked = time.monotonic()
        with _COMPUTING if is_ahead else nullcontext():
            waited = time.monotonic() - asked
            # Recorded for the whole process: reading, beside it, gives none.
            with warnings.catch_warnings(record=True) as given:
                warnings.simplefilter("always")
                found: Outcome[Any] = Outcome(rest(None))
    except Exception as error:
        found = Outcome(error=of_one(error, where=name))
    told = tuple(str(warning.message) for warning in given if issubclass(warning.category, UserWarning))
    return replace(found, seconds=time.monotonic() - began - waited, warnings=told, **own)


def _there(
    send: _Sent,
    cases: Sequence[Any],
    names: Sequence[str],
    cluster: Cluster,
    after: Mapping[int, int],
    progress: Progress | None,
    unit: int,
) -> Iterator[tuple[int, Outcome[Any]]]:
    client, group = cluster.client, f"{NAME}-{uuid.uuid4().hex}"
    waiting = deque(number for number in range(len(cases)) if number not in after)
    held = {first: [number for number, needed in after.items() if needed == first] for first in after.values()}
    running: dict[int, Any] = {}
    lacking: dict[int, list[str]] = {}
    doubtful: deque[int] = deque()
    doubted: set[int] = set()
    tries: Counter[int] = Counter()
    ended: SimpleQueue[int] = SimpleQueue()
    watch = _Watch(cluster)
    done = failed = 0
    try:
        while waiting or running or doubtful:
            workers = watch.workers()
            if not waiting and not running:  # alone at the end
                waiting.append(doubtful.popleft())
            while waiting and len(running) < max(_AHEAD, 4 * watch.slots):
                number = waiting.popleft()
                tried = lacking.get(number, [])
                running[number] = client.submit(
                    _task,
                    send,
                    cases[number],
                    names[number],
                    key=(group, number, tries[number]),
                    workers=[address for address in workers if address not in tried] if tried else None,
                    pure=False,
                )
                tries[number] += 1
                running[number].add_done_callback(lambda _, number=number: ended.put(number))
            if progress is not None:
                told = f"{done} of {len(cases)} done" + (f", {failed} failed" if failed else "")
                progress(unit * done, unit * len(cases), f"{told}, {len(workers)} at work")
            try:
                number = ended.get(timeout=_LOOKS_EVERY_S)
            except Empty:
                continue
            found = _outcome(running.pop(number), names[number], cluster)
            if found.is_unfit and found.error is not None:
                raise _of_worker(found.error, f"worker {found.worker}") from found.error
            if isinstance(found.error, ResourceError):
                lacking.setdefault(number, []).append(found.address)
                if len(lacking[number]) >= TRIES or not set(cluster.workers) - {*lacking[number]}:
                    raise _of_worker(found.error, f"worker {found.worker}") from found.error
                waiting.appendleft(number)
                continue
            if isinstance(found.error, WorkerLost) and watch.most_threads > 1 and number not in doubted:
                doubted.add(number)
                doubtful.append(number)  # it may have been another case that its worker had in hand
                continue
            done, failed = done + 1, failed + (found.error is not None)
            for text in found.warnings:
                warn(text)
            yield number, found
            for later in held.pop(number, []):
                if found.error is None:
                    waiting.append(later)
                else:
                    done, failed = done + 1, failed + 1
                    yield later, Outcome(error=found.error)
        if progress is not None:
            progress(unit * done, unit * len(cases), f"{done} of {len(cases)} done")
    finally:
        if running and client.status == "running":
            client.cancel([*running.values()], force=True)


class _Watch:
    """Looks now and then who is at work, and ends what has nobody left to do it.

    Attributes:
        slots: Cases that the workers have in hand at a time.
        most_threads: Of a worker so far: so many cases count a death of it.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._workers: dict[str, Any] = {}
        self.slots = self.most_threads = 0
        self._looked_at = self._seen_at = float("-inf")

    def workers(self) -> dict[str, Any]:
        """Return the workers by address.

        Raises:
            ResourceError: There has been none for too long, or the scheduler is gone.
        """
        cluster, now = self._cluster, time.monotonic()
        if now - self._looked_at >= _LOOKS_EVERY_S:
            if cluster.client.status != "running":
                raise _without_scheduler(cluster)
            self._workers, self._looked_at = cluster.workers, now
            threads = [worker["nthreads"] for worker in self._workers.values()]
            self.slots, self.most_threads = sum(threads), max([self.most_threads, *threads])
            if self._workers or self._seen_at < 0:
                self._seen_at = now
            elif cluster.patience_s is not None and now - self._seen_at > cluster.patience_s:
                raise cluster.without_workers(cluster.patience_s)
        return self._workers


def _without_scheduler(cluster: Cluster) -> ResourceError:
    return ResourceError(
        "the scheduler is gone",
        where=cluster.place,
        do="Start it and run the same command again; what is finished is kept.",
    )


def _outcome(future: Any, name: str, cluster: Cluster) -> Outcome[Any]:
    """Return what became of a task that has ended."""
    from distributed.scheduler import KilledWorker

    try:
        found: Outcome[Any] = future.result()
        return found
    except KilledWorker as error:
        limit = cluster.memory_bytes
        lost = WorkerLost(
            f"given up: the worker died with it, {error.allowed_failures + 1} times in a row",
            where=name,
            do=f"It may need more than the {limit / 2**30:.1f} GiB of memory of a worker." if limit else None,
        )
        return Outcome(error=lost, worker=str(error.last_worker.name))
    except ImportError as error:
        unfit = _other_version("none", version()).but(do=f"It has {in_words(error)}. Install {NAME} for the workers.")
        return Outcome(error=unfit, is_unfit=True)
    except CancelledError as error:
        raise _without_scheduler(cluster) from error
