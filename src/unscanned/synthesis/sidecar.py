"""The sidecar of a synthetic volume: what it says, and the model and scan that it names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unscanned.datasets.layout import sidecar_path
from unscanned.errors import CheckpointError, VolumeError
from unscanned.files import read_json
from unscanned.volumes.nifti import Volume, read_volume

__all__ = ["locate", "read_sidecar", "read_source"]


def read_sidecar(volume: Path, needed: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return what the sidecar of a synthetic volume says.

    Args:
        volume: The NIfTI file.
        needed: Type of each key that must be there; "table.key" for one of a table or of the first of a list of tables.

    Raises:
        VolumeError: There is no such sidecar.
    """
    path = sidecar_path(volume)
    try:
        facts: dict[str, Any] = dict(read_json(path))
        for name, kind in needed.items():
            value: Any = facts
            for key in name.split("."):
                value = (value[0] if isinstance(value, list) else value)[key]
            if not isinstance(value, kind):
                raise TypeError(f"{name} is {value!r}")
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise VolumeError(
            "no sidecar says how the volume was made",
            where=path,
            found=f"{type(error).__name__}: {error}",
            expected="the JSON file that synthesize wrote beside the volume",
        ) from error
    return facts


def locate(volume: Path, given: str | Path | None, named: str | None, what: str) -> Path:
    """Return where the model or the scan is: as given, or as the sidecar names it.

    Raises:
        CheckpointError: The model is not there.
        VolumeError: The scan is not there.
    """
    if given is not None:
        return Path(given)
    path = Path(os.path.normpath(volume.resolve().parent / (named or "")))
    if named is None or not path.exists():
        error = CheckpointError if what == "model" else VolumeError
        raise error(f"the {what} is no longer where the sidecar says", where=path, do=f"Name it with --{what}.")
    return path


def read_source(volume: Path, facts: dict[str, Any], given: str | Path | None) -> Volume:
    """Return the scan that a synthetic volume was made from.

    Args:
        volume: The synthetic volume.
        facts: Its sidecar, with the path and the hash of the scan.
        given: The scan; None takes the path in the sidecar.

    Raises:
        VolumeError: It cannot be read, or it is another scan.
    """
    scan = read_volume(locate(volume, given, facts["SourceScans"][0]["Path"], "scan"))
    expected = facts["SourceScans"][0]["Sha256"]
    if scan.sha256 != expected:
        raise VolumeError(
            "another scan than the one that the volume was made from",
            where=scan.path,
            found=f"sha256 {str(scan.sha256)[:12]}…",
            expected=f"{expected[:12]}…",
            do="Name the right one with --scan.",
        )
    return scan
