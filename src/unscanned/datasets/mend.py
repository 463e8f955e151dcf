"""A file that the reader refuses for a reason that its owner can decide: one volume of many, or voxels to replace."""

from __future__ import annotations

import os
from pathlib import Path

from unscanned.datasets.layout import sidecar_path
from unscanned.errors import SettingsError
from unscanned.files import write_json
from unscanned.machine.provenance import utc_now, version
from unscanned.outputs import claim, nothing
from unscanned.volumes.nifti import SYNTHETIC, Volume, read_volume, write_volume

__all__ = ["mend"]


def mend(
    scan: str | Path, out: str | Path, *, volume_index: int | None = None, replace_nonfinite: bool = False
) -> Volume:
    """Write one 3D volume of a scan as a clean float32 NIfTI, and a JSON file that says what was done.

    The scan itself is never changed; every other command stays strict.

    Args:
        scan: The file.
        out: New file, `.nii` or `.nii.gz`.
        volume_index: Which volume of a 4D file, counted from 0.
        replace_nonfinite: Put 0 in the place of NaN and infinity.

    Returns:
        What was written; its warnings count what was replaced.

    Raises:
        VolumeError: The scan is refused all the same, or the name of `out` does not say NIfTI.
        SettingsError: `out` is there already, or a JSON file of its name.
    """
    scan, out = Path(scan), Path(out)
    if os.path.lexists(out):
        raise SettingsError("the output is there already", where=out, do="Choose another name, or remove it.")
    claim(sidecar_path(out), nothing, "nothing")
    volume = read_volume(scan, volume_index=volume_index, replace_nonfinite=replace_nonfinite)
    mark = f"{SYNTHETIC}, " if volume.synthetic else ""
    write_volume(out, volume.array, volume.affine, description=f"{mark}from {scan.name} by unscanned {version()}")
    write_json(
        sidecar_path(out),
        {
            "Sources": [{"Name": scan.name, "Sha256": volume.sha256}],
            "VolumeIndex": volume_index,
            "ReplaceNonfinite": replace_nonfinite,
            "Warnings": list(volume.warnings),
            "GeneratedBy": [{"Name": "unscanned", "Version": version()}],
            "Made": utc_now(),
            **({"Synthetic": True} if volume.synthetic else {}),
        },
    )
    return volume
