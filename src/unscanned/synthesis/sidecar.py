"""The sidecar of a synthetic volume: written beside it, read back, and the model and scan that it names."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from unscanned.contrast.check import ContrastCheck
from unscanned.contrast.familiarity import Familiarity
from unscanned.datasets.layout import sidecar_path
from unscanned.errors import CheckpointError, VolumeError
from unscanned.files import read_json, short_digest
from unscanned.formats.sidecar import (
    InputContrast,
    InputFamiliarity,
    Intensity,
    ModelFacts,
    Sidecar,
    SourceScan,
    SynthesisFacts,
    Tool,
)
from unscanned.machine.provenance import NAME, environment, utc_now, version
from unscanned.settings import Synthesis, decisive, to_dict
from unscanned.synthesis.model import Model
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import Volume, read_volume
from unscanned.volumes.skull import looks_skull_stripped

__all__ = ["describe", "locate", "output_key", "read_sidecar", "read_source", "relative", "synthesis_facts"]


_BEFORE = {"blend": "equal", "clip": "none", "detail": "none", "mirror": False}
"What older volumes were made with, before there was a choice."


def synthesis_facts(how: Synthesis) -> SynthesisFacts:
    """Return what of the settings of synthesis decides the result; in mode volume nothing overlaps."""
    overlaps = how.mode == "patches"
    return SynthesisFacts(
        mode=how.mode,
        crop=how.crop,
        stride=how.stride if overlaps else None,
        blend=how.blend if overlaps else "equal",
        clip=how.clip,
        detail=how.detail,
        mirror=how.mirror,
        precision=how.precision,
    )


def output_key(volume: Volume, model: Model, how: Synthesis) -> str:
    """Return 16 digits of all that decides a synthetic volume: the scan, the model and the settings of synthesis."""
    facts = synthesis_facts(how).model_dump(exclude_none=True)
    for name, before in _BEFORE.items():  # so that older volumes are not made again
        if facts[name] == before:
            del facts[name]
    return short_digest({"input": volume.sha256, "model": model.sha256, **facts})


def describe(
    model: Model,
    volume: Volume,
    path: Path,
    how: Synthesis,
    checked: ContrastCheck,
    familiarity: Familiarity,
    made: Volume,
    sha256: str,
) -> Sidecar:
    """Return the sidecar of a synthetic volume; its paths are relative to the folder that it lies in.

    Args:
        model: What made it.
        volume: The scan that it was made from.
        path: Where the synthetic volume gets its name.
        how: The settings of synthesis.
        checked: What became of the check of the scan's contrast.
        familiarity: Whether the scan is like the training scans.
        made: The synthetic volume, with its warnings.
        sha256: Of its file.
    """
    constants, scan = model.normalization, Path(volume.path or "")
    target, head = constants.target, head_mask(volume.array, volume.affine)
    intensity = Intensity(
        scale=target.scale,
        mean=target.mean,
        std=target.std,
        minimum=target.minimum,
        percentile=constants.percentile,
        source_scale=head_scale(volume.array, head, constants.percentile),
    )
    return Sidecar(
        contrast=model.target,
        generated_by=[Tool(name=NAME, version=version())],
        skull_stripped=_is_skull_stripped(volume, head),
        source_scans=[
            SourceScan(
                name=scan.name,
                path=relative(scan, path.parent),
                contrast=model.source,
                sha256=str(volume.sha256),
            )
        ],
        model=ModelFacts(
            path=relative(model.path, path.parent),
            name=model.name,
            sha256=model.sha256,
            weights_sha256=model.weights_sha256,
            preset=model.settings.preset,
            generator=to_dict(model.settings.generator),
            stages=len(model.generators),
            settings=short_digest(decisive(model.settings)),
        ),
        intensity=to_dict(intensity),
        environment=environment(model.device),
        input_contrast_verified=checked.verified,
        input_contrast=InputContrast(score=checked.score, threshold=checked.limit, reason=checked.reason),
        input_familiarity=InputFamiliarity(**asdict(familiarity)),
        synthesis=synthesis_facts(how),
        warnings=list(made.warnings),
        made=utc_now(),
        key=output_key(volume, model, how),
        sha256=sha256,
    )


def read_sidecar(volume: Path) -> Sidecar:
    """Return what the sidecar of a synthetic volume says.

    Raises:
        VolumeError: There is no sidecar, or it is not one that `synthesize` wrote.
    """
    path = sidecar_path(volume)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise VolumeError(
            "no sidecar says how the volume was made",
            where=path,
            found=error,
            expected="the JSON file that synthesize wrote beside the volume",
        ) from error
    return Sidecar.load(content, where=path, error=VolumeError)


def locate(volume: Path, given: str | Path | None, named: str | None, what: str) -> Path:
    """Return where the model or the scan is: as given, or as the sidecar names it.

    Raises:
        CheckpointError: The model is not there.
        VolumeError: The scan is not there.
    """
    if given is not None:
        return Path(given)
    path = Path(os.path.normpath(os.path.join(os.path.dirname(os.path.realpath(volume)), named or "")))
    if named is None or not path.exists():
        error = CheckpointError if what == "model" else VolumeError
        raise error(f"the {what} is no longer where the sidecar says", where=path, do=f"Name it with --{what}.")
    return path


def read_source(volume: Path, facts: Sidecar, given: str | Path | None) -> Volume:
    """Return the scan that a synthetic volume was made from.

    Args:
        volume: The synthetic volume.
        facts: Its sidecar.
        given: The scan; None takes the path in the sidecar.

    Raises:
        VolumeError: It cannot be read, or it is another scan.
    """
    named = facts.source_scans[0]
    scan = read_volume(locate(volume, given, named.path, "scan"))
    if scan.sha256 != named.sha256:
        raise VolumeError(
            "another scan than the one that the volume was made from",
            where=scan.path,
            found=f"sha256 {str(scan.sha256)[:12]}…",
            expected=f"{named.sha256[:12]}…",
            do="Name the right one with --scan.",
        )
    return scan


def relative(path: Path | None, folder: Path) -> str | None:
    """Return a path as seen from a folder, with forward slashes; None for None."""
    if path is None:
        return None
    parent, name = os.path.split(os.path.abspath(path))  # a file that is a link goes by its own name
    return Path(os.path.relpath(os.path.join(os.path.realpath(parent), name), os.path.realpath(folder))).as_posix()


def _is_skull_stripped(volume: Volume, head: np.ndarray) -> bool:
    """Return what the scan's own JSON file says, which BIDS asks every derivative to have; else what the scan shows."""
    try:
        said = read_json(sidecar_path(Path(volume.path or "")))["SkullStripped"]
    except (OSError, ValueError, KeyError, TypeError):
        said = None
    return said if isinstance(said, bool) else looks_skull_stripped(volume.array, volume.affine, head)
