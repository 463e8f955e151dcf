"""Every error that a user can meet, with the exit code that the command line gives it.

A message has four parts: what went wrong, where, what was found against what was expected, and what to do.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Self

__all__ = [
    "BugError",
    "BusyError",
    "CheckpointError",
    "DatasetError",
    "DownloadError",
    "Interrupted",
    "PartialFailure",
    "ResourceError",
    "SettingsError",
    "TrainingError",
    "UnscannedError",
    "VolumeError",
    "WorkerLost",
]


BUG = "this is a bug"
"What the message of every `BugError` says."


class UnscannedError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: One clause that says what is wrong.
        where: The file, subject, setting or step that it is about.
        found: What was there.
        expected: What should have been there.
        do: What the user can do about it.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: object = None, found: object = None, expected: object = None, do: str | None = None
    ) -> None:
        self.what, self.where, self.found, self.expected, self.do = what, where, found, expected, do
        super().__init__(self._message())

    def at(self, where: object) -> Self:
        """Return this error as one that is about another place."""
        return self.but(where=where)

    def but(self, **parts: Any) -> Self:
        """Return this error with other parts, such as `do`, in place of its own."""
        return type(self)(**{**self.parts, **parts})

    def __reduce__(self) -> tuple[Any, ...]:
        # An error of one process is raised in another: of a worker, or of a rank.
        return _again, (type(self), self.parts, self.exit_code)

    @property
    def parts(self) -> dict[str, Any]:
        """What it was made from, by the names of the arguments."""
        return {name: getattr(self, name) for name in ("what", "where", "found", "expected", "do")}

    def _message(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        if self.found is not None:
            text += f"; found {in_words(self.found)}"
        if self.expected is not None:
            text += f"{', expected' if self.found is not None else '; expected'} {in_words(self.expected)}"
        if self.do is not None:
            text += f". {self.do}"
        return text


def _again(kind: type[UnscannedError], parts: dict[str, Any], exit_code: int) -> UnscannedError:
    error = kind(**parts)
    error.exit_code = exit_code
    return error


class BugError(UnscannedError):
    """Something that nobody foresaw; the message names the file that holds the traceback."""


class SettingsError(UnscannedError):
    """A setting, an option or a combination of them that cannot be."""

    exit_code = 2


class VolumeError(UnscannedError):
    """An image file that is refused. Nothing was written."""

    exit_code = 3


class DatasetError(UnscannedError):
    """A dataset, split or archive that is refused. Nothing was written."""

    exit_code = 3


class PartialFailure(UnscannedError):
    """Some cases failed; the others were written."""

    exit_code = 4


class CheckpointError(UnscannedError):
    """A model or checkpoint that is refused."""

    exit_code = 5


class TrainingError(UnscannedError):
    """Training diverged or collapsed; the best model so far is kept."""

    exit_code = 6


class ResourceError(UnscannedError):
    """A resource is missing: disk space, memory, a device."""

    exit_code = 7


class WorkerLost(UnscannedError):
    """A case that was given up because each worker that took it died with it."""

    exit_code = 7


class BusyError(UnscannedError):
    """The output is in use by another run."""

    exit_code = 8


class DownloadError(UnscannedError):
    """A download failed, or its checksum differs."""

    exit_code = 9


class Interrupted(UnscannedError):
    """A signal asked to stop; the state was saved. SIGTERM makes it 143."""

    exit_code = 130


def in_words(value: object) -> str:
    """Return what a message says of a value: an error of Python or of the system without its name and number.

    Example:
        >>> in_words(FileNotFoundError(2, "No such file or directory")), in_words(KeyError("train")), in_words(True)
        ('No such file or directory', "no key 'train'", 'true')
    """
    match value:
        case bool():
            return "true" if value else "false"
        case OSError() if value.strerror:
            return value.strerror
        case UnicodeDecodeError():
            return f"byte {value.start + 1:,} is no {value.encoding.upper()} text"
        case json.JSONDecodeError():
            return f"no JSON: {value}"
        case KeyError() if value.args:
            return f"no key {value.args[0]!r}"
        case TypeError() | AttributeError() | LookupError():  # they speak of Python's types, not of the file
            return "content of another kind"
        case MemoryError():
            return "too little memory"
        case Exception() if not str(value):
            return "no reason given"
    return str(value)


def quoted(value: object) -> str:
    """Return a value of a file or an option as a message shows it: a text in quotes, the rest as in JSON.

    Example:
        >>> quoted("two"), quoted(None), quoted([1, True])
        ("'two'", 'null', '[1, true]')
    """
    if isinstance(value, str):
        return repr(value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def listed(names: Collection[object], separator: str = ", ") -> str:
    """Return the first ten of some names, and how many more there are.

    Example:
        >>> listed(range(12))
        '0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more'
    """
    first = separator.join(str(name) for name, _ in zip(names, range(10), strict=False))
    return f"{first} and {len(names) - 10:,} more" if len(names) > 10 else first
