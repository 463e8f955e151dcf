"""What a stage makes of each case, kept on disk: the second channel of the next stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from unscanned.files import atomic_path, short_digest
from unscanned.machine import ranks
from unscanned.training.inputs import TrainingRun
from unscanned.training.maps import MappedVolumes
from unscanned.training.prepare import Case
from unscanned.training.stage import digest_of, weights_digest
from unscanned.training.validation import map_case

__all__ = ["context_volumes"]


def context_volumes(
    run: TrainingRun, folder: Path, number: int, makers: Mapping[str, nn.Module], volumes: Mapping[str, np.ndarray]
) -> MappedVolumes:
    """Return for each case the volume that a stage makes, (i, j, k) z-scores, read through memory maps.

    A volume that is there from the same scan, weights and context is not made again; others are removed. Where several
    ranks train together, they share the cases.

    Args:
        run: The run.
        folder: Gets one file a case.
        number: The stage.
        makers: For each case by name, the generator that makes its volume: one that did not train on it, or the
            stage's own.
        volumes: What the stage before made of each case; empty in the first.
    """
    cases = [*run.training, *run.validation]
    part = f"context of stage {number + 1}"
    progress = run.progress.get(part)

    def made(index: int) -> Path:
        case = cases[index]
        if progress:
            progress(index, len(cases), f"{part}, {case.name}")
        maker = makers[case.name]
        path = folder / f"{case.name}_{_made_from(run, maker, case, volumes)}.npy"
        if not path.exists():
            volume = map_case(run, maker, case, volumes, None, run.settings.context.stride)
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, volume)
        return path

    paths = ranks.each(made, range(len(cases)))
    if ranks.number() == 0:
        for path in {*folder.glob("*.npy")} - {*paths}:
            path.unlink()  # of an earlier best epoch, or of a scan that was corrected
    return MappedVolumes({case.name: path for case, path in zip(cases, paths, strict=True)})


def _made_from(run: TrainingRun, network: nn.Module, case: Case, volumes: Mapping[str, np.ndarray]) -> str:
    """Return 16 digits of all that decides what a stage makes of a case, but for settings, which a run keeps."""
    given: dict[str, Any] = {
        "source": case.facts.source.sha256,
        "frame": case.facts.frame,
        "intensities": run.normalization.of_z_scores(),
        "weights": weights_digest(network),
    }
    if case.name in volumes:
        given["context"] = digest_of(volumes[case.name])
    return short_digest(given)
