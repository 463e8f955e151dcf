"""Whether a scan shows the contrast that a model was trained on: by its appearance, its name and its JSON file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unscanned.contrast.appearance import Appearance, measure_appearance
from unscanned.datasets.layout import bids_suffix, contrast_key, identify, sidecar_path, stem
from unscanned.display import warn
from unscanned.errors import VolumeError
from unscanned.files import read_json
from unscanned.volumes.nifti import Volume

__all__ = [
    "LARGEST_VOXEL_MM3",
    "LONGEST_EDGE_MM",
    "THRESHOLD",
    "ContrastCheck",
    "ContrastProfile",
    "check_contrast",
    "named_contrasts",
    "too_coarse",
]

THRESHOLD = 3.6
"""Largest score that is accepted, unless the training scans vary more; docs/contrast-check.md says how often a right
scan lies above it."""

_SHARE, _FEWEST = 0.95, 20
"""Training scans that a limit has to accept, where there are so many of them. The others may be other contrasts that
got among them by mistake."""

LARGEST_VOXEL_MM3 = 46.0
LONGEST_EDGE_MM = 5.05
"""Voxels up to which the check was measured: 3.5 mm in all directions, or slices of 5 mm."""

# A model sees few subjects, often of one scanner: these are the least spreads that it believes in, about those of one
# contrast between scanners.
_LEAST_SPREAD = Appearance(balance=0.16, order=0.085, strength=0.31)

# For the words of a refusal only. PD: simulated heads; the others: medians of real scans at 1.5 and 3 T.
_TYPICAL = {
    "pd": Appearance(0.15, 0.24, -1.35),
    "t1": Appearance(-0.70, -0.40, -0.25),
    "t2": Appearance(0.50, 0.30, 0.10),
    "flair": Appearance(-0.62, 0.11, -0.17),
}
_WORDS = {
    "balance": (
        "fluid is darker, compared with tissue, than in the training scans",
        "fluid is brighter, compared with tissue, than in the training scans",
    ),
    "order": (
        "white matter is brighter, compared with the rest of the head, than in the training scans",
        "white matter is darker, compared with the rest of the head, than in the training scans",
    ),
    "strength": ("tissues differ less than in the training scans", "tissues differ more than in the training scans"),
}
_NAMES = {"pd": "pd", "pdw": "pd", "t1": "t1", "t1w": "t1", "t2": "t2", "t2w": "t2", "flair": "flair"}


@dataclass(frozen=True)
class ContrastProfile:
    """What the source contrast of a model looked like in its training scans.

    Attributes:
        scans: Number of training scans that could be measured.
        centre: Median over the scans.
        spread: Standard deviations, from the median absolute deviation and not below the least spread.
        limit: Largest score of a scan that fits and is named as the contrast: `THRESHOLD`, or what 95 % of 20 or more
            training scans stay within. Of a scan that no name speaks for, it is `THRESHOLD`.
        made: What the targets of the same training looked like; None where that is unknown.
    """

    scans: int
    centre: Appearance
    spread: Appearance
    limit: float = THRESHOLD
    made: ContrastProfile | None = None

    @classmethod
    def of(
        cls, appearances: Sequence[Appearance | None], made: Sequence[Appearance | None] = ()
    ) -> ContrastProfile | None:
        """Return the profile of training scans, or None where none of them could be measured.

        Args:
            appearances: Of the scans of the source contrast.
            made: Of their targets.

        Example:
            >>> ContrastProfile.of([Appearance(0.5, 0.3, 0.1)]).score(Appearance(0.5, 0.3, 0.1))
            0.0
        """
        vectors = np.array([seen.vector for seen in appearances if seen is not None])
        if len(vectors) == 0:
            return None
        centre = np.median(vectors, axis=0)
        deviation = 1.4826 * np.median(np.abs(vectors - centre), axis=0)
        # The centre of few scans is itself uncertain.
        spread = np.maximum(deviation, _LEAST_SPREAD.vector) * np.sqrt(1 + 1 / len(vectors))
        targets = cls.of(made) if made else None
        profile = cls(len(vectors), Appearance(*centre.tolist()), Appearance(*spread.tolist()), made=targets)
        if len(vectors) < _FEWEST:
            return profile
        own = np.linalg.norm((vectors - centre) / spread, axis=1)
        return replace(profile, limit=max(THRESHOLD, round(float(np.quantile(own, _SHARE, method="lower")), 2)))

    def deviations(self, seen: Appearance) -> dict[str, float]:
        """Return how far each number lies from the training scans, in their standard deviations."""
        z = (seen.vector - self.centre.vector) / self.spread.vector
        return dict(zip(asdict(seen), z.tolist(), strict=True))

    def score(self, seen: Appearance) -> float:
        """Return the length of the vector of deviations: 0 at the centre, about 1.7 for an ordinary right scan."""
        return float(np.linalg.norm(list(self.deviations(seen).values())))

    def is_like_made(self, seen: Appearance) -> bool:
        """Whether a scan looks more like the targets of the training than like its sources."""
        return self.made is not None and self.made.score(seen) < self.score(seen)

    def fits(self, seen: Appearance) -> bool:
        """Whether a scan of which nothing else is known looks like the training scans, and not like their targets."""
        return self.score(seen) <= THRESHOLD and not self.is_like_made(seen)


@dataclass(frozen=True)
class ContrastCheck:
    """The outcome of the check of one scan.

    Attributes:
        verified: True where the scan fits, False where it does not, None where that is unknown: the model has no
            profile, or the voxels are larger than the check was measured for; and neither the name nor the JSON file
            contradicts.
        score: Distance from the training scans; None where it could not be measured.
        reason: In words, what speaks against the scan or why nothing is known; empty where it fits.
        limit: Largest score of a scan that fits.
    """

    verified: bool | None
    score: float | None
    reason: str
    limit: float = THRESHOLD

    @property
    def hangs_on_its_name(self) -> bool:
        """Whether the scan fits, but looks unlike most training scans, so that its name decides."""
        return self.verified is True and self.score is not None and self.score > THRESHOLD

    def to_json(self) -> dict[str, Any]:
        """Return what a sidecar says of it."""
        details = {"Score": self.score, "Threshold": self.limit, "Reason": self.reason}
        return {"InputContrastVerified": self.verified, "InputContrast": details}


def check_contrast(
    volume: Volume, profile: ContrastProfile | None, contrast: str, *, force: bool = False
) -> ContrastCheck:
    """Check that a scan shows a contrast, or refuse it.

    Args:
        volume: The scan. The name of its file and the JSON file beside it count too.
        profile: What the contrast looked like in training; None where that is unknown.
        contrast: Its name, such as "PD".
        force: Return what would have been refused.

    Warns:
        UserWarning: The scan's voxels are too large to judge what it looks like, or it is taken for its name although
            most training scans look otherwise.

    Raises:
        VolumeError: The scan's name or JSON file says another contrast, or it does not look like the training scans.
    """
    coarse = too_coarse(volume)
    seen = measure_appearance(volume.array, volume.affine) if profile else None
    score = profile.score(seen) if profile and seen else None
    named = named_contrasts(volume.path)
    reasons = [f"{place} says {_title(key)}" for place, key in named if _differs(key, contrast)]
    is_named = any(key == contrast_key(contrast) for _, key in named)
    limit = profile.limit if profile and is_named else THRESHOLD
    if profile is not None and seen is None:
        reasons.append("no head in which a contrast can be measured")
    elif profile is not None and seen is not None and score is not None and score > limit and not coarse:
        reasons.append(f"score {score:.1f}: {_describe(profile, seen, contrast)}")
    elif profile is not None and seen is not None and profile.is_like_made(seen) and not is_named and not coarse:
        unsaid = f"neither its name nor a JSON file says {_title(contrast)}"
        reasons.append(f"score {score:.1f}: {unsaid}, and it looks more like the training's targets")
    reason = "; ".join(reasons)
    if reason and not force:
        scans = f" as in the {profile.scans} training scans, a score of at most {limit:g}" if profile else ""
        raise VolumeError(
            "this is not the contrast that the model was trained on",
            where=volume.path,
            found=reason,
            expected=_title(contrast) + scans,
            do=f"Give a {_title(contrast)} scan. If it is one, --force goes on and marks the output as not verified.",
        )
    if not reason and profile is None:
        return ContrastCheck(None, None, "the model has no profile of its training scans")
    if not reason and coarse:
        warn(f"{volume.path}: its contrast cannot be judged: {coarse}")
        return ContrastCheck(None, score, f"cannot be judged: {coarse}", limit)
    if not reason and score is not None and score > THRESHOLD:
        warn(
            f"{volume.path}: it looks unlike most of the training scans (score {score:.1f}, most have at most "
            f"{THRESHOLD}); it is taken as {named[0][0]} says {_title(contrast)}"
        )
    return ContrastCheck(not reason, score, reason, limit)


def too_coarse(volume: Volume) -> str:
    """Return why the voxels are larger than those that the check was measured for; empty where they are not."""
    if max(volume.spacing_mm) <= LONGEST_EDGE_MM and math.prod(volume.spacing_mm) <= LARGEST_VOXEL_MM3:
        return ""
    spacing = " x ".join(f"{edge:.3g}" for edge in volume.spacing_mm)
    return f"voxels of {spacing} mm, and the check knows scans of up to 3.5 mm, or slices of up to 5 mm"


def named_contrasts(path: Path | None) -> list[tuple[str, str]]:
    """Return the contrasts that a scan's name and the JSON file beside it say, as (place, key).

    Only PD, T1, T2 and FLAIR count. A name that holds two of them says nothing, unless it follows BIDS or IXI.

    Example:
        >>> named_contrasts(Path("sub-01_T2w.nii.gz"))
        [('its name', 't2')]
    """
    if path is None:
        return []
    scan = identify(path)
    said = [("its name", _NAMES.get(scan.contrast) if scan else _only_name(stem(path)))]
    try:
        facts = read_json(sidecar_path(path))
    except (OSError, ValueError):
        facts = None
    if isinstance(facts, dict):
        said.append(("its JSON file", _contrast_of(facts)))
    return [(place, key) for place, key in said if key is not None]


def _contrast_of(facts: dict[str, Any]) -> str | None:
    for field in ("Contrast", "SeriesDescription", "ProtocolName"):
        key = _only_name(str(facts.get(field, "")))
        if key is not None:
            return key
    return _contrast_of_timing(facts)


def _contrast_of_timing(facts: dict[str, Any]) -> str | None:
    """Return the weighting of a spin echo whose times (s, as in BIDS) leave no doubt."""
    if "SE" not in str(facts.get("ScanningSequence", "")):
        return None
    try:
        repetition, echo = float(facts["RepetitionTime"]), float(facts["EchoTime"])
        inversion = float(facts.get("InversionTime", 0))
    except (KeyError, TypeError, ValueError):
        return None
    if inversion > 1.5 and echo > 0.06:
        return "flair"
    if inversion:
        return None
    if repetition > 2:
        return "t2" if echo > 0.06 else "pd" if echo < 0.03 else None
    return "t1" if repetition < 0.9 and echo < 0.03 else None


def _only_name(text: str) -> str | None:
    """Return the one contrast that a text names; an inversion-recovery T2 is a FLAIR."""
    keys = {_NAMES[word] for word in re.split(r"[^a-z0-9]+", text.lower()) if word in _NAMES}
    if "flair" in keys:
        keys.discard("t2")
    return keys.pop() if len(keys) == 1 else None


def _differs(key: str, contrast: str) -> bool:
    expected = contrast_key(contrast)
    return expected in _TYPICAL and key != expected


def _title(name: str) -> str:
    return bids_suffix(name.upper() if name in _TYPICAL else name)


def _describe(profile: ContrastProfile, seen: Appearance, contrast: str) -> str:
    """Say what a scan looks like and what sets it apart most."""
    distances = {key: ContrastProfile(1, typical, _LEAST_SPREAD).score(seen) for key, typical in _TYPICAL.items()}
    nearest = min(distances, key=lambda key: distances[key])
    if nearest == contrast_key(contrast):
        like = f"{_title(nearest)} comes nearest, but the training scans look otherwise"
    elif distances[nearest] <= THRESHOLD:
        like = f"it looks like {_title(nearest)}"
    else:
        like = "it looks like no contrast that is known here"
    deviations = profile.deviations(seen)
    name = max(deviations, key=lambda name: abs(deviations[name]))
    return f"{like}, {_WORDS[name][deviations[name] > 0]}"
