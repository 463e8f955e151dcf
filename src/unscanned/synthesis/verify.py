"""Whether a synthetic volume is what its sidecar says: it is made again from the named model and scan, and compared."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unscanned.errors import CheckpointError
from unscanned.files import sha256
from unscanned.formats.sidecar import Sidecar
from unscanned.machine.device import choose_device
from unscanned.machine.provenance import environment
from unscanned.machine.threads import set_process_threads
from unscanned.progress import Progress
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.shelf import ShelvedModel, list_models
from unscanned.synthesis.sidecar import locate, read_sidecar, read_source
from unscanned.volumes.nifti import Volume, read_volume

__all__ = ["TOLERANCE", "Verification", "verify"]

TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 1e-1}
"""Largest difference that another device, number of threads or release of PyTorch may make, by the precision that the
volume was made with; a share of the model's intensity scale, the 99.9th percentile inside the head."""


@dataclass(frozen=True)
class Verification:
    """What came out.

    Attributes:
        volume: The synthetic volume.
        verdict: Bit for bit the same, the same within the tolerance, or not the same.
        difference: Largest absolute difference of a voxel, as a share of the intensity scale; infinite on another grid.
        tolerance: What it may be.
        reasons: What else is not as the sidecar says, and what differs from the machine that made the volume.
    """

    volume: Path
    verdict: Literal["identical", "within tolerance", "different"]
    difference: float
    tolerance: float
    reasons: tuple[str, ...]


def verify(
    volume: str | Path,
    *,
    model: str | Path | None = None,
    scan: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Make a synthetic volume again and compare.

    The paths in the sidecar are only where to look: the model and the scan must have the hashes that it names.

    Args:
        volume: A file that `synthesize` wrote, with its sidecar beside it.
        model: The model's folder or name; None takes the path in the sidecar, or the name in it where that is gone.
        scan: The source scan; None takes the path in the sidecar.
        device: Where to make it again.
        threads: CPU threads; None takes as many as made the volume.
        progress: Called with (done, total, label).

    Raises:
        VolumeError: The volume, its sidecar or the scan cannot be read, or it is another scan.
        CheckpointError: The model is not there, or it is another one.
        ResourceError: The device is not there, or memory is short.
    """
    volume = Path(volume)
    facts = read_sidecar(volume)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # the process gets its own number back
        set_process_threads(threads or facts.environment.get("threads"))
        chosen = choose_device(device)
        found = read_volume(volume, allow_constant=True)
        generator = load_model(_locate_model(volume, model, facts), chosen)
        _check_model(generator, facts)
        source = read_source(volume, facts, scan)
        how = generator.how(**facts.synthesis.model_dump(exclude_none=True))
        again = generator.synthesize(source, how, progress=progress)
        return _compare(volume, found, again, facts, environment(chosen), scale=generator.normalization.target.scale)


def _compare(
    volume: Path, found: Volume, again: Volume, facts: Sidecar, now: dict[str, Any], *, scale: float
) -> Verification:
    tolerance = TOLERANCE[facts.synthesis.precision]
    reasons = [] if sha256(volume) == facts.sha256 else ["the file was changed after it was made"]
    same_grid = found.shape == again.shape and np.allclose(found.affine, again.affine, atol=1e-3)
    difference = float("inf")
    if same_grid:
        difference = float(np.abs(found.array - again.array).max()) / scale
    else:
        reasons.append("it lies on another grid")
    is_changed = bool(reasons)
    made_with = facts.environment
    reasons += [
        f"{name}: made with {made_with.get(name)}, now {now[name]}"
        for name in ("unscanned", "torch", "platform", "device", "threads")
        if made_with.get(name) != now[name]
    ]
    verdict: Literal["identical", "within tolerance", "different"] = "different"
    if difference <= tolerance and not is_changed:
        verdict = "identical" if np.array_equal(found.array, again.array) else "within tolerance"
    return Verification(volume, verdict, difference, tolerance, tuple(reasons))


def _locate_model(volume: Path, given: str | Path | None, facts: Sidecar) -> str | Path | ShelvedModel:
    """Return where the model is: by its name where it has moved, as with another environment of Python."""
    try:
        return locate(volume, given, facts.model.path, "model")
    except CheckpointError:
        named = [model for model in list_models() if model.name == facts.model.name]
        if not named:
            raise
        return named[0]


def _check_model(model: Model, facts: Sidecar) -> None:
    if model.sha256 != facts.model.sha256:
        raise CheckpointError(
            "another model than the one that made the volume",
            where=model.path,
            found=f"sha256 {model.sha256[:12]}…",
            expected=f"{facts.model.sha256[:12]}…",
            do="Name the right one with --model.",
        )
