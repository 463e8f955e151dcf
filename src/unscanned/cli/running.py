"""A verb while it runs: progress bars, and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

from unscanned.cli.terminal import complain, shown
from unscanned.errors import Interrupted
from unscanned.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Now", "Pace", "Stop", "computing", "progress"]


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield a progress function that shows on standard error what is done, how much of the whole, and the time left.

    A terminal gets a bar, anything else a line each minute. Neither says 100 % before the work has ended.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_interactive:
        with _bar(console) as show:
            yield show
    else:
        yield _lines()


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    from rich.console import RenderableType
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Bar(Bars):
        """A bar below the line that says what is being done, so that neither takes room from the other."""

        def get_renderables(self) -> Iterator[RenderableType]:
            for task in self.tasks:
                yield Text(task.description, no_wrap=True, overflow="ellipsis")
            yield self.make_tasks_table(self.tasks)

    columns = (BarColumn(), TextColumn("{task.fields[share]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    with Bar(*columns, console=console, transient=True) as bar:
        task, pace = bar.add_task("", total=None, share="", left=""), Pace()

        def show(done: int, total: int, label: str) -> None:
            now = pace(done, total)
            bar.update(task, completed=now.share, total=1, description=shown(label), share=now.percent, left=now.left)

        yield show


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


@dataclass(frozen=True)
class Now:
    """How far a work is.

    Attributes:
        share: Of the whole, from 0 to 1; below 1 while the work goes on.
        percent: The same in words.
        left: The time left in words; empty where nothing is known of it.
    """

    share: float
    percent: str
    left: str


class Pace:
    """Tells the time left from how fast the last minutes went.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()

    def __call__(self, done: int, total: int) -> Now:
        """Return how far the work is.

        Args:
            done: Of `total`; less than before where another work begins.
            total: All.
        """
        share, now = min(done / total if total else 0.0, 0.99), self._clock()
        if self._seen:
            at, before = self._seen[-1]
            if share < before or (share - before > _LEAP and now - at < 1):
                self._seen.clear()  # another work, or one that was there already: neither tells how fast this one is
        if not self._seen or now - self._seen[-1][0] >= 0.5:
            self._seen.append((now, share))
        while now - self._seen[0][0] > _WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()
        began, first = self._seen[0]
        left = ""
        if now - began >= _LEAST_S and share > first:
            left = _in_words((1 - share) * (now - began) / (share - first)) + " left"
        return Now(share, f"{share:.0%}", left)


LINE_EVERY_S = 60.0
_WINDOW_S = 300.0
_LEAST_S = 3.0
_LEAP = 0.02


def _in_words(seconds: float) -> str:
    """Return a time to two digits or so, such as "2 h 10 min"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


@contextlib.contextmanager
def computing(device: str = "auto") -> Iterator[tuple[Progress, Stop]]:
    """Yield a progress function and what says when to stop, for verbs that run networks in this process.

    Args:
        device: As it was asked for; where auto means the CPU, it is said.
    """
    import torch

    if device == "auto" and not torch.cuda.is_available():
        complain("PyTorch sees no CUDA device, so the CPU is used")
    with progress() as report, Stop() as stop:
        yield report, stop


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
        complain("stopping after this step; once more to stop at once")
