"""What the parts of a run cost beside each other, so that progress tells how much of the whole is done.

The unit is one patch through a generator. The figures are rough: they share out a bar, and they promise nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from unscanned.settings import Settings
from unscanned.synthesis.familiarity import some
from unscanned.volumes.patches import axis_starts

__all__ = ["SCORED", "run_costs", "synthesis_cost"]

SCORED = 30.0
"Metrics or pictures of one volume."
_PREPARED = 50.0
"One pair read, brought to the model's grid and written."
_PROFILED = 10.0
"What a training scan is like to the model: eight patches through the first generator, and its detail."
_ADVERSARIAL, _PLAIN = 6.0, 3.0
"A patch in a training step: forward and backward through the generator, with a discriminator or without."
_SHARE_OF_HEAD = 0.5
"Of the patches, where only those with enough of the head are trained on."


def run_costs(settings: Settings, training: int, validation: int, *, has_first_stage: bool = False) -> dict[str, float]:
    """Return the cost of each part of a run by its name: "prepare", "stage 1", "stage 1, fold 1", ..., "profile".

    Args:
        settings: Of the run.
        training: Number of training cases.
        validation: Number of validation cases.
        has_first_stage: Whether a model is taken as the first stage.
    """
    context = settings.context
    costs = {"prepare": _PREPARED * (training + validation)}
    for number in range(1, context.stages + 1):
        is_given = number == 1 and has_first_stage
        costs[f"stage {number}"] = 0.0 if is_given else _stage_cost(settings, training, validation)
        if number < context.stages and context.input == "volume":
            if context.training_input == "out_of_fold":
                inside = training * (1 - 1 / context.folds)
                for fold in range(1, context.folds + 1):
                    costs[f"stage {number}, fold {fold}"] = _stage_cost(settings, inside, validation)
            volumes = (training + validation) * _volume_cost(settings, context.stride)
            costs[f"context of stage {number + 1}"] = volumes
    costs["profile"] = _PROFILED * len(some(range(training)))
    return costs


def synthesis_cost(settings: Settings) -> float:
    """Return the cost of one synthetic volume."""
    synthesis = settings.synthesis
    return (1 + synthesis.mirror) * settings.context.stages * _volume_cost(settings, synthesis.stride)


def _stage_cost(settings: Settings, training: float, validation: int) -> float:
    options = settings.training
    share = _SHARE_OF_HEAD if options.min_head > 0 else 1.0
    steps = training * share * _patches(settings.prepare.shape, options.patch, options.patch) / options.batch
    with_margin = ((options.patch + 2 * options.margin) / options.patch) ** 3
    patch = (_ADVERSARIAL if settings.loss.adversarial > 0 else _PLAIN) * with_margin
    epoch = (options.steps_per_epoch or steps) * options.batch * patch
    return options.epochs * (epoch + validation * _volume_cost(settings, options.validation_stride))


def _volume_cost(settings: Settings, stride: int) -> float:
    shape, patch = settings.prepare.shape, settings.training.patch
    if settings.synthesis.mode == "volume":
        return math.prod(shape) / patch**3
    return float(_patches(shape, patch, min(stride, patch)))


def _patches(shape: Sequence[int], patch: int, stride: int) -> int:
    return math.prod(len(axis_starts(max(n, patch), patch, stride)) for n in shape)
