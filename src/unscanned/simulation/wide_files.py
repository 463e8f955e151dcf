"""How a drawn subject is written: images with their sidecars, and under derivatives/ its tissues and noise-free images.

Nothing below derivatives/ is taken for a scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from unscanned import files
from unscanned.simulation.relaxation import LESION, NAMES
from unscanned.simulation.scanner import Grid
from unscanned.simulation.wide import Drawn
from unscanned.volumes.nifti import write_volume

__all__ = ["TRUTH", "suffix", "truth_names", "write_description", "write_drawn"]

TRUTH = Path("derivatives") / "truth"
_GAIN = 6


def suffix(contrast: str) -> str:
    """Return the BIDS suffix of a contrast's key."""
    return contrast if contrast == "FLAIR" else f"{contrast}w"


def truth_names(subject: str, clean: Sequence[str]) -> list[str]:
    """Return the names, without endings, of what stands below derivatives/ for a subject."""
    return [f"{subject}_dseg", *(f"{subject}_desc-noisefree_{suffix(contrast)}" for contrast in clean)]


def write_drawn(out: Path, subject: str, drawn: Drawn, grid: Grid, origin: dict[str, Any], number: int) -> None:
    """Write the images, the labels and the noise-free images of a subject, each with a sidecar.

    Args:
        out: Folder of the dataset.
        subject: Such as sub-001.
        drawn: The subject.
        grid: Where its images lie.
        origin: Anatomy and seed, for the sidecars.
        number: The subject's number, which with the seed decides the gain.
    """
    gain = float(np.random.default_rng([origin["Seed"], _GAIN, number]).uniform(300, 1500))

    def write(stem: Path, array: np.ndarray, sidecar: dict[str, Any]) -> None:
        files.write_json(stem.with_name(stem.name + ".json"), sidecar)
        # The grid's axes run to the left and to the back, those of a drawn subject to the right and to the front.
        turned = np.ascontiguousarray(array[::-1, ::-1])
        write_volume(stem.with_name(stem.name + ".nii.gz"), turned, grid.affine, description="simulated by unscanned")

    values = zip(NAMES, *(column.tolist() for column in vars(drawn.values).values()), strict=True)
    tissues = {name: {"proton_density": pd, "t1_ms": t1, "t2_ms": t2} for name, pd, t1, t2, _ in values}
    for contrast, image in drawn.images.items():
        facts = {
            **origin,
            "NoiseSigma": gain * drawn.noise_sigma[contrast],
            "Gain": gain,
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
        write(out / subject / "anat" / f"{subject}_{suffix(contrast)}", np.round(gain * image), sidecar)
    folder = out / TRUTH / subject / "anat"
    told = {"Simulated": True, "Simulation": origin}
    write(folder / f"{subject}_dseg", np.minimum(drawn.tissues, LESION), told)
    for contrast, image in drawn.clean.items():
        write(folder / f"{subject}_desc-noisefree_{suffix(contrast)}", gain * image, told)


def write_description(out: Path, parameters: dict[str, Any]) -> None:
    """Write the description of the derivatives, and the table of labels."""
    description = {
        "Name": "Tissues and noise-free images of simulated heads",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "unscanned", "Description": "simulate", "Parameters": parameters}],
    }
    names = [*NAMES[:LESION], "white-matter lesion"]
    rows = [f"{number}\t{name}" for number, name in enumerate(names)]
    files.write_text(out / TRUTH / "dseg.tsv", "\n".join(["index\tname", *rows]) + "\n")
    files.write_json(out / TRUTH / "dataset_description.json", description)
