"""The command line from words to an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType

from cyclopts import CycloptsError

from unscanned.cli.terminal import complain, complain_of, complain_of_thread
from unscanned.cli.usage import refusal
from unscanned.cli.verbs import app
from unscanned.errors import DatasetError, ResourceError, SettingsError, UnscannedError
from unscanned.machine.crash import as_bug
from unscanned.machine.started import hand_over, tells

__all__ = ["main"]

_READER_LEFT = 128 + signal.SIGPIPE
"Exit code where nobody reads standard output any more: what a shell says of a program that SIGPIPE ended."
_NARROWEST = 20
"Columns that text is laid out for at least: for one or two, rich takes half a minute."
_ASK = "Ask its owner for the right to enter its folder and to read it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code.

    Args:
        arguments: What follows the program's name; None takes `sys.argv`.
    """
    if os.environ.get("COLUMNS") == "0":  # some terminals without a size say so; rich would print nothing at all
        del os.environ["COLUMNS"]
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    warnings.showwarning = complain_of if tells() else _say_nothing
    threading.excepthook = complain_of_thread
    _fill_closed_descriptors()
    os.environ.pop("MPLBACKEND", None)  # pictures are only written, and a backend that is not there fails the import
    with _Messages.in_place_of("stderr", "backslashreplace"):
        # A path comes out as the bytes that it is.
        with _terminable(), _Stream.in_place_of("stdout", "surrogateescape") as output:
            code = _run(arguments, output)
        if output.lost is None or code:
            return code
        if isinstance(output.lost, BrokenPipeError):  # a reader that has gone, such as head, wanted no more
            return _READER_LEFT
        complain(str(ResourceError("cannot be written", where="standard output", found=output.lost.strerror)))
        return ResourceError.exit_code


def _run(arguments: Sequence[str] | None, output: _Stream) -> int:
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _fail(str(refusal(error)))
        return 2
    except UnscannedError as error:
        _fail(str(error), error)
        return error.exit_code
    except KeyboardInterrupt as error:
        _forget_interrupt()
        _fail("stopped at once; what was finished before is kept")
        return 128 + int(next(iter(error.args), signal.SIGINT))
    except SystemExit:  # of rich, where nobody reads its table any more
        return _READER_LEFT
    except Exception as error:
        if isinstance(error, OSError) and (told := _of_a_path(error)):
            _fail(str(told))
            return told.exit_code
        if error is not output.lost:
            _fail(str(as_bug(error)))
            return 1
    return 0


def _fail(message: str, error: UnscannedError | None = None) -> None:
    """Say why a verb ends; one of several processes leaves that to the one that started it."""
    if not hand_over(message, error):
        complain(message)


def _forget_interrupt() -> None:
    """Make Python forget a `KeyboardInterrupt` that left code made from a string, as a dataclass makes its methods.

    `python -m` would end the process by SIGINT in place of the exit code, though the exception was caught.
    """
    exec("")  # any string would do


def _say_nothing(*_: object, **__: object) -> None:
    """Take a warning that another process tells."""


def _of_a_path(error: OSError) -> UnscannedError | None:
    """Return what is wrong with a path that the system itself refused, wherever it was looked at first."""
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename is not None:
        return DatasetError("may not be looked at", where=error.filename, found=error.strerror, do=_ASK)
    if error.errno == errno.ENAMETOOLONG:
        return SettingsError("the name is longer than the file system allows", where=error.filename)
    if error.errno == errno.ENOENT and error.filename is None:  # of getcwd
        return SettingsError("the working folder is gone", do="Change into one that is there.")
    return None


class _Stream(io.TextIOWrapper):
    """A standard stream that remembers why it could not be written.

    Attributes:
        lost: The first error.
    """

    lost: OSError | None = None
    is_needed = True

    @classmethod
    @contextlib.contextmanager
    def in_place_of(cls, name: str, errors: str) -> Iterator[_Stream]:
        """Put one in the place of `sys.stdout` or `sys.stderr`, and write out at the end what it holds."""
        before = getattr(sys, name)
        known = before if isinstance(before, io.TextIOWrapper) else io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        stream = cls(
            known.buffer,
            encoding=known.encoding,
            errors=errors,
            line_buffering=known.line_buffering,
            write_through=known.write_through,
        )
        if known is before:
            setattr(sys, name, stream)
        try:
            yield stream
        finally:
            with contextlib.suppress(OSError):
                stream.flush()
            if stream.lost is not None:
                # What cannot be written any more must not fail once more when the interpreter ends.
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())
            stream.detach()
            setattr(sys, name, before)

    def write(self, text: str) -> int:
        """Write a text."""
        with self._remembering():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write out what is held back."""
        with self._remembering():
            super().flush()

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error
            if self.is_needed:
                raise


class _Messages(_Stream):
    """Standard error: where it cannot be written, nobody can be told, and the work goes on."""

    is_needed = False


def _fill_closed_descriptors() -> None:
    """Lead standard streams that were closed to nowhere, so that no file that is opened takes a stream's number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a verb as Ctrl-C does, with what was begun cleared away, where the verb has no more to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)
