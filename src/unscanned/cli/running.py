"""A verb while it runs: progress bars, and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from unscanned.cli.terminal import complain
from unscanned.display import bars
from unscanned.errors import Interrupted
from unscanned.machine.started import is_rank, tells
from unscanned.progress import Pace, Progress

if TYPE_CHECKING:
    from unscanned.cluster.workers import Cluster

__all__ = ["Stop", "browse", "computing", "progress", "workers"]

LINE_EVERY_S = 60.0
"Between two lines about progress where there is no terminal."


def browse(page: Path) -> None:
    """Open a page in the browser where there is a display to show it."""
    import webbrowser

    is_shown = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if is_shown and page.is_file():
        webbrowser.open(Path(os.path.realpath(page)).as_uri())


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield a progress function that shows on standard error what is done, how much of the whole, and the time left.

    A terminal gets a bar, anything else a line each minute. Neither says 100 % before the work has ended.
    """
    from rich.console import Console

    if not tells():
        yield _nothing
    elif Console(stderr=True).is_interactive:
        with bars() as show:
            yield show
    else:
        yield _lines()


def _nothing(done: int, total: int, label: str) -> None:
    """Show nothing: another process does."""


def _lines() -> Progress:
    """Return a progress function that writes a line on standard error now and then."""
    pace, told_at = Pace(), time.monotonic()

    def show(done: int, total: int, label: str) -> None:
        nonlocal told_at
        now = pace(done, total)
        if time.monotonic() - told_at >= LINE_EVERY_S:
            told_at = time.monotonic()
            complain(f"{label}: " + ", ".join(filter(None, (now.percent, now.left))))

    return show


@contextlib.contextmanager
def computing(device: str = "auto") -> Iterator[tuple[Progress, Stop]]:
    """Yield a progress function and what says when to stop, for verbs that run networks in this process.

    Args:
        device: As it was asked for; where auto means the CPU, it is said.
    """
    import torch

    if tells() and device == "auto" and not torch.cuda.is_available():
        complain("PyTorch sees no CUDA device, so the CPU is used")
    with progress() as report, Stop() as stop:
        yield report, stop


@contextlib.contextmanager
def workers(
    cluster: str | None,
    *,
    device: str = "auto",
    threads: int | None = None,
    shared: Path | None = None,
    reads_ahead: bool | None = False,
) -> Iterator[Cluster | None]:
    """Yield the workers of --cluster, and say who they are and where to watch them; None where it is not given."""
    if cluster is None:
        yield None
        return
    from unscanned.cluster.workers import open_cluster

    with open_cluster(cluster, device=device, threads=threads, shared=shared, reads_ahead=reads_ahead) as opened:
        complain(str(opened))
        yield opened


class Stop:
    """Turns the first SIGINT or SIGTERM into "stop after this step"; the second raises `KeyboardInterrupt(signal)`."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        is_ending = isinstance(error, Interrupted) and self.signal is not None
        for number, handler in self._before.items():
            # A late second signal must not cut off the message that the state is saved.
            signal.signal(number, signal.SIG_IGN if is_ending else handler)
        if isinstance(error, Interrupted) and self.signal is not None:
            error.exit_code = 128 + self.signal

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt(number)
        self.signal = number
        if not is_rank():  # which a signal also ends when another has failed
            complain("stopping after this step; once more to stop at once")
