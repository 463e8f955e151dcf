"""A small cohort of phantom heads with synthetic volumes of known quality, for the tests of evaluation and report."""

import nibabel as nib
import numpy as np

from unscanned.files import write_json
from unscanned.volumes.nifti import write_volume

SHAPE, SPACING_MM = (40, 48, 24), (2.0, 2.0, 3.5)
SCALE, MEAN, STD = 700.0, 0.2, 0.25


def head_phantom(seed):
    """Source and target in RAS+; a bright block marks the patient's left, another the front and a third the top."""
    random = np.random.default_rng(seed)
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, length) for length in SHAPE), indexing="ij")
    radius = (i / (0.8 + 0.05 * random.random())) ** 2 + (j / 0.85) ** 2 + (k / 0.85) ** 2
    source, target = np.zeros(SHAPE), np.zeros(SHAPE)
    for limit, dark, bright in ((1, 300, 250), (0.75, 500, 300), (0.4, 420, 450), (0.1, 480, 900)):
        source[radius < limit], target[radius < limit] = dark, bright
    for block in ((slice(6, 10), slice(22, 26), slice(11, 14)), (slice(18, 22), slice(38, 42), slice(11, 14))):
        target[block] = 1000
    texture = 25 * random.standard_normal(SHAPE) * (radius < 1)
    return (source + texture).astype(np.float32), (target + texture).astype(np.float32)


def write_oriented(path, array, orientation="RAS", shift_mm=0.0):
    """Write a RAS+ array with its axes in another order and direction; the head stays where it is in the world."""
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -np.multiply(SPACING_MM, SHAPE) / 2 + shift_mm
    transform = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(orientation)
    )
    image = nib.Nifti1Image(array, affine).as_reoriented(transform)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, np.asarray(image.dataobj, np.float32), image.affine)


def write_synthetic(folder, case, array, sidecar=True, percentile=None, **kwargs):
    """Write a RAS+ array in unit scale as an arm's synthetic volume, with the sidecar of a model."""
    stem = folder / case.replace("_", "/") / "anat" / f"{case}_desc-synthetic_T2w"
    write_oriented(stem.with_name(stem.name + ".nii.gz"), array * SCALE, **kwargs)
    if sidecar:
        intensity = {"scale": SCALE, "mean": MEAN, "std": STD}
        intensity |= {} if percentile is None else {"percentile": percentile}
        write_json(stem.with_name(stem.name + ".json"), {"Synthetic": True, "Intensity": intensity})


def write_cohort(root, subjects, arms, orientation="LPS"):
    """Write `root/raw` and `root/<arm>`: for each arm the target plus noise of that SD in unit scale."""
    for seed, subject in enumerate(subjects):
        source, target = head_phantom(seed)
        for contrast, array in (("PD", source), ("T2", target)):
            path = root / "raw" / f"sub-{subject}" / "anat" / f"sub-{subject}_{contrast}w.nii.gz"
            write_oriented(path, array, orientation)
        unit = target / np.percentile(target[target > 0], 99.9)
        for number, (arm, noise) in enumerate(arms.items()):
            error = noise * np.random.default_rng((seed, number)).standard_normal(SHAPE) * (target > 0)
            write_synthetic(root / arm, f"sub-{subject}", (unit + error).astype(np.float32))
    return root / "raw", {arm: root / arm for arm in arms}
