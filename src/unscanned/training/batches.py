"""The batch of a step: patches of all cases, in an order that is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from unscanned.errors import DatasetError
from unscanned.machine import ranks
from unscanned.settings import Augmentation, Training
from unscanned.simulation.stream import StreamedPair
from unscanned.training.augment import TRIES, Changes, draws, flipped, shifted
from unscanned.training.feed import Feed
from unscanned.training.prepare import Case
from unscanned.training.simulated import SimulatedPairs
from unscanned.volumes.intensity import Normalization
from unscanned.volumes.patches import cut, starts

__all__ = ["PatchBatches", "no_patches", "too_small"]

_AS_IT_IS = Augmentation()
_SHIFT, _SIMULATED = 0, 100
"Purposes of random numbers; those of `Changes` lie between."

Pair = Case | StreamedPair


class PatchBatches:
    """The training batches, each a pure function of (seed, step).

    Where several ranks train together, each cuts its share of the slots of a batch, and the batch is the same.

    The patches of all cases stand in one list. A pass goes through the list in a random order that depends on the seed
    and the number of the pass. Pass follows pass, and each step takes the next `batch` patches. What augmentation draws
    for a patch depends on the step and on the patch's slot in the batch. So nothing about randomness has to be stored
    to resume, and neither the loader's workers nor earlier steps can change a batch.

    Args:
        cases: Prepared training cases.
        normalization: Constants that turn unit scale into z-scores.
        settings: Edge of a patch and its margin, patches a step, the share of a patch that must lie inside the head,
            and the seed of the order. Where a margin reaches beyond the volume, the volume's edge is repeated.
        earlier: For an auto-context stage: the previous stage's volume of each case by name, (i, j, k) z-scores.
        augmentation: What is drawn anew for each patch.
        gives_head: Whether a batch says where the head is.
        simulated: Pairs that take the places of some patches; None: there are none.

    Attributes:
        order: Another number gives the passes another order.
        slots: Of a batch, those that are cut here.

    Raises:
        DatasetError: A volume is smaller than the patch, or no patch has enough of the head.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        normalization: Normalization,
        settings: Training,
        earlier: Mapping[str, np.ndarray] | None = None,
        *,
        augmentation: Augmentation = _AS_IT_IS,
        gives_head: bool = False,
        simulated: SimulatedPairs | None = None,
    ) -> None:
        self.cases, self.normalization, self.earlier = list(cases), normalization, earlier
        self.patch, self.margin, self.batch = settings.patch, settings.margin, settings.batch
        self.min_head, self.augmentation = settings.min_head, augmentation
        self.gives_head, self.simulated = gives_head, simulated
        self.seed, self.order, self.slots = settings.seed, 0, ranks.share(settings.batch)
        rows = [self._rows(number, case) for number, case in enumerate(self.cases)]
        self.index = np.concatenate(rows) if rows else np.empty((0, 4), np.int32)
        if len(self.index) == 0:
            raise no_patches(settings.min_head)

    @property
    def steps_per_pass(self) -> int:
        """Steps until every patch was seen at least once."""
        return -(-len(self.index) // self.batch)

    def chosen(self, step: int) -> np.ndarray:
        """Return the (batch, 4) rows (case, i, j, k) of a step, from 0."""
        n = len(self.index)
        samples = np.arange(step * self.batch, (step + 1) * self.batch)
        orders = {number: _order(n, self.seed, number, self.order) for number in np.unique(samples // n)}
        rows = self.index[[orders[s // n][s % n] for s in samples]]
        if self.augmentation.shift > 0:
            rows = np.array([self._shift(row, step, slot) for slot, row in enumerate(rows.tolist())])
        return rows

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        """Return the input and the target of a step, in z-scores, and with `gives_head` the head, of its `slots`.

        Returns:
            (batch, 1 or 2, n, n, n) with n = patch + 2 margin, and (batch, 1, patch, patch, patch) once or twice.
        """
        samples = [
            self._sample(pair, start, number, step, slot)
            for slot, pair, start, number in self._patches(step, self.slots)
        ]
        return tuple(torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True))

    def _patches(self, step: int, slots: Iterable[int]) -> Iterator[tuple[int, Pair, Sequence[int], int]]:
        """Yield for each slot itself, its pair, the first voxel of its patch and, for a case, its number."""
        rows = self.chosen(step).tolist()
        for slot in slots:
            number, *start = rows[slot]
            if self.simulated is not None:
                random = self._draws(_SIMULATED, step, slot)
                pair = self.simulated.choose(step, random)
                if pair is not None:
                    yield slot, pair, self._anywhere(pair, random), -1
                    continue
            yield slot, self.cases[number], start, number

    def _sample(self, case: Pair, start: Sequence[int], number: int, step: int, slot: int) -> list[np.ndarray]:
        """Return input, target and, with `gives_head`, head of a patch, each (channel, i, j, k)."""
        constants = self.normalization
        source, target = (
            np.asarray(part, np.float32)
            for part in (self._wide(case.source, start), cut(case.target, start, self.patch))
        )
        changes = None
        if self.augmentation != _AS_IT_IS:
            changes = Changes(self.augmentation, (self.seed, self.order, step, slot))
            field = changes.field(source.shape, self.patch)
            source = changes.source(source, field)
            target = target if field is None else target * self._centre(field)
        channels = [constants.source.standardize(source)]
        if self.earlier is not None:
            channels.append(np.asarray(self._wide(self.earlier[case.name], start), np.float32))
        parts = [np.stack(channels), constants.target.standardize(target)[None]]
        if self.gives_head:
            parts.append(np.asarray(cut(case.head, start, self.patch))[None])
        return flipped(parts) if changes is not None and changes.is_mirrored else parts

    def _centre(self, wide: np.ndarray) -> np.ndarray:
        """Return a patch without its margin."""
        return cut(wide, (self.margin,) * 3, self.patch)

    def describe(self, step: int) -> str:
        """Return the patches of a step in words: each case and the first voxels of its patches."""
        places: dict[str, list[str]] = {}
        for _, pair, start, _ in self._patches(step, range(self.batch)):
            places.setdefault(pair.name, []).append(str(tuple(start)))
        return "; ".join(f"{case} at {', '.join(starts)}" for case, starts in places.items())

    def loader(self, first: int, last: int, workers: int = 0, timeout_s: float = 120.0) -> Feed:
        """Yield the batches of steps first ... last - 1, cut ahead of time by `workers` processes; see `Feed`."""
        return Feed(self, first, last, workers, timeout_s)

    def _wide(self, volume: np.ndarray, start: Sequence[int]) -> np.ndarray:
        """Return a patch with its margin."""
        if self.margin == 0:
            return cut(volume, start, self.patch)
        spans = [
            np.clip(np.arange(first - self.margin, first + self.patch + self.margin), 0, n - 1)
            for first, n in zip(start, volume.shape, strict=True)
        ]
        return volume[np.ix_(*spans)]

    def _anywhere(self, pair: Pair, random: np.random.Generator) -> tuple[int, ...]:
        """Return a place in a pair, of a few that are drawn the first with enough of the head, or the last."""
        place: tuple[int, ...] = ()
        for _ in range(TRIES):
            place = tuple(random.integers(0, np.subtract(pair.source.shape, self.patch) + 1).tolist())
            if self._has_head(pair, place):
                break
        return place

    def _has_head(self, case: Pair, start: Sequence[int]) -> bool:
        return self.min_head <= 0 or bool(cut(case.head, start, self.patch).mean() >= self.min_head)

    def _draws(self, purpose: int, step: int, slot: int) -> np.random.Generator:
        return draws(purpose, self.seed, self.order, step, slot)

    def _shift(self, row: Sequence[int], step: int, slot: int) -> tuple[int, ...]:
        """Return a patch's row at another place nearby that has enough of the head, or at its own."""
        number, *start = row
        case, random = self.cases[number], self._draws(_SHIFT, step, slot)
        for place in shifted(start, case.source.shape, self.patch, self.augmentation.shift, random):
            if self._has_head(case, place):
                return (number, *place)
        return (number, *start)

    def _rows(self, number: int, case: Case) -> np.ndarray:
        """Return the (patches, 4) rows (case, i, j, k) of a case, in half the memory of ordinary integers."""
        grid = self._grid(case)
        kept = grid[[self._has_head(case, start) for start in grid]]
        return np.column_stack([np.full(len(kept), number), kept]).astype(np.int32)

    def _grid(self, case: Case) -> np.ndarray:
        if min(case.source.shape) < self.patch:
            raise too_small(case.name, case.source.shape, self.patch)
        return starts(case.source.shape, self.patch, self.patch)


def no_patches(min_head: float) -> DatasetError:
    """Return what to say where no patch has that share of the head."""
    return DatasetError(
        "no training patch has enough of the head",
        where="training.min_head",
        found=min_head,
        do="Lower it, for a run in another folder, or look at the prepared heads.",
    )


def too_small(where: str, shape: Sequence[int], patch: int) -> DatasetError:
    """Return what to say of a volume that is smaller than the patch."""
    return DatasetError(
        "a training volume is smaller than the patch",
        where=where,
        found=tuple(shape),
        expected=f"at least {patch} along each axis",
        do="Choose a larger prepare.shape or a smaller training.patch.",
    )


def _order(n: int, seed: int, number: int, order: int) -> np.ndarray:
    return np.random.default_rng((seed, number, order)).permutation(n)
