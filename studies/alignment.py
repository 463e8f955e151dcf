"""How well `check` tells where the target of a pair lies, and pairs from scans of two persons.

Prints the tables of docs/check.md: `python studies/alignment.py DATASET... --source T1w --target T2w`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from unscanned.datasets.alignment import Alignment, measure_alignment
from unscanned.datasets.pairs import find_pairs
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import Volume, read_volume
from unscanned.volumes.orientation import orientation

DEGREES = 8.0
REACH_MM = 8.0


def main() -> None:
    """Measure every pair as it is, moved by known amounts, mirrored, and with the target of each other person."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--source", default="PD")
    parser.add_argument("--target", default="T2")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pairs = [pair for root in given.datasets for pair in find_pairs(root, source=given.source, target=given.target)]
    scans = [(pair.subject, read_volume(pair.source), read_volume(str(pair.target))) for pair in pairs]
    random = np.random.default_rng(given.seed)
    print(f"{given.source} -> {given.target}: {len(scans)} pairs")
    own = [measured(source, target) for _, source, target in scans]
    off = [np.abs(each.offset_mm) for each in own]
    tell("as they are", own, f"offset at most {worst(off, scans)}")
    shifts = random.uniform(-REACH_MM, REACH_MM, (len(scans), 3))
    shifted = [measured(source, moved(target, by)) for (_, source, target), by in zip(scans, shifts, strict=True)]
    errors = [
        np.abs(np.subtract(each.offset_mm, before.offset_mm) - by)
        for each, before, by in zip(shifted, own, shifts, strict=True)
    ]
    tell("shifted", shifted, f"error at most {worst(errors, scans)}")
    axes = random.standard_normal((len(scans), 3))
    turned = [
        measured(source, rotated(target, DEGREES * axis / np.linalg.norm(axis)))
        for (_, source, target), axis in zip(scans, axes, strict=True)
    ]
    angles = [float(np.linalg.norm(each.rotation_deg)) for each in turned]
    tell(f"turned by {DEGREES:g} degrees", turned, f"{min(angles):.1f} to {max(angles):.1f} degrees found")
    mirrored = [measured(source, flipped(target)) for _, source, target in scans]
    named = sum(each.mirrored == ("left-right",) for each in mirrored)
    tell("mirrored", mirrored, f"{named} named left-right")
    others = [
        measured(source, onto(source, target))
        for one, source, _ in scans
        for another, _, target in scans
        if one != another
    ]
    tell("of another person", others, f"{sum(each.is_pair for each in others)} taken for a pair")


def measured(source: Volume, target: Volume) -> Alignment:
    """Return the alignment of two scans that can be judged."""
    found = measure_alignment(source, target)
    assert found is not None
    return found


def tell(what: str, found: Sequence[Alignment], more: str) -> None:
    """Print a row of the table."""
    sharp, agree = ([getattr(each, name) for each in found] for name in ("sharpness", "agreement"))
    ranges = f"{min(sharp):.1f} to {max(sharp):.1f} | {min(agree):.2f} to {max(agree):.2f}"
    print(f"| {what} | {len(found)} | {ranges} | {more} |", flush=True)


def worst(lengths_mm: Sequence[np.ndarray], scans: Sequence[tuple[str, Volume, Volume]]) -> str:
    """Return the largest length along an axis, in mm and in voxels of the source."""
    voxels = [
        length / np.array(source.spacing_mm)[np.argsort(orientation(source.affine)[:, 0])]
        for length, (_, source, _) in zip(lengths_mm, scans, strict=True)
    ]
    return f"{np.max(lengths_mm):.2f} mm, {np.max(voxels):.2f} voxels"


def moved(volume: Volume, by_mm: np.ndarray) -> Volume:
    """Return a scan whose head lies that far to the right, front and up, along the grid's axes."""
    axes = orientation(volume.affine)
    by = by_mm[axes[:, 0].astype(int)] * axes[:, 1] / volume.spacing_mm
    return replace(volume, array=ndimage.shift(volume.array, by, order=3).astype(np.float32))


def rotated(volume: Volume, degrees: np.ndarray) -> Volume:
    """Return a scan whose head is turned about the middle of the field of view."""
    spacing = np.array(volume.spacing_mm)
    matrix = Rotation.from_rotvec(np.radians(degrees)).as_matrix() * spacing / spacing[:, None]
    middle = (np.array(volume.shape) - 1) / 2
    array = ndimage.affine_transform(volume.array, matrix, middle - matrix @ middle, order=1)
    return replace(volume, array=array)


def flipped(volume: Volume) -> Volume:
    """Return a scan mirrored left-right."""
    axis = int(np.argmin(orientation(volume.affine)[:, 0]))
    return replace(volume, array=np.flip(volume.array, axis).copy())


def onto(source: Volume, target: Volume) -> Volume:
    """Return a target moved in space so that the middles of both heads coincide."""
    middles = []
    for volume in (source, target):
        place = np.argwhere(head_mask(volume.array, volume.affine)).mean(0)
        middles.append((volume.affine @ [*place, 1])[:3])
    affine = target.affine.copy()
    affine[:3, 3] += middles[0] - middles[1]
    return replace(target, affine=affine)


if __name__ == "__main__":
    main()
