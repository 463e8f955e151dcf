"""What a generator makes of a prepared case, and the scores that choose the best epoch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from unscanned.evaluation.metrics import mae, psnr
from unscanned.machine import ranks
from unscanned.machine.precision import autocast
from unscanned.progress import interruptible
from unscanned.synthesis.context import PatchChain, chain
from unscanned.training.adversary import Adversary
from unscanned.training.health import discriminator_accuracy, fixed_patches, output_signs
from unscanned.training.inputs import TrainingRun
from unscanned.training.prepare import Case

__all__ = ["map_case", "validate"]


def map_case(
    run: TrainingRun,
    network: nn.Module,
    case: Case,
    volumes: Mapping[str, np.ndarray],
    previous: PatchChain | None,
    stride: int,
) -> np.ndarray:
    """Return what a generator makes of a prepared case, (i, j, k) z-scores.

    Args:
        run: The run, whose settings say how a volume is made.
        network: The generator.
        case: The case.
        volumes: What the stage before made of each case; empty where there is none.
        previous: The generators before it, where its context is their output on the same patch.
        stride: Voxels between patches, in mode patches.
    """
    how = run.settings.synthesis
    with autocast(how.precision, run.device):
        return chain(
            run.normalization.source.standardize(np.asarray(case.source, np.float32)),
            [*(previous.generators if previous is not None else ()), network],
            how.model_copy(update={"stride": stride, "batch": None}),
            earlier=volumes.get(case.name),
            context="patch",
            patch=run.settings.training.patch,
            device=run.device,
            progress=interruptible(None, run.should_stop, run.folder),
        )


def validate(
    run: TrainingRun,
    volumes: Mapping[str, np.ndarray],
    previous: PatchChain | None,
    adversary: Adversary | None,
    network: nn.Module,
) -> dict[str, float]:
    """Return means over the validation cases: `psnr` (dB, unit scale), `mae` (z-scores) and the signs of health.

    Where several ranks train together, they share the cases.

    Args:
        run: The run.
        volumes: As for `map_case`, and so is the next.
        previous: See there.
        adversary: Whose judgement is watched while it takes part; None where there is none.
        network: The generator.
    """

    def scores_of(case: Case) -> dict[str, float]:
        return _scores(run, case, volumes, previous, adversary, network)

    scores: dict[str, list[float]] = {}
    for values in ranks.each(scores_of, run.validation):
        for name, value in values.items():
            scores.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _scores(
    run: TrainingRun,
    case: Case,
    volumes: Mapping[str, np.ndarray],
    previous: PatchChain | None,
    adversary: Adversary | None,
    network: nn.Module,
) -> dict[str, float]:
    contrasts, training = run.normalization, run.settings.training
    synthetic = map_case(run, network, case, volumes, previous, training.validation_stride)
    acquired, head = np.asarray(case.target, np.float32), np.asarray(case.head)
    target = contrasts.target.standardize(acquired)
    signs = output_signs(synthetic, target, head, training.patch)
    places = fixed_patches(head, training.patch)
    if adversary is not None and adversary.takes_part and places:
        source = contrasts.source.standardize(np.asarray(case.source, np.float32))
        signs["d_accuracy"] = discriminator_accuracy(
            adversary.discriminator,
            source,
            target,
            synthetic,
            places,
            training.patch,
            run.device,
            boundary=adversary.criterion.boundary,
        )
    unit = psnr(acquired, contrasts.target.unit(synthetic), data_range=1.0)
    return {"psnr": unit, "mae": mae(target, synthetic), **signs}
