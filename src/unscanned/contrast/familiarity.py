"""Whether a scan is like those that a model was trained on, beyond its contrast: voxels, extent, detail, features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from unscanned.display import warn
from unscanned.errors import VolumeError

__all__ = ["FEWEST", "REFUSES", "WARNS", "Familiarity", "FamiliarityProfile", "Group", "Span", "Traits", "judge"]

WARNS, REFUSES = 1.25, 2.0
"A score is too large from these times the largest one of a training scan, judged by the others."

FEWEST = 8
"Training scans from which a profile is made; of fewer, the largest score depends on which they are."

_LEAST_SPREAD = 0.3
"Of a feature, in the root mean square spread of its layer: few scans may agree in one feature by chance."

_KINDS = {"detail": "the detail", "extent": "the extent of the head"}
"What is said of a group; the others are layers."

_EDGE, _EXTENT_MM, _DETAIL = 1.25, 15.0, 0.03
"How far beyond those of the training scans the edges (a factor), the extent and the detail may lie without a word."

_LEAST: Mapping[str, float] = {"detail": _DETAIL, "extent": _EXTENT_MM}
"Spreads that a profile does not go below."

_AXES = ("left to right", "back to front", "bottom to top")

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Traits:
    """What one scan is like on the model's grid.

    Attributes:
        edges_mm: Voxel edges of that grid, ascending.
        extent_mm: Of the head within it, along the axes of RAS.
        detail: Along the same axes, inside the head: root mean square difference of neighbours, over that of next
            neighbours. About 0.5 where all is smooth, larger with fine structure, 1 for noise alone.
        features: For each layer, means and then standard deviations of its channels inside the head.
    """

    edges_mm: Triple
    extent_mm: Triple
    detail: Triple
    features: tuple[tuple[float, ...], ...] = ()

    @property
    def groups(self) -> dict[str, tuple[float, ...]]:
        """All that counts in a score, by group."""
        layers = {f"layer {number}": vector for number, vector in enumerate(self.features, 1)}
        return {"detail": self.detail, "extent": self.extent_mm, **layers}


class Span(NamedTuple):
    """The smallest and the largest value of the training scans."""

    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """Numbers that belong together over the training scans.

    Attributes:
        centre: Means.
        spread: Standard deviations, not below the least spread.
        scale: Root mean square distance of a training scan from the others.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    scale: float

    def distance(self, numbers: Sequence[float]) -> float:
        """Return how far a scan lies from the centre: 1 is ordinary for a training scan."""
        return _distance(np.array(numbers), np.array(self.centre), np.array(self.spread)) / self.scale


Spans = tuple[Span, Span, Span]


@dataclass(frozen=True)
class FamiliarityProfile:
    """What the training scans of a model were like beyond their contrast.

    Attributes:
        scans: Number of training scans that were measured.
        edges_mm: Range of the voxel edges, ascending.
        extent_mm: Range of the head's extent along the axes of RAS.
        detail: Range of the detail along the same axes.
        groups: What counts in a score, by name: detail, extent, and the features of each layer that says something.
        largest: Largest score of a training scan, judged by the others; 1 or more.
    """

    scans: int
    edges_mm: Spans
    extent_mm: Spans
    detail: Spans
    groups: dict[str, Group]
    largest: float

    @classmethod
    def of(cls, scans: Sequence[Traits]) -> FamiliarityProfile | None:
        """Return the profile of training scans, or None where there are fewer than `FEWEST`."""
        if len(scans) < FEWEST:
            return None
        groups, distances = {}, []
        for name in scans[0].groups:
            vectors, least = np.array([seen.groups[name] for seen in scans]), _LEAST.get(name)
            own = np.array([_left_out(vectors, index, least) for index in range(len(vectors))])
            scale = float(np.sqrt(np.mean(own**2)))
            if least is not None:
                scale = max(1.0, scale)  # in units that mean something by themselves
            if np.isfinite(scale) and scale > 0:
                centre, spread = _centre_and_spread(vectors, least)
                groups[name] = Group(_rounded(centre), _rounded(spread), *_rounded([scale]))
                distances.append(own / scale)
        largest = max(1.0, np.sqrt(np.mean(np.square(distances), axis=0)).max())
        return cls(
            len(scans),
            _spans([seen.edges_mm for seen in scans]),
            _spans([seen.extent_mm for seen in scans]),
            _spans([seen.detail for seen in scans]),
            groups,
            *_rounded([largest]),
        )

    @property
    def warns_above(self) -> float:
        """Largest score without a warning."""
        return WARNS * self.largest

    @property
    def refuses_above(self) -> float:
        """Largest score that is not refused."""
        return REFUSES * self.largest

    def distances(self, seen: Traits) -> dict[str, float]:
        """Return how far a scan lies from the training scans in each group: 1 is ordinary."""
        return {name: group.distance(seen.groups[name]) for name, group in self.groups.items()}

    def score(self, seen: Traits) -> float:
        """Return the root mean square distance over the groups."""
        return float(np.sqrt(np.mean(np.square(list(self.distances(seen).values())))))

    def reasons(self, seen: Traits) -> list[str]:
        """Return in words what of a scan's voxels, extent and detail lies beyond the training scans."""
        words = []
        edges, found = [Span(low / _EDGE, high * _EDGE) for low, high in self.edges_mm], seen.edges_mm
        if not all(_within(edge, span) for edge, span in zip(found, edges, strict=True)):
            theirs = " x ".join(_range(span, "{:.3g}") for span in self.edges_mm)
            words.append(f"voxels of {' x '.join(f'{edge:.3g}' for edge in found)} mm, theirs have {theirs} mm")
        for axis, extent, span in zip(_AXES, seen.extent_mm, self.extent_mm, strict=True):
            if not _within(extent, Span(span.low - _EXTENT_MM, span.high + _EXTENT_MM)):
                words.append(f"{extent:.0f} mm of head from {axis}, theirs {_range(span, '{:.0f}')} mm")
        kinds: dict[str, list[str]] = {}
        for axis, detail, span in zip(_AXES, seen.detail, self.detail, strict=True):
            if not _within(detail, Span(span.low - _DETAIL, span.high + _DETAIL)):
                kind = "smoother" if detail < span.low else "noisier or sharper"
                kinds.setdefault(kind, []).append(f"{axis} ({detail:.2f}, theirs {_range(span, '{:.2f}')})")
        return words + [f"{kind} from {', '.join(axes)}" for kind, axes in kinds.items()]


