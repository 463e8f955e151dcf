"""Signs that a training is going wrong: numbers that are not finite, and a generator that has collapsed.

A collapse is looked for at each validation, on volumes and patches that never change. A single bad validation is normal
early on; a sign that stays is first a warning, and ends the training only where nothing useful can come of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn

from unscanned.errors import TrainingError
from unscanned.models.generators import evaluating
from unscanned.volumes.patches import cut, starts

__all__ = [
    "FATAL_AFTER",
    "FATAL_STEPS",
    "SIGNS",
    "WARN_AFTER",
    "AdversaryCollapsed",
    "Sign",
    "check_collapse",
    "check_finite",
    "count_signs",
    "discriminator_accuracy",
    "fixed_patches",
    "output_signs",
    "sign_warnings",
    "unwatched",
]

WARN_AFTER = 3
"Validations in a row that show a sign until it is a warning."
FATAL_AFTER = 6
"Validations in a row that show a sign of collapse until the training ends."
FATAL_STEPS = 500
"Steps before which no training is called collapsed."
PATCHES = 8


class AdversaryCollapsed(TrainingError):
    """A collapse after which the training goes on with its other terms."""


@dataclass(frozen=True)
class Sign:
    """A number of a validation that shows when a training goes wrong.

    Attributes:
        shows: Whether a value is the sign.
        meaning: In words.
        is_collapse: Whether nothing useful can come of it; other signs are warnings only.
    """

    shows: Callable[[float], bool]
    meaning: str
    is_collapse: bool


SIGNS = {
    "std_ratio": Sign(lambda x: x < 0.2, "synthetic volumes have next to no contrast", True),
    "variety": Sign(lambda x: x < 0.1, "different inputs give the same output", True),
    "mae_ratio": Sign(lambda x: x > 1, "synthetic volumes are further from the target than its mean", True),
    "d_accuracy": Sign(
        lambda x: x > 0.99 or x < 0.55, "the discriminator is always right, or no better than chance", False
    ),
}
"""Signs by the name that the validation has them under.

