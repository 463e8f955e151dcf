"""What an output may replace: what an earlier call of the same kind made, and nothing else.

A file is known by what it holds, not by its name alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unscanned.errors import SettingsError, UnscannedError
from unscanned.files import is_stream, open_regular, read_json

__all__ = ["Mark", "begins_with", "check_apart", "claim", "holds", "json_with", "nothing"]

Mark = Callable[[Path], bool]
"""Whether a file is one that an earlier call made; it may raise an error of reading where not."""

_LOOKED_AT = 2**16


def claim(path: str | Path, is_own: Mark, kind: str, *, do: str = "Choose another name, or move it away.") -> None:
    """Refuse an output under whose name something stands that such a call would not have made.

    Nothing, an empty file, a device and a pipe are free. Ask before the work begins.

    Args:
        path: The output.
        is_own: Whether what stands there may be replaced.
        kind: What may, for the message.
        do: What the user can do.

    Raises:
        SettingsError: It may not be replaced; the message says what it is.
    """
    path = Path(path)
    if not path.exists() or is_stream(path) or (path.is_file() and path.stat().st_size == 0):
        return
    try:
        if is_own(path):
            return
    except (OSError, ValueError, LookupError, TypeError, UnscannedError):
        pass
    raise SettingsError("something else is there already", where=path, found=_what(path), expected=kind, do=do)


def nothing(path: Path) -> bool:
    """Replace nothing."""
    return False


def begins_with(*beginnings: str) -> Mark:
    """Return the mark of a text file that begins with one of these."""

    def is_own(path: Path) -> bool:
        with open_regular(path) as file:
            start = file.read(_LOOKED_AT)
        return any(start.startswith(beginning.encode()) for beginning in beginnings)

    return is_own


def holds(*words: str) -> Mark:
    """Return the mark of a file with one of these near its beginning or its end."""

    def is_own(path: Path) -> bool:
        with open_regular(path) as file:
            ends = file.read(_LOOKED_AT)
            file.seek(max(0, path.stat().st_size - _LOOKED_AT))
            ends += file.read(_LOOKED_AT)
        return any(word.encode() in ends for word in words)

    return is_own


def json_with(*keys: str, limit_bytes: int = 256 * 2**20, **values: Any) -> Mark:
    """Return the mark of a JSON object that has at least these keys, and these values; a longer file is another's."""

    def is_own(path: Path) -> bool:
        content = read_json(path, limit_bytes=limit_bytes)
        has_all = isinstance(content, dict) and {*keys, *values} <= content.keys()
        return has_all and all(content[key] == value for key, value in values.items())

    return is_own


def check_apart(dataset: str | Path, out: str | Path) -> None:
    """Refuse an output folder that is the dataset, or that lies in a raw dataset outside of its derivatives/.

    Raises:
        SettingsError: It does.
    """
    if os.path.isdir(dataset) and os.path.exists(out) and os.path.samefile(dataset, out):
        what, expected = "the output folder is the dataset itself", "a folder of its own"
    elif _is_in_raw_dataset(_real(dataset), _real(out)):
        what, expected = "the output folder lies among the scans of a dataset", "a folder of its own"
    else:
        return
    do = "Choose another folder, such as derivatives/unscanned inside the dataset."
    raise SettingsError(what, where=out, expected=expected, do=do)


def _real(path: str | Path) -> str:
    try:
        return os.path.realpath(path)
    except OSError as error:  # the working folder of a relative path is gone
        raise SettingsError(
            "the path leads nowhere", where=path, found=error.strerror, do="Name it in full."
        ) from error


def _is_in_raw_dataset(dataset: str, out: str) -> bool:
    inside = Path(out)
    for above in (inside, *inside.parents):
        first = next(iter(inside.relative_to(above).parts), "")
        if str(above) == dataset and first.startswith("sub-"):
            return True
        try:
            content = read_json(above / "dataset_description.json")
        except (OSError, ValueError):
            continue
        kind = content.get("DatasetType", "raw") if isinstance(content, dict) else "raw"
        return bool(kind == "raw" and first != "derivatives")
    return False


def _what(path: Path) -> str:
    """Return what stands there, in words."""
    if path.is_dir():
        return "a folder"
    size = f"{path.stat().st_size:,} bytes"
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return f"a scan or volume of {size} that this command would not have made"
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        return f"another file of {size}"
    if isinstance(content, dict):
        names = ", ".join(map(str, list(content)[:5])) or "none"
        return f"a JSON file of {size} with the keys {names}"
    return f"another JSON file of {size}"
