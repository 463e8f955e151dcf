"""One training on several devices of a host: a process for each, started and watched by PyTorch's elastic agent."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unscanned.errors import ResourceError, UnscannedError
from unscanned.files import write_text
from unscanned.settings import Settings, to_toml

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

__all__ = ["train_on_devices"]

_TO_THE_END_S = "600"
"That processes have to finish and save their step after a signal."
_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def train_on_devices(dataset: Path, out: Path, settings: Settings) -> None:
    """Train as `unscanned train` does, on as many devices as the settings say.

    The first process speaks to the user. What ends the training is told here, once, whichever process it came from.

    Args:
        dataset: As for `train`.
        out: The run.
        settings: What to train.

    Raises:
        UnscannedError: With the message and the exit code of the process that failed first.
        ResourceError: A process was killed.
        KeyboardInterrupt: A signal ended the processes before they could save.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    devices = settings.training.devices
    with tempfile.TemporaryDirectory(prefix="unscanned-") as folder, _alone():
        file = Path(folder) / "settings.toml"
        write_text(file, to_toml(settings))
        _set_environment(devices)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,  # a training that goes on by itself from a checkpoint would hide why it ended
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        words = ("-m", "unscanned", "train", str(dataset), "-o", str(out), "--settings", str(file))
        try:
            elastic_launch(config, sys.executable)(*words)
        except ChildFailedError as failed:
            raise _cause(failed.failures) from None
        except SignalException as caught:
            told = _told(Path(folder))
            if told is None:
                raise KeyboardInterrupt(int(caught.sigval)) from None
            raise _with_code(told, 128 + int(caught.sigval)) from None


def _set_environment(devices: int) -> None:
    """Set what the processes start with, where the user has not."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _TO_THE_END_S)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // devices))
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are here, whatever the host is called


def _cause(failures: Mapping[int, ProcessFailure]) -> UnscannedError:
    """Return the error of the rank that failed first; the agent ends the others by SIGTERM."""
    rank, failure = min(failures.items(), key=lambda one: (one[1].exitcode == -signal.SIGTERM, one[1].timestamp))
    if failure.exitcode > 0 and failure.error_file_data.get("timestamp"):
        return _with_code(str(failure.message), failure.exitcode)
    how = f"by {failure.signal_name()}" if failure.exitcode < 0 else f"with exit code {failure.exitcode}"
    return ResourceError(
        "a process of the training was ended from outside",
        found=f"rank {rank}, {how}",
        expected="memory for all processes, and nobody to end one",
        do="The last checkpoint is kept. Run it again to go on.",
    )


def _told(folder: Path) -> str | None:
    """Return what the lowest rank that said something has said."""
    for path in sorted(folder.rglob("error.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(path.read_text(encoding="utf-8"))["message"])
    return None


def _with_code(message: str, code: int) -> UnscannedError:
    error = UnscannedError(message)
    error.exit_code = code
    return error


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep what the agent logs from the user, and take back afterwards what it does at signals."""
    before = {number: signal.getsignal(number) for number in _CAUGHT}
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for number, handler in before.items():
            signal.signal(number, handler)
