"""How far two acquired scans of one patient are apart: what no synthesis can be expected to beat by much.

Run: python studies/repeatability.py DATASET [--spacing-mm 1.5]

DATASET is a BIDS dataset. Of each patient with two sessions, the first contrast registers the second session to the
first (rigid, six parameters, by the correlation of the two heads), and every contrast of the second session is then
scored against that of the first, inside the first's head, in unit scale, as it is and after one gain for all voxels.
The difference holds noise, coil, slices, registration, interpolation, and what happened to the patient in between.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from unscanned.datasets.layout import bids_suffix, take_inventory
from unscanned.evaluation.metrics import METRICS
from unscanned.volumes.grid import frame
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import Volume, read_volume

CONTRASTS = ("T1", "T2", "FLAIR")


def sessions(root: Path) -> dict[str, dict[str | None, dict[str, Path]]]:
    """Return {subject: {session: {contrast: path}}}."""
    found: dict[str, dict[str | None, dict[str, Path]]] = {}
    for scan in take_inventory(root, "bids", source="T1", target="T2").scans:
        found.setdefault(scan.subject, {}).setdefault(scan.session, {})[scan.contrast.upper()] = scan.path
    return found


def isotropic(volume: Volume, like: Volume, spacing_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume in unit scale on the grid of `like` at a spacing, and the affine."""
    where = frame(like, spacing_mm=spacing_mm)
    scale = head_scale(volume.array, head_mask(volume.array, volume.affine))
    return where.forward(volume.array) / np.float32(scale), where.working_affine


def move(image: np.ndarray, affine: np.ndarray, to: np.ndarray, shape: tuple[int, ...], pose: np.ndarray) -> np.ndarray:
    """Return an image turned and shifted by a pose (degrees, mm) about the origin, on another grid, linearly."""
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = Rotation.from_euler("xyz", pose[:3], degrees=True).as_matrix(), pose[3:]
    matrix = np.linalg.inv(affine) @ world @ to
    return ndimage.affine_transform(image, matrix[:3, :3], matrix[:3, 3], shape, order=1)


def register(fixed: np.ndarray, affine: np.ndarray, moving: np.ndarray, its: np.ndarray) -> np.ndarray:
    """Return the pose that brings `moving` onto `fixed` best, from a start at their heads' centres."""
    centres = [
        matrix[:3, :3] @ np.argwhere(head_mask(image)).mean(0) + matrix[:3, 3]
        for image, matrix in ((fixed, affine), (moving, its))
    ]
    pose = np.concatenate([np.zeros(3), centres[1] - centres[0]])
    for step, blur in ((4, 2.0), (2, 1.0)):
        coarse = ndimage.gaussian_filter(fixed, blur)[::step, ::step, ::step]
        smooth = ndimage.gaussian_filter(moving, blur)
        to = affine @ np.diag([step, step, step, 1])
        inside = head_mask(fixed)[::step, ::step, ::step]

        def cost(pose: np.ndarray, to=to, smooth=smooth, coarse=coarse, inside=inside) -> float:
            moved = move(smooth, its, to, coarse.shape, pose)
            return -float(np.corrcoef(moved[inside], coarse[inside])[0, 1])

        pose = optimize.minimize(cost, pose, method="Powell", options={"xtol": 0.02, "ftol": 1e-5, "maxiter": 6}).x
    return pose


def main() -> None:
    """Register and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--spacing-mm", type=float, default=1.5)
    given = parser.parse_args()
    print("| patient | contrast | PSNR, dB | after one gain | SSIM | correlation |")
    print("| --- | --- | --- | --- | --- | --- |")
    for subject, its in sessions(given.dataset).items():
        if len(its) < 2:
            continue
        first, second = list(its.values())[:2]
        volumes = [{c: read_volume(scans[c]) for c in CONTRASTS} for scans in (first, second)]
        images = [{c: isotropic(v, vs["T1"], given.spacing_mm) for c, v in vs.items()} for vs in volumes]
        pose = register(*images[0]["T1"], *images[1]["T1"])
        for contrast in CONTRASTS:
            (target, affine), (other, its_affine) = (each[contrast] for each in images)
            moved = move(other, its_affine, affine, target.shape, pose)
            head = head_mask(target) & (move(np.ones_like(other), its_affine, affine, target.shape, pose) > 0.99)
            gain = float(moved[head] @ target[head] / (moved[head] @ moved[head]))
            score = [METRICS[name](target, moved, head) for name in ("psnr", "ssim")]
            after = METRICS["psnr"](target, gain * moved, head)
            related = np.corrcoef(moved[head], target[head])[0, 1]
            row = [f"{score[0]:.2f}", f"{after:.2f}", f"{score[1]:.3f}", f"{related:.3f}"]
            print(f"| {' | '.join([subject, bids_suffix(contrast), *row])} |")
        print(f"pose of {subject}: {np.round(pose, 2).tolist()} (degrees, mm)")


if __name__ == "__main__":
    main()
