"""The command line from words to an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from cyclopts import CycloptsError

from unscanned.cli.terminal import complain, complain_of, complain_of_thread
from unscanned.cli.verbs import app
from unscanned.errors import UnscannedError
from unscanned.machine.provenance import version

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code.

    Args:
        arguments: What follows the program's name; None takes `sys.argv`.
    """
    if os.environ.get("COLUMNS") == "0":  # some terminals without a size say so; rich would print nothing at all
        del os.environ["COLUMNS"]
    warnings.showwarning = complain_of
    threading.excepthook = complain_of_thread
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path comes out as the bytes that it is
    try:
        app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        return 2
    except UnscannedError as error:
        complain(str(error))
        return error.exit_code
    except KeyboardInterrupt as error:
        complain("stopped at once; what was finished before is kept")
        return 128 + int(next(iter(error.args), signal.SIGINT))
    except Exception:
        path = _write_crash(traceback.format_exc())
        complain(f"this is a bug; what happened is in {path}. Please report it with that file.")
        return 1
    return 0


def _write_crash(text: str) -> Path:
    """Write a traceback to a file of its own and return its path."""
    handle, name = tempfile.mkstemp(prefix="unscanned-crash-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"unscanned {version()}\n{' '.join(sys.argv)}\n\n{text}")
    return Path(name)
