"""Volumes on disk, read through memory maps of which a process keeps a bounded number open."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from unscanned.errors import DatasetError

__all__ = ["MOST_MAPS", "MappedVolumes"]

MOST_MAPS = 512
"""Maps that a process keeps open, whatever the number of subjects. Each is an open file, and systems allow 1024 unless
told otherwise."""

_open: dict[tuple[int, str], weakref.ref[MappedVolumes]] = {}
"The maps of this process, the oldest first."


class MappedVolumes(Mapping[str, np.ndarray]):
    """Volumes by name, each mapped when it is asked for.

    Where there are too many maps, the oldest is closed, and its file is mapped anew when it is asked for again.

    Args:
        paths: The .npy file of each volume by its name.

    Raises:
        DatasetError: A file is gone or another one when it is mapped again.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._maps: dict[str, np.ndarray] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        volume = self._maps.get(name)
        return self._map(name, self._paths[name]) if volume is None else volume

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __reduce__(self) -> tuple[object, ...]:
        # Loader workers map the files anew instead of being sent their content.
        return MappedVolumes, (self._paths,)

    def _map(self, name: str, path: Path) -> np.ndarray:
        if name not in self._seen:
            volume = np.load(path, mmap_mode="r")
            self._seen[name] = _identity(path)
        else:
            volume = self._map_again(name, path)
        self._maps[name] = volume
        _open[id(self), name] = weakref.ref(self)
        while len(_open) > MOST_MAPS:
            (_, oldest), owner = next(iter(_open)), _open.pop(next(iter(_open)))()
            if owner is not None:
                owner._maps.pop(oldest, None)
        return volume

    def _map_again(self, name: str, path: Path) -> np.ndarray:
        found: object = "another file"
        try:
            if _identity(path) == self._seen[name]:
                return np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            found = error
        raise DatasetError(
            "a prepared volume has changed since the training began",
            where=path,
            found=found,
            do="Run it again; it goes on from its last checkpoint if the scans are the same.",
        )


def _identity(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
