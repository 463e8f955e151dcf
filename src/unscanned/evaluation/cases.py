"""The images of one case, brought together: on the target's grid in RAS+, in unit scale, with the target's head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from unscanned.datasets.layout import bids_case, bids_suffix, list_nifti, sidecar_path, stem
from unscanned.datasets.pairs import Pair
from unscanned.errors import DatasetError, VolumeError
from unscanned.evaluation.baselines import Regression, source_as_target
from unscanned.evaluation.tissues import Labels
from unscanned.files import read_json
from unscanned.formats.evaluation import Case, EvaluationRecord
from unscanned.formats.sidecar import Intensity
from unscanned.machine.crash import of_one
from unscanned.schema import read
from unscanned.volumes.grid import onto_grid
from unscanned.volumes.intensity import UNIT_PERCENTILE, head_mask, head_scale
from unscanned.volumes.nifti import GENERATED, Volume, read_volume

__all__ = [
    "ALLOWED",
    "BASELINES",
    "CEILINGS",
    "Images",
    "evaluated_images",
    "find_ceilings",
    "find_synthetic",
    "list_volumes",
    "load_images",
    "read_intensity",
    "training_pair",
]

BASELINES = ("source", "regression")
"Arms that are made here and need no synthetic volume."

CEILINGS = {"noise-free": "noisefree", "tissues": "tissues", "posterior": "posterior"}
"""Arms of a simulated target, by the name of their files: without its noise, which is about what a method could score
that knew everything else (the mean of a magnitude is a little above it where there is next to no signal); with the
literature's values of its tissues, for one that knew each voxel's tissues; and the mean over patients with these
tissues, which is the best guess of that one."""

ALLOWED = {
    "noise-free": "noise allows",
    "tissues": "the literature's tissue values allow",
    "posterior": "the mean over patients with these tissues allows",
}
"What these are the score of, in words."


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one case on the target's grid in RAS+, in unit scale (1 = a percentile inside the head).

    Attributes:
        target: Acquired target, (i, j, k) float32.
        source: Acquired source on the same grid; None when there is none.
        head: Head of the target, bool; the same for every arm.
        arms: What each arm made, baselines included, same shape.
        spacing_mm: Voxel size along (i, j, k).
        failures: Reason for each arm that has no image.
        warnings: What a reader should know.
        scales: Intensity of the file that is 1 in unit scale, for "target", the acquired "source" and each arm's file.
        affine: (4, 4), voxel of this grid to world, mm.
        tissues: Voxels of each tissue by the name of its region, same shape; empty where there are no labels.
    """

    target: np.ndarray
    source: np.ndarray | None
    head: np.ndarray
    arms: dict[str, np.ndarray]
    spacing_mm: tuple[float, float, float]
    failures: dict[str, str]
    warnings: list[str]
    scales: Mapping[str, float] = field(default_factory=dict)
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    tissues: dict[str, np.ndarray] = field(default_factory=dict)


def list_volumes(folder: str | Path) -> dict[str, list[Path]]:
    """Return the NIfTI files below a folder, at any depth, by file name, with the ending in small letters."""
    found: dict[str, list[Path]] = {}
    for path in list_nifti(folder):
        ending = path.name.removeprefix(stem(path)).lower()
        found.setdefault(stem(path) + ending, []).append(path)
    return found


def find_synthetic(volumes: Mapping[str, list[Path]], case: str, contrast: str) -> Path | None:
    """Return the synthetic volume of a case among the volumes of an arm; None when there is none.

    Names are looked for in this order: `<case>_desc-synthetic_<contrast>`, then `<case>_<contrast>`, the contrast as
    BIDS or the caller spells it, with or without the trailing w, `.nii.gz` or `.nii`, and the case as BIDS can hold it.

    Args:
        volumes: What `list_volumes` found in the arm's folder.
        case: Case, such as `sub-01_ses-1`.
        contrast: Contrast of the volumes.

    Raises:
        DatasetError: Several files fit equally well.
    """
    spellings = (bids_suffix(contrast), contrast)
    suffixes = dict.fromkeys(name for s in spellings for name in (s, s + "w", s.removesuffix("w")))
    cases = dict.fromkeys((case, bids_case(case)))
    for beginning in (name + kind for kind in ("_desc-synthetic_", "_") for name in cases):
        names = [beginning + suffix + ending for suffix in suffixes for ending in (".nii.gz", ".nii")]
        found = [path for name in names for path in volumes.get(name, ())]
        if len(found) > 1:
            raise DatasetError(
                "several synthetic volumes of one case", where=case, found=", ".join(map(str, found)), expected="one"
            )
        if found:
            return found[0]
    return None


def find_ceilings(dataset: str | Path, case: str, contrast: str) -> dict[str, Path]:
    """Return the files of the `CEILINGS` that `simulate` wrote beside a target, those that are there.

    Args:
        dataset: Folder of the dataset.
        case: Case, such as `sub-001`.
        contrast: Contrast of the target.
    """
    folder = Path(dataset, "derivatives", "truth", case, "anat")
    paths = {arm: folder / f"{case}_desc-{kind}_{bids_suffix(contrast)}.nii.gz" for arm, kind in CEILINGS.items()}
    return {arm: path for arm, path in paths.items() if path.exists()}


def read_intensity(path: Path) -> Intensity | None:
    """Return the intensity constants of a synthetic volume's sidecar; None when it has no sidecar or none in it.

    Raises:
        DatasetError: There is a sidecar, and it cannot be used.
    """
    sidecar = sidecar_path(path)
    try:
        content = read_json(sidecar)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DatasetError("the sidecar cannot be used", where=sidecar, found=error) from error
    if not isinstance(content, dict) or "Intensity" not in content:
        return None
    return read(Intensity, content["Intensity"], where=f"{sidecar}: Intensity", noun="key", error=DatasetError)


