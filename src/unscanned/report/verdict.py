"""What an evaluation says, in words: each arm against the baselines and the first arm, and why two PSNRs differ."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from unscanned.evaluation.cases import ALLOWED, BASELINES
from unscanned.evaluation.metrics import METRICS
from unscanned.formats.evaluation import Comparison, EvaluationRecord

__all__ = ["Verdict", "below_baselines", "explain_psnr", "verdicts"]

_REGION = "head"
_NAMES = {"regression": "the voxelwise regression", "source": "the source itself"}


@dataclass(frozen=True)
class Verdict:
    """What the paired differences say of an arm.

    Attributes:
        arm: The arm.
        text: What follows the arm's name in a sentence.
        side: "below" where a baseline scored better on average, "above" where the arm is shown to be better than the
            baseline that it is compared with, "open" where neither is said.
    """

    arm: str
    text: str
    side: Literal["above", "open", "below"]


def verdicts(content: EvaluationRecord) -> list[Verdict]:
    """Return a verdict on each arm, by PSNR inside the head; empty where the evaluation has no PSNR.

    An arm is compared with the voxelwise regression, or with the source where there is none, and with the first arm. A
    difference counts as shown where its 95 % interval does not hold 0. Where the limits of a simulated target are
    known, the text says how far from them the arm is.
    """
    if "psnr" not in content.definitions:
        return []
    arms = content.compared
    below = below_baselines(content)
    made = []
    for arm in arms:
        rivals = [name for name in reversed(BASELINES) if name in content.arms][:1] + [a for a in arms[:1] if a != arm]
        rows = [row for rival in rivals if (row := _comparison(content, arm, rival, "psnr")) is not None]
        text = "; ".join(_sentence(row) for row in rows) or "could not be compared with anything"
        if any(row.low is None for row in rows):
            text += "; one subject gives no interval"
        text += "".join(
            f". By SSIM it is the other way round: {_signed(other.difference, 3)} against {_name(row.against)}"
            for row in rows
            if (other := _comparison(content, arm, row.against, "ssim")) is not None and _sides(row) * _sides(other) < 0
        )
        limits = {name: row for name in ALLOWED if (row := _comparison(content, arm, name, "psnr")) is not None}
        if limits:
            text += ". It is " + " and ".join(_distance(row, ALLOWED[name]) for name, row in limits.items())
        is_above = any(_sides(row) > 0 for row in rows if row.against in BASELINES)
        made.append(Verdict(arm, text + ".", "below" if below.get(arm) else "above" if is_above else "open"))
    return made


def below_baselines(content: EvaluationRecord) -> dict[str, list[str]]:
    """Return the baselines that have a higher mean PSNR inside the head, for each arm that there is one for."""
    found: dict[str, list[str]] = {}
    for row in content.comparisons:
        is_wanted = row.metric == "psnr" and row.region == _REGION and row.against in BASELINES
        if is_wanted and row.arm not in BASELINES and row.difference is not None and row.difference < 0:
            found.setdefault(row.arm, []).append(row.against)
    return found


def explain_psnr(content: EvaluationRecord) -> str:
    """Say why an evaluation's two PSNRs are not the same, and where they order arms differently; empty without two."""
    if not {"psnr", "psnr_nie"} <= content.definitions.keys():
        return ""
    means = {}
    for arm in (*BASELINES, *content.compared):
        regions = content.arms.get(arm, {})
        pair = [regions[_REGION].get(name) for name in ("psnr", "psnr_nie")] if _REGION in regions else []
        if len(pair) == 2 and all(each is not None and each.mean is not None for each in pair):
            means[arm] = [each.mean for each in pair if each is not None and each.mean is not None]
    digits = METRICS["psnr"].digits
    turned = [
        (one, other) if means[one][0] > means[other][0] else (other, one)
        for one, other in combinations(means, 2)
        if round(means[one][0] - means[other][0], digits) * round(means[one][1] - means[other][1], digits) < 0
    ]
    text = (
        "The two PSNRs measure the same error against different peaks. PSNR takes 1 in unit scale for every volume. "
        "PSNR, Nie takes the largest z-score of either volume, so one bright synthetic voxel raises it; it is there to "
        "compare with numbers that the method's authors published. Compare arms by PSNR."
    )
    for better, worse in turned:
        text += f" Here the two disagree: {better} is above {worse} in PSNR, and below it in PSNR, Nie."
    return text


def _comparison(content: EvaluationRecord, arm: str, against: str, metric: str) -> Comparison | None:
    for row in content.comparisons:
        if (row.arm, row.against, row.metric, row.region) == (arm, against, metric, _REGION):
            return row if row.difference is not None else None
    return None


def _sentence(row: Comparison) -> str:
    rival, difference = _name(row.against), row.difference or 0.0
    if row.low is None or row.high is None:
        side = "above" if difference >= 0 else "below"
        return f"is {abs(difference):.1f} dB {side} {rival}"
    if _sides(row) > 0:
        return f"is {difference:.1f} dB [{row.low:.1f}, {row.high:.1f}] above {rival}"
    if _sides(row) < 0:
        return f"is {-difference:.1f} dB [{-row.high:.1f}, {-row.low:.1f}] below {rival}"
    interval = f"{_signed(difference, 1)} dB [{_signed(row.low, 1)}, {_signed(row.high, 1)}]"
    shown = "is not shown to be better than" if difference > 0 else "is not better than"
    return f"{shown} {rival}: {interval} holds 0"


def _distance(row: Comparison, what: str) -> str:
    difference = row.difference or 0.0
    return f"{abs(difference):.1f} dB {'below' if difference < 0 else 'above'} what {what}"


def _sides(row: Comparison) -> int:
    """On which side of 0 the whole interval lies; 0 where it holds 0 or there is none."""
    if row.low is None or row.high is None:
        return 0
    return 1 if row.low > 0 else -1 if row.high < 0 else 0


def _name(arm: str) -> str:
    return _NAMES.get(arm, arm)


def _signed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")
