"""How long work tells how far it is: the library calls, the command line draws."""

from collections.abc import Callable, Sequence
from itertools import accumulate

from unscanned.errors import Interrupted

__all__ = ["Progress", "interruptible", "labelled", "shares", "within"]

Progress = Callable[[int, int, str], None]
"""Called with (done, total, label)."""


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
