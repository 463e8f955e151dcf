"""How a subject of wide physics is written, and what is known of every simulated one: tissues and noise-free images.

That stands below derivatives/truth, where nothing is taken for a scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from unscanned import files
from unscanned.simulation.relaxation import LESION, NAMES
from unscanned.simulation.scanner import Grid
from unscanned.simulation.wide import Drawn
from unscanned.volumes.nifti import write_volume

__all__ = [
    "KINDS",
    "POSTERIOR",
    "TRUTH",
    "names",
    "suffix",
    "write_description",
    "write_drawn",
    "write_known",
    "write_labels",
    "write_posterior",
]

TRUTH = Path("derivatives") / "truth"
KINDS = ("noisefree", "tissues")
"Images that are known of a simulated subject: without noise, and with the literature's values of its tissues."
POSTERIOR = "posterior"
"The mean of the latter over patients, which is asked for."
_GAIN = 6


def suffix(contrast: str) -> str:
    """Return the BIDS suffix of a contrast's key."""
    return contrast if contrast == "FLAIR" else f"{contrast}w"


def names(subject: str, clean: Sequence[str], patients: int = 0) -> list[str]:
    """Return the names, without endings, of what stands below derivatives/truth for a subject."""
    kinds = [*KINDS, *([POSTERIOR] if patients else [])]
    return [f"{subject}_dseg", *(f"{subject}_desc-{kind}_{suffix(contrast)}" for contrast in clean for kind in kinds)]


def write_known(
    out: Path, subject: str, kind: str, images: Mapping[str, np.ndarray], affine: np.ndarray, origin: dict[str, Any]
) -> None:
    """Write images of a kind, by contrast; those of `KINDS` are in the units of the images with noise."""
    for contrast, image in images.items():
        _write(_stem(out, subject, f"desc-{kind}_{suffix(contrast)}"), image, affine, _told(origin))


def write_labels(out: Path, subject: str, tissues: np.ndarray, affine: np.ndarray, origin: dict[str, Any]) -> None:
    """Write the tissue of each voxel, an index into `NAMES`; all lesions have one number."""
    _write(_stem(out, subject, "dseg"), np.minimum(tissues, LESION), affine, _told(origin))


def write_posterior(
    out: Path, subject: str, images: Mapping[str, np.ndarray], affine: np.ndarray, origin: dict[str, Any], patients: int
) -> None:
    """Write means over patients, by contrast, in unit scale."""
    write_known(out, subject, POSTERIOR, images, affine, {**origin, "Patients": patients})


def write_drawn(
    out: Path, subject: str, drawn: Drawn, grid: Grid, origin: dict[str, Any], number: int, patients: int
) -> None:
    """Write the images, the labels and the noise-free images of a subject, each with a sidecar.

    Args:
        out: Folder of the dataset.
        subject: Such as sub-001.
        drawn: The subject.
        grid: Where its images lie.
        origin: Anatomy and seed, for the sidecars.
        number: The subject's number, which with the seed decides the gain.
        patients: That were drawn for the mean over them.
    """
    gain = float(np.random.default_rng([origin["Seed"], _GAIN, number]).uniform(300, 1500))
    affine = grid.affine
    values = zip(NAMES, *(column.tolist() for column in vars(drawn.values).values()), strict=True)
    tissues = {name: {"proton_density": pd, "t1_ms": t1, "t2_ms": t2} for name, pd, t1, t2, _ in values}
    for contrast, image in drawn.images.items():
        facts = {
            **origin,
            "NoiseSigma": gain * drawn.noise_sigma[contrast],
            "Gain": gain,
            "FatLeft": drawn.fat_left[contrast],
            "Coverage": drawn.coverage,
            "SliceAxis": "xyz"[drawn.geometry.slice_axis],
            "Sequence": {"kind": type(drawn.protocols[contrast]).__name__, **asdict(drawn.protocols[contrast])},  # type: ignore[call-overload]
            "Tissues": tissues,
        }
        sidecar = {
            **drawn.protocols[contrast].sidecar(),
            "MagneticFieldStrength": drawn.field_t,
            "SliceThickness": round(drawn.geometry.width_mm[drawn.geometry.slice_axis], 3),
            "Simulated": True,
            "Simulation": facts,
        }
        stem = out / subject / "anat" / f"{subject}_{suffix(contrast)}"
        _write(stem, np.round(gain * _turned(image)), affine, sidecar)
    write_labels(out, subject, _turned(drawn.tissues), affine, origin)
    for kind, images in zip(KINDS, (drawn.clean, drawn.typical), strict=True):
        turned = {contrast: gain * _turned(image) for contrast, image in images.items()}
        write_known(out, subject, kind, turned, affine, origin)
    turned = {contrast: _turned(image) for contrast, image in drawn.posterior.items()}
    write_posterior(out, subject, turned, affine, origin, patients)


def write_description(out: Path, parameters: dict[str, Any]) -> None:
    """Write the description of the derivatives and the table of labels, which is the same with either physics."""
    description = {
        "Name": "Tissues and noise-free images of simulated heads",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "unscanned", "Description": "simulate", "Parameters": parameters}],
    }
    rows = [f"{number}\t{name}" for number, name in enumerate([*NAMES[:LESION], "white-matter lesion"])]
    files.write_text(out / TRUTH / "dseg.tsv", "\n".join(["index\tname", *rows]) + "\n")
    files.write_json(out / TRUTH / "dataset_description.json", description)


def _stem(out: Path, subject: str, name: str) -> Path:
    return out / TRUTH / subject / "anat" / f"{subject}_{name}"


def _told(origin: dict[str, Any]) -> dict[str, Any]:
    return {"Simulated": True, "Simulation": origin}


def _turned(array: np.ndarray) -> np.ndarray:
    """Turn the axes of a drawn subject, to the right and to the front, into those of a `Grid`."""
    return np.ascontiguousarray(array[::-1, ::-1])


def _write(stem: Path, array: np.ndarray, affine: np.ndarray, sidecar: dict[str, Any]) -> None:
    files.write_json(stem.with_name(stem.name + ".json"), sidecar)
    write_volume(stem.with_name(stem.name + ".nii.gz"), array, affine, description="simulated by unscanned")
