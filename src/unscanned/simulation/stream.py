"""Simulated pairs drawn in memory while a network trains: each one new, none on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unscanned.errors import SettingsError
from unscanned.settings import Spread, read_spread
from unscanned.simulation.anatomy import find_label_maps, read_tissues
from unscanned.simulation.heads import Head, draw_built_in, read_head
from unscanned.simulation.relaxation import LESION
from unscanned.simulation.sequences import CONTRASTS
from unscanned.simulation.wide import draw_subject
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import LIMIT_BYTES

__all__ = ["Stream", "StreamedPair", "contrast_name"]

_HEADS = 2


@dataclass(frozen=True, eq=False)
class StreamedPair:
    """A pair as preparation leaves it: in unit scale, on the model's grid, axes in RAS+ order.

    Attributes:
        name: Such as `wide-000012`.
        subject: The anatomy, which decides the split.
        source: (i, j, k) float32, unit scale.
        target: The same.
        head: (i, j, k) bool: inside the head of the source.
        source_scale: The intensity that became 1; white matter is at about 1 before that.
        target_scale: The same of the target.
        labels: (i, j, k) uint8: index into `NAMES`; lesions are `LESION`, 0 is air and what was cut away.
        clean: The target without noise and ghosts in its unit scale, float32; None where it was not asked for.
    """

    name: str
    subject: str
    source: np.ndarray
    target: np.ndarray
    head: np.ndarray
    source_scale: float
    target_scale: float
    labels: np.ndarray
    clean: np.ndarray | None = None


@dataclass
class Stream:
    """Pairs of simulated scans, each a function of (seed, number).

    Heads are read when they are first drawn from, and stay in memory: about 8 MB each.

    Args:
        labels: A folder of whole-head label maps, the maps themselves, or None for `built_in` heads of the package's.
            Leave out the maps that a test is made of.
        source: Contrast, of PD, T2, T1 and FLAIR, with or without its w.
        target: Contrast; its sequence is fixed, see `draw_protocols`.
        seed: Seed of all that is drawn, 0 or more.
        shape: Voxels along the axes of RAS+.
        spacing_mm: Isotropic voxel size.
        spread: What scanners are drawn from, as in `simulate`.
        percentile: Percentile inside the head that becomes 1.
        clean: Whether to return the noise-free target too.
        built_in: Number of heads where there are no label maps.

    Raises:
        SettingsError: A contrast that cannot be simulated, source and target are the same, or a number is out
            of range, or a key of `spread` is unknown or out of bounds.
        DatasetError: There are no label maps.

    Example:
        >>> stream = Stream("head-labels", source="T1w", target="T2w", seed=0)
        >>> stream.draw(0).source.shape
        (128, 160, 128)
    """

    labels: str | Path | Sequence[Path] | None = None
    source: str = "PD"
    target: str = "T2"
    seed: int = 0
    shape: tuple[int, int, int] = (128, 160, 128)
    spacing_mm: float = 1.5
    spread: Spread | Mapping[str, Any] | None = None
    percentile: float = 99.9
    clean: bool = False
    built_in: int = 8

    def __post_init__(self) -> None:
        self.source, self.target = contrast_name(self.source), contrast_name(self.target)
        if self.source == self.target:
            raise SettingsError("source and target are the same contrast", where="source, target", found=self.source)
        if not 0 <= self.seed < 2**63:
            raise SettingsError("out of range", where="seed", found=self.seed, expected="0 to 2^63 - 1")
        if not 0.5 <= self.spacing_mm <= 20:
            raise SettingsError("out of range", where="spacing_mm", found=self.spacing_mm, expected="0.5 to 20 mm")
        if min(self.shape) < 8 or 4 * np.prod(self.shape, dtype=float) > LIMIT_BYTES:
            expected = f"8 or more along each axis, at most {LIMIT_BYTES // 4:,} voxels"
            raise SettingsError("a grid that cannot be", where="shape", found=self.shape, expected=expected)
        if self.labels is None:
            if not 1 <= self.built_in <= 1000:
                raise SettingsError("out of range", where="built_in", found=self.built_in, expected="1 to 1,000")
            self.maps: list[Path] = []
        elif isinstance(self.labels, str | Path):
            self.maps = find_label_maps(self.labels)
        else:
            self.maps = list(self.labels)
            if not self.maps:
                raise SettingsError("no label maps", where="labels", expected="at least one file")
        self.spread = self._spread = read_spread(self.spread)
        self._heads: dict[int, Head] = {}

    @property
    def anatomies(self) -> int:
        """Number of heads; pair n is drawn from head n modulo this."""
        return len(self.maps) or self.built_in

    def check(self) -> None:
        """Read all label maps once, so that what is wrong with one is told before any work.

        Raises:
            VolumeError: One cannot be read.
            DatasetError: One has numbers that stand for no tissue.
        """
        for path in self.maps:
            read_tissues(path)

    def load(self) -> None:
        """Read all heads now, so that processes forked later share them."""
        for number in range(self.anatomies):
            self.head(number)

    def head(self, number: int) -> Head:
        """Return a head, read at the first call."""
        if number not in self._heads:
            rng = np.random.default_rng([self.seed, _HEADS, number])
            self._heads[number] = (
                read_head(self.maps[number], rng) if self.maps else draw_built_in(f"built-in-{number + 1:03d}", rng)
            )
        return self._heads[number]

    def draw(self, number: int) -> StreamedPair:
        """Return pair `number`, from 0; the same number gives the same pair, whatever was drawn before."""
        head = self.head(number % self.anatomies)
        drawn = draw_subject(
            head,
            self.shape,
            (self.spacing_mm,) * 3,
            (self.source, self.target),
            target=self.target,
            seed=self.seed,
            subject=number,
            spread=self._spread,
            clean=(self.target,) if self.clean else (),
        )
        source, target = drawn.images[self.source], drawn.images[self.target]
        name, inside = f"wide-{number:06d}", head_mask(source)
        source_scale = head_scale(source, inside, self.percentile, where=name)
        target_scale = head_scale(target, head_mask(target), self.percentile, where=name)
        return StreamedPair(
            name,
            head.name,
            source / np.float32(source_scale),
            target / np.float32(target_scale),
            inside,
            source_scale,
            target_scale,
            np.minimum(drawn.tissues, LESION).astype(np.uint8),
            drawn.clean[self.target] / np.float32(target_scale) if self.clean else None,
        )


def contrast_name(name: str, known: Sequence[str] = CONTRASTS) -> str:
    """Return the key of a contrast that can be simulated: "T2" for "T2w".

    Args:
        name: The contrast, in letters of either case.
        known: Keys of those that can be.

    Raises:
        SettingsError: It cannot be simulated.
    """
    key = re.sub(r"(?<=.)w$", "", name.strip(), flags=re.IGNORECASE).upper()
    if key not in known:
        raise SettingsError(
            "a contrast that cannot be simulated",
            where="contrasts",
            found=name,
            expected=", ".join(known),
            do="FLAIR needs wide physics." if key in CONTRASTS else None,
        )
    return key
