"""Simulated pairs that patches are cut from while a network trains: drawn in memory, a function of the step."""

from __future__ import annotations

from typing import Any

import numpy as np

from unscanned.errors import SettingsError
from unscanned.files import sha256
from unscanned.settings import Settings, Spread
from unscanned.simulation.stream import Stream, StreamedPair

__all__ = ["SimulatedPairs", "simulated_pairs"]


class SimulatedPairs:
    """A pool of pairs, of which every few steps the oldest makes room for a new one.

    At step t the pool holds the pairs t // every to t // every + size - 1 of the stream, whatever was drawn before: so
    a resumed training draws the pool of its step, and the processes that cut patches each have their own.

    Args:
        stream: Gives pair n.
        share: Of the training patches.
        size: Pairs in the pool.
        every: Steps after which one is replaced.
    """

    def __init__(self, stream: Stream, *, share: float, size: int, every: int) -> None:
        self.stream, self.share, self.size, self.every = stream, share, size, every
        self._pool: dict[int, StreamedPair] = {}

    def choose(self, step: int, random: np.random.Generator) -> StreamedPair | None:
        """Return the pair that a patch of a step comes from; None: it comes from the dataset."""
        if random.random() >= self.share:
            return None
        first = step // self.every
        number = first + int(random.integers(self.size))
        for old in [key for key in self._pool if not first <= key < first + self.size]:
            del self._pool[old]
        if number not in self._pool:
            self._pool[number] = self.stream.draw(number)
        return self._pool[number]

    def identity(self) -> dict[str, Any]:
        """Return what the pairs depend on beside the settings: the content of the label maps."""
        return {path.name: sha256(path) for path in self.stream.maps}


def simulated_pairs(settings: Settings) -> SimulatedPairs | None:
    """Return the simulated pairs that settings ask for, with the contrasts, grid and percentile of the dataset's.

    Raises:
        SettingsError: The contrasts cannot be simulated, or the grid's voxel size is not set.
        DatasetError: There are no label maps.
    """
    own, prepare = settings.simulated, settings.prepare
    if own.share == 0:
        return None
    if prepare.spacing_mm is None:
        raise SettingsError(
            "simulated pairs need a voxel size",
            where="prepare.spacing_mm",
            found="unset",
            expected="that of the dataset's scans, or another that they are resampled to",
        )
    stream = Stream(
        own.labels,
        source=settings.data.source,
        target=settings.data.target,
        seed=own.seed,
        shape=prepare.shape,
        spacing_mm=prepare.spacing_mm,
        percentile=prepare.percentile,
        spread=own.model_dump(include=set(Spread.model_fields)),
    )
    return SimulatedPairs(stream, share=own.share, size=own.pool, every=own.every)
