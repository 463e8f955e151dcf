"""A bug: a file that holds what happened, and the error that names it."""

from __future__ import annotations

import sys
import tempfile
import traceback

from unscanned.errors import BUG, BugError, ResourceError, UnscannedError
from unscanned.machine.provenance import version

__all__ = ["as_bug", "of_one"]


def as_bug(error: Exception, where: object = None) -> BugError:
    """Return an exception that nobody foresaw as one that a user can meet; its traceback is in a file of its own.

    Args:
        error: What was raised.
        where: The scan or case that it is about.
    """
    handle, name = tempfile.mkstemp(prefix="unscanned-crash-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"unscanned {version()}\n{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    return BugError(f"{BUG}; what happened is in {name}", where=where, do="Please report it with that file.")


def of_one(error: Exception, where: object) -> UnscannedError:
    """Return the error of one scan or case among many, whatever its kind, so that the others go on."""
    if isinstance(error, MemoryError):
        return ResourceError("memory is short", where=where, do="Close other programs, or take a smaller scan.")
    return error if isinstance(error, UnscannedError) else as_bug(error, where)