`std_ratio`, synthetic to target inside the head; `variety`, mean difference between the outputs for different patches,
to that between the targets; `mae_ratio`, mean absolute error to that of the target's mean; `d_accuracy`, share of
patches that the discriminator judges rightly. Beside a strong L1 term the last is often 0.5 or 1 for long: it warns.
"""


def check_finite(loss: Tensor, network: nn.Module, name: str) -> Tensor:
    """Refuse to take a step that would write NaN or infinity into every weight.

    Adam turns one such gradient into a network that is lost, with gradient clipping or without.

    Args:
        loss: Scalar, after its backward pass.
        network: Whose gradients are looked at.
        name: Of the network.

    Returns:
        The norm of the whole gradient, a scalar.

    Raises:
        TrainingError: The loss or a gradient is not finite.
    """
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise TrainingError(
            f"the {name}'s loss or gradient is not finite",
            found=f"loss {float(loss.detach()):g}, gradient norm {float(norm):g}",
            expected="finite numbers",
            do="Check these scans, or lower training.learning_rate.",
        )
    return norm


def fixed_patches(head: np.ndarray, patch: int) -> list[tuple[int, int, int]]:
    """Return the starts of a few patches of a volume that hold some of the head, evenly spread and always the same."""
    grid = [(i, j, k) for i, j, k in starts(head.shape, patch, patch).tolist()]
    grid = [start for start in grid if cut(head, start, patch).mean() >= 0.25]
    places = np.linspace(0, len(grid) - 1, min(PATCHES, len(grid))).round().astype(int)
    return [grid[place] for place in places]


def output_signs(synthetic: np.ndarray, target: np.ndarray, head: np.ndarray, patch: int) -> dict[str, float]:
    """Return `std_ratio`, `variety` and `mae_ratio` of one validation volume.

    Args:
        synthetic: (i, j, k), z-scores.
        target: Acquired, same shape.
        head: Its head, bool.
        patch: Edge of a patch, in voxels.

    Raises:
        TrainingError: The synthetic volume is not finite.
    """
    if not np.isfinite(synthetic).all():
        raise TrainingError("the generator's output is not finite", do="Lower training.learning_rate.")
    inside, truth = synthetic[head], np.asarray(target)[head]
    signs = {
        "std_ratio": _ratio(inside.std(), truth.std()),
        "mae_ratio": _ratio(np.abs(inside - truth).mean(), np.abs(truth - truth.mean()).mean()),
    }
    places = fixed_patches(head, patch)
    if len(places) > 1:
        signs["variety"] = _ratio(_difference(synthetic, places, patch), _difference(target, places, patch))
    return signs


def discriminator_accuracy(
    discriminator: nn.Module,
    source: np.ndarray,
    target: np.ndarray,
    synthetic: np.ndarray,
    places: Sequence[tuple[int, int, int]],
    patch: int,
    device: torch.device | str = "cpu",
    *,
    boundary: float = 0.0,
) -> float:
    """Return the share of acquired and synthetic patches that the discriminator judges rightly.

    Args:
        discriminator: Maps source and target to logits; switched to evaluation meanwhile.
        source: (i, j, k), z-scores.
        target: Acquired, same shape.
        synthetic: Same shape.
        places: Starts of the patches, at least one.
        patch: Edge of a patch, in voxels.
        device: Where the discriminator is.
        boundary: Logit above which a patch is judged to be acquired.
    """
    x, y, made = (
        torch.from_numpy(np.stack([cut(volume, start, patch) for start in places])[:, None]).to(device, torch.float32)
        for volume in (source, target, synthetic)
    )
    with evaluating(discriminator), torch.inference_mode():
        right = torch.cat([discriminator(x, y) > boundary, discriminator(x, made) <= boundary])
    return float(right.float().mean())


def count_signs(scores: Mapping[str, float], before: Mapping[str, int]) -> dict[str, int]:
    """Return for each sign how many validations in a row have shown it, this one included."""
    return {
        name: before.get(name, 0) + 1 for name, sign in SIGNS.items() if name in scores and sign.shows(scores[name])
    }


def sign_warnings(scores: Mapping[str, float], counts: Mapping[str, int]) -> list[str]:
    """Return a warning for each sign that has just been there for `WARN_AFTER` validations in a row."""
    return [
        f"{SIGNS[name].meaning}: {name} {scores[name]:.3f}, {count} validations in a row"
        for name, count in counts.items()
        if count == WARN_AFTER
    ]


def check_collapse(scores: Mapping[str, float], counts: Mapping[str, int], step: int, *, goes_on: bool = False) -> None:
    """End a training from which nothing useful can come any more, or its adversary alone.

    Args:
        scores: Of the last validation.
        counts: As `count_signs` returned them.
        step: Steps taken.
        goes_on: Whether the adversary alone ends, which then also a discriminator does that is always right or no
            better than chance: the generator learns nothing from it.

    Raises:
        TrainingError: A sign of collapse has been there for `FATAL_AFTER` validations in a row.
        AdversaryCollapsed: Likewise, with `goes_on`.
    """
    for name, count in counts.items():
        if (SIGNS[name].is_collapse or goes_on) and count >= FATAL_AFTER and step >= FATAL_STEPS:
            found = f"{name} {scores[name]:.3f}, {count} validations in a row, step {step}"
            if goes_on:
                raise AdversaryCollapsed(SIGNS[name].meaning, found=found)
            raise TrainingError(
                f"the training has collapsed: {SIGNS[name].meaning}",
                found=found,
                do="The best epoch is kept. Try another training.seed, a lower training.learning_rate, or a smaller "
                "loss.adversarial; loss.on_collapse = regression goes on without the adversary.",
            )


def unwatched(validations: int, steps: int, *, validates: bool, goes_on: bool) -> list[str]:
    """Return in words why a collapse of a training with an adversary would not be seen; empty where it would.

    Args:
        validations: That there will be with the adversary.
        steps: In all.
        validates: Whether there are subjects to validate on.
        goes_on: Whether the training is to go on without an adversary that has collapsed, so that it matters in a
            short training too.
    """
    rest = "only losses that are not finite will " + ("make it go on without its adversary" if goes_on else "end it")
    if not validates:
        return [f"split.validation = 0: a collapse shows on validation subjects alone, so none will be seen; {rest}"]
    if goes_on and (validations < FATAL_AFTER or steps < FATAL_STEPS):
        return [
            f"loss.on_collapse = regression: {validations} validations with the adversary and {steps} steps in all are "
            f"too few to see a collapse, which takes {FATAL_AFTER} in a row and {FATAL_STEPS} steps; {rest}"
        ]
    return []


def _difference(volume: np.ndarray, places: Sequence[tuple[int, int, int]], patch: int) -> float:
    """Return the mean absolute difference between patches."""
    pairs = combinations(places, 2)
    return float(np.mean([np.abs(cut(volume, a, patch) - cut(volume, b, patch)).mean() for a, b in pairs]))


def _ratio(value: float, reference: float) -> float:
    return float(value / reference) if reference > 0 else 1.0
