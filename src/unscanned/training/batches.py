"""The batch of a step: patches of all cases, in an order that is a function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unscanned.errors import DatasetError
from unscanned.settings import Training
from unscanned.training.feed import Feed
from unscanned.training.prepare import Case
from unscanned.volumes.intensity import Normalization
from unscanned.volumes.patches import cut, starts

__all__ = ["PatchBatches", "no_patches", "too_small"]


class PatchBatches:
    """The training batches, each a pure function of (seed, step).

    The patches of all cases stand in one list. A pass goes through the list in a random order that depends on the seed
    and the number of the pass. Pass follows pass, and each step takes the next `batch` patches. So nothing about
    randomness has to be stored to resume, and neither the loader's workers nor earlier steps can change a batch.

    Args:
        cases: Prepared training cases.
        normalization: Constants that turn unit scale into z-scores.
        settings: Edge of a patch and its margin, patches a step, the share of a patch that must lie inside the head,
            and the seed of the order. Where a margin reaches beyond the volume, the volume's edge is repeated.
        earlier: For an auto-context stage: for each case the previous stage's volume, (i, j, k) z-scores.

    Attributes:
        order: Another number gives the passes another order.

    Raises:
        DatasetError: A volume is smaller than the patch, or no patch has enough of the head.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        normalization: Normalization,
        settings: Training,
        earlier: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.cases, self.normalization, self.earlier = list(cases), normalization, earlier
        self.patch, self.margin, self.batch = settings.patch, settings.margin, settings.batch
        self.seed, self.order = settings.seed, 0
        self.index = np.array(
            [
                (number, *start)
                for number, case in enumerate(self.cases)
                for start in self._grid(case)
                if settings.min_head <= 0 or cut(case.head, start, self.patch).mean() >= settings.min_head
            ]
        ).reshape(-1, 4)
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
        return self.index[[orders[s // n][s % n] for s in samples]]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the input and the target of a step, in z-scores.

        Returns:
            (batch, 1 or 2, n, n, n) with n = patch + 2 margin, and (batch, 1, patch, patch, patch).
        """
        inputs, targets = [], []
        for number, *start in self.chosen(step):
            case = self.cases[number]
            channels = [self.normalization.source.standardize(self._wide(case.source, start))]
            if self.earlier is not None:
                channels.append(np.asarray(self._wide(self.earlier[number], start), np.float32))
            inputs.append(np.stack(channels))
            targets.append(self.normalization.target.standardize(cut(case.target, start, self.patch))[None])
        return torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets))

    def describe(self, step: int) -> str:
        """Return the patches of a step in words: each case and the first voxels of its patches."""
        places: dict[str, list[str]] = {}
        for number, *start in self.chosen(step).tolist():
            places.setdefault(self.cases[number].name, []).append(str(tuple(start)))
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
        do="Lower it, or look at the prepared heads.",
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
