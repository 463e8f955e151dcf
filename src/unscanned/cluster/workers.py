"""The workers of a cohort: processes of this machine, those of a running Dask scheduler, or jobs of Slurm."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unscanned.errors import ResourceError, SettingsError, in_words

__all__ = ["TRIES", "Cluster", "has_gpu", "open_cluster"]

TRIES = 3
"How often a scan is taken up whose worker dies with it, where the scheduler is ours."

_CONNECT_S = 10
"After which a scheduler counts as one that cannot be reached."

_SLURM_ANSWERS_S = 60
"The same of a Slurm, whose own commands try again for a while."

_FIRST_WORKER_S = 60.0
"How long a scheduler that runs already may be without any worker at the beginning."

_NO_WORKER_S = 600.0
"How long there may be none later: on a busy machine, new processes take minutes."

_OURS = {
    "distributed.scheduler.allowed-failures": TRIES - 1,
    # A worker gets its next task when it has none: a task that waits on it would count its death as one of its own.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.profile.enabled": False,  # it grows for an hour
    "distributed.worker.daemon": False,  # a training has processes of its own, which read its batches
}
"Configuration of the schedulers that are started here."

_LOCAL = {
    # Dask forgets a local worker, and starts none in its place, that is away this long after a death: one that has just
    # died again with the same scan is. Its nanny starts it again each time.
    "distributed.deploy.lost-worker-timeout": "365 days",
}
"The same of those whose workers are of this machine."

_SHARE_OF_MEMORY = 0.9
"Of the machine's memory, what all local workers together may take."

_JOB = {"cores": 1, "memory": "4GiB", "walltime": "01:00:00"}
"What a job of Slurm asks for where dask-jobqueue's own configuration does not say."


@dataclass(frozen=True, eq=False)
class Cluster:
    """Workers, and the scheduler that hands them their tasks.

    Attributes:
        client: Of Dask.
        place: As it was asked for, such as `local:2`.
        device: That a worker takes: auto, cpu, cuda or cuda:N.
        threads: CPU threads of a worker; None leaves their number to it.
        patience_s: How long there may be no worker at all; None waits for ever, as in a queue.
        reads_ahead: Whether a worker of two threads reads the next case while it computes one; None leaves it to the
            worker, which does so on a GPU.
    """

    client: Any
    place: str
    device: str = "auto"
    threads: int | None = None
    patience_s: float | None = _NO_WORKER_S
    reads_ahead: bool | None = False

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        """What Dask knows of each worker, by its address."""
        found: dict[str, dict[str, Any]] = self.client.scheduler_info(n_workers=-1)["workers"]
        return found

    @property
    def memory_bytes(self) -> int | None:
        """What the smallest worker may take before it is ended; None where one has no limit."""
        limits = [worker["memory_limit"] or 0 for worker in self.workers.values()]
        return min(limits, default=0) or None

    def __str__(self) -> str:
        count, limit = len(self.workers), self.memory_bytes
        words = f"{count} worker{'s' * (count != 1)}" if count else "no worker yet"
        if count:
            words += f", each with at most {limit / 2**30:.1f} GiB of memory" if limit else ", with no limit of memory"
        dashboard = self.client.dashboard_link
        return f"{self.place}: {words}" + (f"; dashboard {dashboard}" if dashboard else "")

    def wait_for_workers(self, waiting: Callable[[], None] = lambda: None) -> None:
        """Wait for the first worker.

        Args:
            waiting: Called every second meanwhile; what it raises ends the wait.

        Raises:
            ResourceError: None came.
        """
        began = time.monotonic()
        while not self.workers:
            waiting()
            if self.patience_s is not None and time.monotonic() - began > _FIRST_WORKER_S:
                raise self.without_workers(_FIRST_WORKER_S)
            with contextlib.suppress(TimeoutError):
                self.client.wait_for_workers(1, timeout=1)

    def without_workers(self, seconds: float) -> ResourceError:
        """Return the error of a cluster that has had no worker for so long."""
        return ResourceError(
            "the cluster has no worker",
            where=self.place,
            found=f"none for {seconds:.0f} seconds",
            expected="one or more",
            do="Start workers with `dask worker ADDRESS` and run the same command again; what is finished is kept.",
        )


@contextlib.contextmanager
def open_cluster(
    place: str | Cluster,
    *,
    device: str = "auto",
    threads: int | None = None,
    shared: str | Path | None = None,
    reads_ahead: bool | None = False,
) -> Iterator[Cluster]:
    """Yield the workers of a place; those that are started here end with the body.

    Args:
        place: `local` or `local:N` for N processes of this machine, by default one for each GPU or, without one, for
            each core; the address of a running Dask scheduler; or `slurm` or `slurm:N` for N jobs of Slurm, configured
            as dask-jobqueue is. Or a cluster that is open already.
        device: That each worker takes: auto, cpu, cuda or cuda:N.
        threads: CPU threads of each worker. When unset, local workers share the cores.
        shared: Folder that all jobs of Slurm see, for their scripts, logs and certificates.
        reads_ahead: Whether a worker has two scans in hand when it synthesizes: it reads the next one while it computes
            one. None does so on GPUs of this machine, and on those of a running scheduler whose workers have two
            threads (`dask worker --nthreads 2`).

    Raises:
        SettingsError: No such place.
        ResourceError: The scheduler cannot be reached, or the software is not installed.
    """
    if isinstance(place, Cluster):
        yield place
        return
    kind, _, number = place.partition(":")
    if kind in ("local", "slurm"):
        if number and not re.fullmatch(r"[1-9]\d{0,4}", number):
            raise SettingsError("no such number of workers", where="cluster", found=place, expected=f"{kind}:N")
        start = _local if kind == "local" else _slurm
        with start(place, int(number or 0), device, threads, shared, reads_ahead) as cluster:
            yield cluster
    elif re.fullmatch(r"[a-z]+://\S+|[^\s/:]+:\d+", place):
        with _running(place, device, threads, reads_ahead) as cluster:
            yield cluster
    else:
        raise SettingsError(
            "no such cluster",
            where="cluster",
            found=place,
            expected="local, local:N, slurm, slurm:N, or the address of a Dask scheduler such as tcp://host:8786",
        )


@contextlib.contextmanager
def _local(
    place: str, count: int, device: str, threads: int | None, shared: str | Path | None, reads_ahead: bool | None
) -> Iterator[Cluster]:
    from unscanned.machine.memory import machine_bytes

    distributed = _dask("distributed")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = count or _gpus(device) or max(1, cores // (threads or 1))
    ahead = has_gpu(device) if reads_ahead is None else reads_ahead
    memory = machine_bytes()
    with (
        tempfile.TemporaryDirectory(prefix="unscanned-cluster-") as scratch,
        _dask("dask").config.set(_OURS | _LOCAL),
        # Certificates of its own: on a machine that many share, nobody else can hand these workers code.
        distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1 + ahead,
            memory_limit=int(_SHARE_OF_MEMORY * memory / count) if memory else "auto",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            local_directory=scratch,
            security=True,
            protocol="tls",
        ) as started,
        distributed.Client(started) as client,
    ):
        yield Cluster(client, place, device, threads or max(1, cores // count), reads_ahead=ahead)


@contextlib.contextmanager
def _running(address: str, device: str, threads: int | None, reads_ahead: bool | None) -> Iterator[Cluster]:
    distributed = _dask("distributed")
    try:
        client = distributed.Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ResourceError(
            "the scheduler cannot be reached",
            where=address,
            found=in_words(error),
            do="Check the address, and that `dask scheduler` runs there and listens to this machine.",
        ) from error
    with client:
        yield Cluster(client, address, device, threads, reads_ahead=reads_ahead)


@contextlib.contextmanager
def _slurm(
    place: str, count: int, device: str, threads: int | None, shared: str | Path | None, reads_ahead: bool | None
) -> Iterator[Cluster]:
    distributed, jobqueue, config = _dask("distributed"), _dask("dask_jobqueue", "slurm"), _dask("dask").config
    _refuse_silent_slurm(place)
    own = {name: config.get(f"jobqueue.slurm.{name}", None) for name in _JOB}
    job = {name: own[name] or default for name, default in _JOB.items()}
    if threads:
        job["cores"] = threads
    folder = Path(os.path.abspath(shared or ".")) / ".slurm"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        config.set(_OURS),
        jobqueue.SLURMCluster(
            processes=1,
            **job,
            worker_extra_args=["--nthreads", "2" if reads_ahead else "1"],
            log_directory=str(folder),
            local_directory=config.get("jobqueue.slurm.local-directory", None) or tempfile.gettempdir(),
            scheduler_options={"dashboard_address": "127.0.0.1:0", "host": _host(config)},
            silence_logs=logging.CRITICAL,
            security=True,  # its certificates lie in the shared folder, which others cannot read
            protocol="tls://",
            shared_temp_directory=str(folder),
        ) as started,
        distributed.Client(started) as client,
    ):
        # A job that ends before its time, or at its limit, is asked for anew.
        started.adapt(minimum_jobs=count or 1, maximum_jobs=count or 1)
        yield Cluster(client, place, device, threads, patience_s=None, reads_ahead=reads_ahead)


def _refuse_silent_slurm(place: str) -> None:
    """Refuse a Slurm that does not answer: dask-jobqueue would wait without end for jobs that it cannot submit."""
    try:
        subprocess.run(["sinfo", "--noheader"], check=True, capture_output=True, text=True, timeout=_SLURM_ANSWERS_S)
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or "").strip()
        raise ResourceError(
            "Slurm cannot be reached",
            where=place,
            found=said or in_words(error),
            do="Check that `sinfo` answers on this machine; --emit slurm writes a script that needs no Slurm here.",
        ) from error


def _host(config: Any) -> str | None:
    """Return the name that jobs reach this machine by; None where dask-jobqueue's configuration names an interface."""
    return None if config.get("jobqueue.slurm.interface", None) else socket.gethostname()


def has_gpu(device: str) -> bool:
    """Whether the device that was asked for is a GPU, in this process."""
    import torch

    return device != "cpu" and torch.cuda.is_available()


def _gpus(device: str) -> int:
    if device not in ("auto", "cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


def _dask(name: str, extra: str = "cluster") -> Any:
    """Return a module that is optional.

    Raises:
        ResourceError: It is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ResourceError(
            "needs software that is not installed",
            where="--cluster",
            found=f"no module {error.name}",
            do=f"pip install 'unscanned[{extra}]'",
        ) from error
