"""How long work tells how far it is: the library calls, the command line draws."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from unscanned.errors import Interrupted

__all__ = ["Now", "Pace", "Progress", "begin", "interruptible", "labelled", "shares", "signal_of", "within"]

Progress = Callable[[int, int, str], None]
"""Called with (done, total, label)."""


def begin(progress: Progress | None, label: str) -> None:
    """Tell that a work begins which does not count its steps."""
    if progress is not None:
        progress(0, 1, label)


def interruptible(progress: Progress | None, should_stop: Callable[[], bool], where: object) -> Progress:
    """Return a progress function that ends the work it is given to once `should_stop` says so.

    For work that can be taken up again: what is finished stays on disk.

    Args:
        progress: Called with what the work tells, if given.
        should_stop: Asked each time.
        where: Folder or file that the work is for, for the message.

    Returns:
        Raises `Interrupted` when it is time to stop.
    """

    def report(done: int, total: int, label: str) -> None:
        if should_stop():
            raise Interrupted(
                "interrupted", where=where, found=f"{label}: {done} of {total}", do="Run it again to go on."
            )
        if progress is not None:
            progress(done, total, label)

    return report


def signal_of(should_stop: Callable[[], bool]) -> int:
    """Return the number of the signal that asks to stop, 1 where something else asks, 0 where nothing does."""
    return int(getattr(should_stop, "signal", 1)) if should_stop() else 0


def labelled(progress: Progress | None, prefix: str) -> Progress | None:
    """Return a progress function that puts words in front of each label."""
    if progress is None or not prefix:
        return progress
    return lambda done, total, label: progress(done, total, prefix + label)


_WHOLE = 1_000_000


def shares(progress: Progress | None, costs: Sequence[float]) -> list[Progress | None]:
    """Return a progress function for each part of a work; each moves the whole on by its share of the cost.

    Args:
        progress: Of the whole work, which then counts in millionths.
        costs: Of the parts in order, in any unit.
    """
    if progress is None:
        return [None for _ in costs]
    ends = [_WHOLE * end / (sum(costs) or 1) for end in accumulate(costs)]

    def part(start: float, end: float) -> Progress:
        return lambda done, total, label: progress(int(start + (end - start) * done / (total or 1)), _WHOLE, label)

    return [part(start, end) for start, end in zip([0.0, *ends], ends, strict=False)]


def within(
    progress: Progress | None, number: int, count: int, words: Callable[[str], str] = str, *, unit: int | None = None
) -> Progress | None:
    """Return a progress function for one of several equal parts of a work.

    Args:
        progress: Of the whole work.
        number: Parts done before this one.
        count: All parts.
        words: Makes the label of the whole from that of the part.
        unit: What a part counts in the whole; None takes the total of the part.
    """
    if progress is None:
        return None

    def report(done: int, total: int, label: str) -> None:
        size = unit or total
        progress(size * number + size * done // total, size * count, words(label))

    return report


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
