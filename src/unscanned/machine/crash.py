"""A bug: a file that holds what happened, and the error that names it."""

from __future__ import annotations

import sys
import tempfile
import traceback

from unscanned.errors import BugError
from unscanned.machine.provenance import version

__all__ = ["as_bug"]


def as_bug(error: Exception, where: object = None) -> BugError:
    """Return an exception that nobody foresaw as one that a user can meet; its traceback is in a file of its own.

    Args:
        error: What was raised.
        where: The scan or case that it is about.
    """
    handle, name = tempfile.mkstemp(prefix="unscanned-crash-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"unscanned {version()}\n{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
    return BugError(f"this is a bug; what happened is in {name}", where=where, do="Please report it with that file.")
