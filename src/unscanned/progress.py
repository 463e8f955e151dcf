"""How long work tells how far it is: the library calls, the command line draws."""

from collections.abc import Callable

from unscanned.errors import Interrupted

__all__ = ["Progress", "interruptible"]

Progress = Callable[[int, int, str], None]
"""Called with (done, total, label)."""


def interruptible(progress: Progress | None, should_stop: Callable[[], bool], where: object) -> Progress:
    """Return a progress function that ends the work it is given to once `should_stop` says so.

    For work that can be taken up again: what is finished stays on disk.

    Args:
        progress: Called with what the work reports, if given.
        should_stop: Asked at each report.
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
