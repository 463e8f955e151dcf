"""A model with its weights in half the space, and what that changes in the volumes that it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import CheckpointError, SettingsError
from unscanned.progress import Progress, within
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import read_generators, save_model, weights_bytes
from unscanned.volumes.nifti import Volume

__all__ = ["LARGEST_ERROR", "Packed", "pack"]

LARGEST_ERROR = 1e-3
"""Largest difference of a voxel that half precision may make, as a share of the intensity scale: the 99.9th percentile
inside the head of the training targets."""


@dataclass(frozen=True)
class Packed:
    """A model that was packed.

    Attributes:
        folder: Of the packed model.
        error: Largest absolute difference of a voxel, over all scans, as a share of the intensity scale.
        bytes_before: Of the weights in float32.
        bytes_after: Of the weights in float16.
    """

    folder: Path
    error: float
    bytes_before: int
    bytes_after: int


@draws_progress
def pack(model: Model, folder: str | Path, scans: Sequence[Volume], *, progress: Progress | None = AUTOMATIC) -> Packed:
    """Write a model with its weights in float16, if the volumes that it makes stay the same to a thousandth.

    Loaded again, the weights are float32, so that the packed model computes as any other does. It is a model of its
    own, with another hash, and its provenance names the model that it was packed from and the error on each scan.

    Args:
        model: To pack.
        folder: Gets the packed model.
        scans: Of the source contrast. Each is synthesized with both models, as the model's own settings say.
        progress: Called with (done, total, label). Without it a bar, in a terminal and in Jupyter; None draws none.

    Returns:
        The packed model, and the largest error.

    Raises:
        SettingsError: There is no scan.
        CheckpointError: A weight is too large for float16, or the error is above `LARGEST_ERROR`. Nothing was written.
        VolumeError: As for `Model.synthesize`.
    """
    if not scans:
        raise SettingsError("no scan to measure the error of half precision on", where="scans", expected="1 or more")
    content = weights_bytes(model, torch.float16)
    if not all(tensor.isfinite().all() for tensor in safetensors.torch.load(content).values()):
        raise CheckpointError(
            "a weight is too large for half precision",
            where=model.path,
            expected=f"at most {torch.finfo(torch.float16).max:,.0f}",
            do="Leave the model as it is.",
        )
    generators = read_generators(model.settings, len(model.generators), content)
    packed = dataclasses.replace(model, generators=generators).to(model.device)
    errors = []
    for number, scan in enumerate(scans):
        before = model.synthesize(scan, progress=within(progress, 2 * number, 2 * len(scans), unit=1000))
        after = packed.synthesize(scan, progress=within(progress, 2 * number + 1, 2 * len(scans), unit=1000))
        errors.append(float(np.abs(after.array - before.array).max()) / model.normalization.target.scale)
    if max(errors) > LARGEST_ERROR:
        raise CheckpointError(
            "half precision changes what the model makes",
            where=scans[int(np.argmax(errors))].path or model.path,
            found=f"a difference of {max(errors):.2g} of the intensity scale",
            expected=f"at most {LARGEST_ERROR:g}",
            do="Leave the weights in float32.",
        )
    facts = {
        "weights": "float16",
        "largest_error": max(errors),
        "from_sha256": model.sha256,
        "scans": [{"sha256": scan.sha256, "error": error} for scan, error in zip(scans, errors, strict=True)],
    }
    packed = dataclasses.replace(packed, provenance={**model.provenance, "packed": facts})
    save_model(packed, folder, dtype=torch.float16)
    return Packed(Path(folder), max(errors), len(weights_bytes(model)), len(content))
