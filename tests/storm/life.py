"""Processes that are killed at a random moment."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
import torch._dynamo  # what the optimizers and the log import takes seconds: once here, not in each process
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

from unscanned.simulation.simulate import simulate

SHAPE = (24, 24, 24)


def small_dataset(folder: Path, subjects: int = 5) -> Path:
    """Simulate heads so small that a training step takes a tenth of a second."""
    return simulate(folder, subjects=subjects, per_anatomy=subjects, shape=SHAPE, spacing_mm=8.0, seed=1)


def live(work: Callable[[], None], seconds: float | None, *, group: bool = False) -> bool:
    """Do work in a process of its own and kill it with SIGKILL after so many seconds of processor time.

    Processor time, so that a busy machine kills at the same stages of the work as an idle one.

    Args:
        work: What to do.
        seconds: None lets it live to its end.
        group: Kill its children at the same moment instead of leaving them to notice.

    Returns:
        Whether the work was finished before.

    Raises:
        RuntimeError: The work failed by itself.
    """
    process = multiprocessing.get_context("fork").Process(target=_alone, args=(work,))
    process.start()
    watched = psutil.Process(process.pid)
    while process.exitcode is None:
        process.join(None if seconds is None else 0.003)
        if seconds is not None and process.exitcode is None and _used(watched) > seconds:
            break
    if process.exitcode is None and process.pid is not None:
        try:
            (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet the leader of its group
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the work ended by itself with exit code {process.exitcode}")
    return process.exitcode == 0


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _alone(work: Callable[[], None]) -> None:
    os.setpgid(0, 0)
    torch.set_num_threads(1)
    try:
        work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def fresh(folder: Path) -> Path:
    """Return an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def moments(seed: int, earliest: float, latest: float) -> Callable[[], tuple[float, bool]]:
    """Return a function that gives the seconds of the next life and whether its whole group is killed."""
    chance = random.Random(seed)
    return lambda: (chance.uniform(earliest, latest), chance.random() < 0.5)