def load_images(
    pair: Pair,
    synthetic: Mapping[str, Path | None],
    *,
    regression: Regression | None = None,
    percentile: float = UNIT_PERCENTILE,
    resample: bool = False,
    ceilings: Mapping[str, Path] | None = None,
    labels: Labels | None = None,
) -> Images:
    """Read a case and bring everything to the target's grid and to unit scale.

    Args:
        pair: The acquired scans.
        synthetic: File of each arm; None when it is missing.
        regression: The voxelwise baseline; left out when unset.
        percentile: Percentile inside the head that becomes 1.
        resample: Whether an image on another grid than the target's is resampled to it, linearly.
        ceilings: What `find_ceilings` found; left out when unset.
        labels: Label maps of tissues; a case whose map cannot be used has a warning and no tissues.

    Raises:
        VolumeError: The target is refused.
        DatasetError: There is no target, or its head is empty.
    """
    if pair.target is None:
        raise DatasetError("there is no acquired target to compare with", where=pair.case)
    original = read_volume(pair.target)
    if original.synthetic:
        raise VolumeError(GENERATED, where=pair.target, do="Score against the acquired scan.")
    target = _ras(original)
    head = head_mask(target.array, target.affine)
    scales = {"target": head_scale(target.array, head, percentile)}
    scale = np.float32(scales["target"])
    unit = target.array / scale
    warnings = list(original.warnings)
    source, arms, failures = None, {}, {}

    def add(arm: str, make: Callable[..., np.ndarray], *given: Any) -> None:
        try:
            arms[arm] = make(*given)
        except Exception as error:
            failures[arm] = str(of_one(error, where=f"{pair.case}, {arm}"))

    try:
        array = _onto(target, read_volume(pair.source), resample)
        scales["source"] = head_scale(array, head, percentile)
        source = array / np.float32(scales["source"])
    except Exception as error:
        error = of_one(error, where=pair.source)
        failures = dict.fromkeys(BASELINES if regression else BASELINES[:1], str(error))
    else:
        add("source", source_as_target, source, unit, head)
        if regression:
            add("regression", regression, source, head)
    for arm, known in (ceilings or {}).items():
        add(arm, _read_ceiling, arm, known, target, scale, head, percentile, resample)
    for arm, path in synthetic.items():
        add(arm, _read_synthetic, arm, path, target, head, percentile, resample, warnings, scales)
    tissues: dict[str, np.ndarray] = {}
    try:
        tissues = labels.regions(pair.case, target) if labels else {}
    except Exception as error:
        warnings.append(f"no errors by tissue: {of_one(error, where=pair.case)}")
    i, j, k = np.linalg.norm(target.affine[:3, :3], axis=0).tolist()
    return Images(unit, source, head, arms, (i, j, k), failures, warnings, scales, target.affine, tissues)


def evaluated_images(case: Case, evaluation: EvaluationRecord) -> Images:
    """Return the images of a case as an evaluation scored them, without limits and tissues.

    Raises:
        VolumeError, DatasetError: As for `load_images`.
    """
    curve = case.regression or evaluation.regression
    return load_images(
        Pair(case.subject, case.session, Path(case.source), Path(case.target) if case.target else None),
        {arm: Path(path) if path else None for arm, path in case.synthetic.items()},
        regression=Regression.from_curve(curve) if curve else None,
        percentile=evaluation.percentile,
        resample=evaluation.resample,
    )


def training_pair(
    pair: Pair, *, percentile: float = UNIT_PERCENTILE, resample: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (source, target, head) of a training case in unit scale, for `fit_regression`.

    Raises:
        VolumeError: A scan is refused.
        DatasetError: The target is missing or lies on another grid.
    """
    images = load_images(pair, {}, percentile=percentile, resample=resample)
    if images.source is None:
        raise DatasetError(images.failures["source"], where=pair.case)
    return images.source, images.target, images.head


def _read_synthetic(
    arm: str,
    path: Path | None,
    target: Volume,
    head: np.ndarray,
    percentile: float,
    resample: bool,
    warnings: list[str],
    scales: dict[str, float],
) -> np.ndarray:
    if path is None:
        raise DatasetError("the synthetic volume is missing")
    intensity = read_intensity(path)
    array = _onto(target, read_volume(path), resample)
    if intensity is None:
        warnings.append(f"{path.name} has no intensity constants: its own percentile inside the head is its scale")
    scales[arm] = intensity.scale if intensity else head_scale(array, head, percentile)
    return array / np.float32(scales[arm])


def _read_ceiling(
    arm: str, path: Path, target: Volume, scale: np.float32, head: np.ndarray, percentile: float, resample: bool
) -> np.ndarray:
    array = _onto(target, read_volume(path), resample)
    # The noise-free image is in the target's units, the mean over patients in unit scale of the usual percentile; the
    # image of the literature's values knows no more of its scale than a network does.
    known = {"noise-free": scale} | ({"posterior": np.float32(1)} if percentile == UNIT_PERCENTILE else {})
    return array / (known.get(arm) or np.float32(head_scale(array, head, percentile)))


def _ras(volume: Volume) -> Volume:
    image = nib.as_closest_canonical(nib.Nifti1Image(volume.array, volume.affine))
    return Volume(np.ascontiguousarray(image.dataobj, np.float32), np.asarray(image.affine), volume.path)


def _onto(target: Volume, other: Volume, resample: bool) -> np.ndarray:
    try:
        return onto_grid(target, other, str(other.path), resample=resample)
    except DatasetError as error:
        raise error.but(
            what="different grid: the volume does not lie on the target's grid",
            do="If the two are aligned in world space, allow resampling; if not, register them first.",
        ) from error