@dataclass(frozen=True)
class Familiarity:
    """The outcome for one scan.

    Attributes:
        verdict: "familiar"; "warned" where something lies beyond the training scans; "forced" where the scan would have
            been refused; None where the model has no profile.
        score: Distance from the training scans; 1 is ordinary.
        warns_above: Largest score without a warning.
        refuses_above: Largest score that is not refused.
        reason: In words, what sets the scan apart or why nothing is known; empty where it is familiar.
    """

    verdict: Literal["familiar", "warned", "forced"] | None
    score: float | None = None
    warns_above: float | None = None
    refuses_above: float | None = None
    reason: str = ""


UNKNOWN = Familiarity(None, reason="the model has no profile of what its training scans were like")


def judge(
    seen: Traits, profile: FamiliarityProfile, *, where: object = None, in_doubt: bool = False, force: bool = False
) -> Familiarity:
    """Judge whether a scan is like the training scans, or refuse it.

    Args:
        seen: What the scan is like.
        profile: What the training scans were like.
        where: The scan's file.
        in_doubt: Whether its contrast hangs on its name alone; then what would be warned of is refused.
        force: Return what would have been refused.

    Warns:
        UserWarning: The scan is unlike the training scans in something, but not so much that it is refused.

    Raises:
        VolumeError: The scan lies too far from the training scans, or is unlike them and its contrast in doubt.
    """
    score, warns, refuses = profile.score(seen), profile.warns_above, profile.refuses_above
    reasons = profile.reasons(seen)
    is_far = not score <= refuses  # also where it is no number
    if not score <= warns:
        distances = profile.distances(seen)
        most = max(distances, key=lambda name: distances[name])
        reasons.insert(0, f"score {score:.2f}, most of it from {_KINDS.get(most, 'the features of the network')}")
    reason = "; ".join(reasons)
    is_refused = is_far or (in_doubt and bool(reason))
    if is_refused and not force:
        limit = f"a score of at most {refuses:.2f}, as the {profile.scans} training scans have at most "
        raise VolumeError(
            "this scan is unlike those that the model was trained on",
            where=where,
            found=reason if is_far else f"{reason}; and only its name speaks for its contrast",
            expected=f"{limit}{profile.largest:.2f}" if is_far else "unlike them in one of the two at most",
            do="Use a model that was trained on such scans. --force goes on and marks the output.",
        )
    if reason and not is_refused:
        warn(f"{where}: unlike the scans that the model was trained on, so the result may be worse: {reason}")
    return Familiarity("forced" if is_refused else "warned" if reason else "familiar", score, warns, refuses, reason)


def _centre_and_spread(vectors: np.ndarray, least: float | None) -> tuple[np.ndarray, np.ndarray]:
    variance = vectors.var(0, ddof=1)
    if least is not None:
        return vectors.mean(0), np.maximum(np.sqrt(variance), least)
    return vectors.mean(0), np.sqrt(variance + _LEAST_SPREAD**2 * variance.mean())


def _distance(vector: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):  # features that never differ have no spread
        return float(np.sqrt(np.mean(np.square((vector - centre) / spread))))


def _left_out(vectors: np.ndarray, index: int, least: float | None) -> float:
    return _distance(vectors[index], *_centre_and_spread(np.delete(vectors, index, axis=0), least))


def _rounded(numbers: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Return what a profile stores: five digits are enough, and hold in a file as in memory."""
    return tuple(float(f"{number:.5g}") for number in numbers)


def _spans(triples: Sequence[Triple]) -> Spans:
    i, j, k = (Span(*_rounded([min(values), max(values)])) for values in zip(*triples, strict=True))
    return i, j, k


def _within(value: float, span: Span) -> bool:
    return span.low <= value <= span.high


def _range(span: Span, form: str) -> str:
    low, high = form.format(span.low), form.format(span.high)
    return low if low == high else f"{low} to {high}"
