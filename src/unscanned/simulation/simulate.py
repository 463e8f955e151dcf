"""Simulated datasets: aligned scans of heads, written as BIDS.

The heads are label maps, or the package's own. A subject is an anatomy with a deformation, tissues, sequences, a
receive field and noise drawn for it; several subjects may share an anatomy. With narrow physics all come from one kind
of scanner; with wide physics from the spread of real ones. Labels of the tissues lie beside the images.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from unscanned import files
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import DatasetError, SettingsError
from unscanned.outputs import begins_with, claim, json_with
from unscanned.progress import Progress
from unscanned.settings import Spread, read_spread
from unscanned.simulation import truth
from unscanned.simulation.anatomy import Anatomy, find_label_maps, map_name, read_label_map, read_tissues
from unscanned.simulation.heads import draw_built_in, read_head
from unscanned.simulation.phantom import draw_head
from unscanned.simulation.scanner import CONTRASTS, Grid, Scan, scan
from unscanned.simulation.sequences import CONTRASTS as WIDE_CONTRASTS
from unscanned.simulation.stream import contrast_name
from unscanned.simulation.wide import draw_subject
from unscanned.volumes.nifti import LIMIT_BYTES, read_volume, write_volume

__all__ = ["simulate"]

_IXI_GRID = Grid((256, 256, 130), (0.9375, 0.9375, 1.25))
_BUILT_IN_GRID = Grid((96, 112, 96), (2.0, 2.0, 2.0))
_ANATOMY = 0

_README = """Simulated MR scans of heads, made by unscanned. No person was scanned for them.

Each subject is an anatomy ({source}) that was bent smoothly and given tissue parameters, sequence timings, a receive
field and Rician noise of its own. The images follow the spin-echo signal equation; PDw and T2w are the two echoes of
one sequence. What was drawn for a subject stands under "Simulation" in the JSON file beside each image.
derivatives/truth holds the tissue of each voxel (numbers in dseg.tsv) and, where asked for, the images without noise.

Subjects with the same anatomy in participants.tsv are not independent: keep them on one side of a split.
"""

_README_WIDE = """Simulated MR scans of heads, made by unscanned. No person was scanned for them.

Each subject is an anatomy ({source}) that was bent smoothly and drawn from the spread of real scanners: field
strength, tissue values, lesions, sequences, slices, receive field, noise, and what of the head is covered. What was
drawn for a subject stands under "Simulation" in the JSON file beside each image. derivatives/truth holds the tissue of
each voxel (numbers in dseg.tsv) and, where asked for, the images without noise.

Subjects with the same anatomy in participants.tsv are not independent: keep them on one side of a split.
"""

Physics = Literal["narrow", "wide"]


@draws_progress
def simulate(
    out: str | Path,
    *,
    labels: str | Path | None = None,
    subjects: int = 8,
    per_anatomy: int = 1,
    contrasts: Sequence[str] = ("PD", "T2"),
    seed: int = 0,
    shape: tuple[int, int, int] | None = None,
    spacing_mm: float | tuple[float, float, float] | None = None,
    noise: tuple[float, float] = (0.008, 0.016),
    shading: tuple[float, float] = (0.03, 0.10),
    deformation_mm: float = 2.0,
    physics: Physics = "narrow",
    target: str | None = None,
    spread: Spread | Mapping[str, Any] | None = None,
    clean: bool = False,
    patients: int = 0,
    progress: Progress | None = AUTOMATIC,
) -> Path:
    """Write simulated subjects as a BIDS raw dataset, with the tissue of each voxel below derivatives/truth.

    A subject's files depend on the arguments and its own number only: fewer or more subjects leave them the same, and
    the same call writes the same bytes.

    Args:
        out: Folder of the dataset; made when missing.
        labels: Folder of whole-head label maps, or None for built-in heads.
        subjects: Number of subjects, sub-001 and on.
        per_anatomy: Consecutive subjects that share an anatomy, each with a deformation, tissues and scanner of its
            own. The column `anatomy` of participants.tsv says which, so that a split can keep anatomies apart.
        contrasts: Any of PD, T2 and T1, and FLAIR with wide physics. PD and T2 are two echoes of one sequence.
        seed: Seed of everything, 0 or more.
        shape: Voxels along i, j, k. By default 256 x 256 x 130 for label maps, as in IXI, and 96 x 112 x 96 for
            built-in heads; with `spacing_mm` alone, what covers the default field of view.
        spacing_mm: Voxel size, mm. By default 0.9375 x 0.9375 x 1.25 mm and 2 mm; with `shape` alone, what covers the
            default field of view.
        noise: Range of the standard deviation of the noise, relative to white matter in the first echo; narrow only.
        shading: Range of the standard deviation of the logarithm of the receive field; narrow only.
        deformation_mm: Standard deviation of the smooth displacement along each axis, mm; narrow only.
        physics: One kind of scanner ("narrow"), or the spread of real ones ("wide"), with white-matter lesions.
        target: With wide physics, the contrast whose sequence is the same in all subjects, as echo times differ
            between scanners and no source tells them; the last of `contrasts` by default.
        spread: With wide physics, what scanners are drawn from: any keys of `unscanned.settings.Spread`, such as
            {"brain": 1.0} for extracted brains alone; the default is that of docs/simulation.md.
        clean: Write two more images of each contrast, below derivatives/truth: without noise, and with the
            literature's values of the subject's tissues. `evaluate` scores them as limits.
        patients: With `clean`, write the mean over so many other patients with the same tissues in each voxel too, on
            the same scanner, each in unit scale (the 99.9th percentile inside the head is 1). It is the best guess of
            who knows the tissues and not the patient; its squared error is expected to be up
            to 1 + 1/n times that of a mean over all. Each takes about a second.
        progress: Called with (subjects done, subjects, label). Without it a bar, in a terminal and in Jupyter; None
            draws none.

    Returns:
        The dataset's folder.

    Raises:
        SettingsError: An argument is out of range, there are too few anatomies for the subjects, or `out` holds what is
            no simulation with the same settings.
        DatasetError: The label maps cannot be used, or `out` holds files of another dataset.
        VolumeError: A label map cannot be read.
        BusyError: Another process writes into `out`.

    Example:
        >>> simulate("heads", subjects=2)
        PosixPath('heads')

    Reference:
        R. K.-S. Kwan, A. C. Evans and G. B. Pike, MRI simulation-based evaluation of image-processing and
        classification methods, IEEE TMI 18(11), 1999.
    """
    out = Path(out)
    ranges = {"noise": noise, "shading": shading}
    wide = _check_physics(physics, target, spread, {**ranges, "deformation_mm": deformation_mm})
    contrasts = _check_arguments(
        contrasts, subjects, per_anatomy, seed, patients, deformation_mm, ranges, wide=wide is not None
    )
    if patients and not clean:
        raise SettingsError("needs the noise-free images", where="patients", found=patients, do="Set clean too.")
    grid = _grid(_IXI_GRID if labels else _BUILT_IN_GRID, shape, spacing_mm)
    maps = _choose_maps(labels, subjects, per_anatomy) if labels else None
    settings: dict[str, Any] = {"seed": seed, "per_anatomy": per_anatomy}
    if wide is None:
        settings |= {"deformation_mm": deformation_mm, **ranges}
    else:
        fixed = contrast_name(target or contrasts[-1])
        if fixed not in contrasts:
            raise SettingsError(
                "the target is not among the contrasts", where="target", found=target, expected=", ".join(contrasts)
            )
        settings |= {"physics": physics, "target": fixed, "contrasts": list(contrasts), "spread": wide.model_dump()}
    without_noise = contrasts if clean else ()
    with files.lock(out):
        files.remove_partials(out)
        _check_folder(out, subjects, contrasts, without_noise, patients)
        anatomies = [_anatomy_name(maps, index // per_anatomy) for index in range(subjects)]
        _claim(out, grid, settings, anatomies)
        for group_index, group in itertools.groupby(range(subjects), lambda index: index // per_anatomy):
            rng = np.random.default_rng([seed, _ANATOMY, group_index])
            name = _anatomy_name(maps, group_index)
            origin = {"Anatomy": name, "Seed": seed}
            anatomy: Anatomy
            if wide is not None:
                head = read_head(maps[group_index], rng) if maps else draw_built_in(name, rng)
            else:
                anatomy = read_label_map(maps[group_index], rng) if maps else draw_head(rng)
            for index in group:
                if progress:
                    progress(index, subjects, _subject(index))
                if wide is not None:
                    drawn = draw_subject(
                        head,
                        grid.shape,
                        grid.spacing_mm,
                        contrasts,
                        target=fixed,
                        seed=seed,
                        subject=index,
                        spread=wide,
                        clean=without_noise,
                        patients=patients,
                    )
                    truth.write_drawn(out, _subject(index), drawn, grid, origin, index, patients)
                else:
                    result = scan(
                        anatomy,
                        grid,
                        contrasts,
                        seed=seed,
                        subject=index,
                        deformation_mm=deformation_mm,
                        clean=clean,
                        patients=patients,
                        **ranges,
                    )
                    _write_subject(out, _subject(index), result, grid, origin, patients)
        source = f"a label map of {Path(labels).name}" if labels else "drawn by the package"
        truth.write_description(out, settings)
        _write_description(out, anatomies, source, settings, wide=wide is not None)
    if progress:
        progress(subjects, subjects, "done")
    return out


def _check_physics(
    physics: str, target: str | None, spread: Spread | Mapping[str, Any] | None, narrow: dict[str, Any]
) -> Spread | None:
    """Return what wide physics draws from, None for narrow; refuse what belongs to the other one."""
    if physics not in get_args(Physics):
        raise SettingsError(
            "no such physics", where="physics", found=physics, expected=f"one of {', '.join(get_args(Physics))}"
        )
    if physics == "wide":
        defaults = signature(simulate).parameters
        for name, value in narrow.items():
            if value != defaults[name].default:
                raise SettingsError(
                    "belongs to narrow physics",
                    where=name,
                    found=value,
                    expected="the default, with physics = wide",
                    do=f"Set spread.{'receive' if name == 'shading' else name} instead.",
                )
        return read_spread(spread)
    for name, given in (("target", target), ("spread", spread)):
        if given is not None:
            raise SettingsError("belongs to wide physics", where=name, found=given, do='Set physics to "wide".')
    return None


def _check_arguments(
    contrasts: Sequence[str],
    subjects: int,
    per_anatomy: int,
    seed: int,
    patients: int,
    deformation_mm: float,
    ranges: dict[str, tuple[float, float]],
    *,
    wide: bool,
) -> tuple[str, ...]:
    known = WIDE_CONTRASTS if wide else CONTRASTS
    names = tuple(dict.fromkeys(contrast_name(name, known) for name in contrasts))
    if not names:
        raise SettingsError("no contrast", where="contrasts", expected=f"some of {', '.join(known)}")
    for name, value, least, most in (
        ("subjects", subjects, 1, 100_000),
        ("per_anatomy", per_anatomy, 1, 100_000),
        ("seed", seed, 0, 2**63),
        ("deformation_mm", deformation_mm, 0, 100),
        ("patients", patients, 0, 10_000),
    ):
        if not least <= value <= most:
            raise SettingsError("out of range", where=name, found=value, expected=f"{least} to {most:,}")
    for name, (low, high) in ranges.items():
        if not 0 <= low <= high < 1:
            raise SettingsError("not a range", where=name, found=f"{low} to {high}", expected="0 <= low <= high < 1")
    return names


def _grid(default: Grid, shape: tuple[int, int, int] | None, spacing_mm: float | Sequence[float] | None) -> Grid:
    """Fill in what is left open so that the default field of view is covered."""
    if shape is not None and min(shape) < 1:
        raise SettingsError("no voxels", where="shape", found=shape, expected="1 or more along each axis")
    if shape is None and spacing_mm is None:
        return default
    edges_mm = default.extent_mm / (shape or 1) if spacing_mm is None else np.broadcast_to(spacing_mm, 3)
    i_mm, j_mm, k_mm = np.asarray(edges_mm, float).tolist()
    if not all(0 < edge_mm < math.inf for edge_mm in (i_mm, j_mm, k_mm)):
        raise SettingsError("must be positive", where="spacing_mm", found=spacing_mm)
    with np.errstate(over="ignore"):
        sizes = shape or np.maximum(1, np.round(default.extent_mm / (i_mm, j_mm, k_mm))).tolist()
    if math.prod(sizes) * 4 > LIMIT_BYTES:
        raise SettingsError(
            "the scans would have more voxels than the budget for one volume",
            where="shape or spacing_mm",
            found=" x ".join(f"{size:g}" for size in sizes),
            expected=f"at most {LIMIT_BYTES // 4:,} in all",
        )
    i, j, k = map(int, sizes)
    return Grid((i, j, k), (i_mm, j_mm, k_mm))


def _choose_maps(folder: str | Path, subjects: int, per_anatomy: int) -> list[Path]:
    """Return the label maps that the subjects need; each is read here, before anything is written."""
    maps, needed = find_label_maps(folder), -(-subjects // per_anatomy)
    if needed > len(maps):
        raise SettingsError(
            "too few anatomies",
            where=folder,
            found=f"{len(maps)} label maps for {subjects} subjects at {per_anatomy} an anatomy",
            do=f"Ask for {len(maps) * per_anatomy} subjects, or for per_anatomy = {-(-subjects // len(maps))}.",
        )
    for path in maps[:needed]:
        read_tissues(path)
    return maps[:needed]


def _check_folder(out: Path, subjects: int, contrasts: Sequence[str], clean: Sequence[str], patients: int) -> None:
    """Refuse to mix datasets: what an earlier simulation left must be what this one writes over."""
    wanted = {_subject(index) for index in range(subjects)}
    images = {f"{subject}_{truth.suffix(contrast)}" for subject in wanted for contrast in contrasts}
    truths = {name for subject in wanted for name in truth.names(subject, clean, patients)}
    others = []
    for root, names in ((out, images), (out / truth.TRUTH, truths)):
        others += [path.name for path in sorted(root.glob("sub-*")) if path.name not in wanted]
        others += [path.name for path in sorted(root.glob("sub-*/anat/*")) if path.name.split(".")[0] not in names]
    if others:
        raise DatasetError(
            "the folder holds files that this simulation would not write",
            where=out,
            found=", ".join(others[:5]) + (", ..." if len(others) > 5 else ""),
            do="Choose another folder, or remove them.",
        )


def _claim(out: Path, grid: Grid, settings: dict[str, Any], anatomies: Sequence[str]) -> None:
    """Refuse to replace what is no simulation with these settings of these anatomies, one a subject."""
    same = "a simulation with the same seed, grid, settings and label maps, or nothing"
    do = "Choose another folder, or remove them."
    parameters = json.loads(json.dumps(settings))

    def is_description(path: Path) -> bool:
        (tool,) = files.read_json(path)["GeneratedBy"]
        written = tool["Parameters"]
        if "spread" in written:  # an earlier release may have had fewer fields
            written["spread"] = {**Spread().model_dump(mode="json"), **written["spread"]}
        return bool(tool["Description"] == "simulate" and written == parameters)

    def is_image(path: Path) -> bool:
        facts = files.read_json(path.with_name(path.name.split(".")[0] + ".json"))
        known = facts["Simulation"]
        if not (facts["Simulated"] and known["Seed"] == settings["seed"]):
            return False
        if known["Anatomy"] != anatomies[_index(path)]:
            return False
        if path.suffix == ".json":
            return True
        image = read_volume(path, allow_constant=True)
        return image.shape == grid.shape and np.allclose(image.affine, grid.affine, atol=1e-3)

    claim(out / "dataset_description.json", is_description, same, do=do)
    claim(out / truth.TRUTH / "dataset_description.json", is_description, same, do=do)
    claim(out / truth.TRUTH / "dseg.tsv", begins_with("index\tname\n"), same, do=do)
    claim(out / "README", begins_with(_README[:40]), same, do=do)
    claim(out / "participants.tsv", begins_with("participant_id\tanatomy\n"), same, do=do)
    claim(out / "participants.json", json_with("anatomy"), same, do=do)
    for root in (out, out / truth.TRUTH):
        for path in sorted(root.glob("sub-*/anat/*")):
            claim(path, is_image, same, do=do)


def _subject(index: int) -> str:
    return f"sub-{index + 1:03d}"


def _index(path: Path) -> int:
    """Return the index of the subject whose file it is."""
    return int(path.name.removeprefix("sub-").split("_")[0]) - 1


def _anatomy_name(maps: list[Path] | None, index: int) -> str:
    return map_name(maps[index]) if maps else f"built-in-{index + 1:03d}"


def _write_subject(out: Path, subject: str, result: Scan, grid: Grid, origin: dict[str, Any], patients: int) -> None:
    for contrast, image in result.images.items():
        stem = out / subject / "anat" / f"{subject}_{contrast}w"
        timing = result.sequences[contrast]
        sidecar = {
            "EchoTime": timing.te_ms / 1000,
            "RepetitionTime": timing.tr_ms / 1000,
            "FlipAngle": 90,
            "MagneticFieldStrength": 1.5,
            "ScanningSequence": "SE",
            "MRAcquisitionType": "2D",
            "Simulated": True,
            "Simulation": {
                **origin,
                "NoiseSigma": result.noise_sigma,
                "Gain": result.gain,
                "Shading": result.shading,
                "Tissues": {name: asdict(tissue) for name, tissue in result.tissues.items()},
            },
        }
        files.write_json(stem.with_name(stem.name + ".json"), sidecar)
        write_volume(stem.with_name(stem.name + ".nii.gz"), image, grid.affine, description="simulated by unscanned")
    truth.write_labels(out, subject, result.labels, grid.affine, origin)
    truth.write_posterior(out, subject, result.posterior, grid.affine, origin, patients)
    for kind, images in zip(truth.KINDS, (result.clean, result.typical), strict=True):
        truth.write_known(out, subject, kind, images, grid.affine, origin)


def _write_description(out: Path, anatomies: list[str], source: str, settings: dict[str, Any], *, wide: bool) -> None:
    description = {
        "Name": "Simulated scans of heads" if wide else "Simulated PD, T2 and T1 scans of heads",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "Authors": ["unscanned"],
        "GeneratedBy": [{"Name": "unscanned", "Description": "simulate", "Parameters": settings}],
    }
    columns = {"anatomy": {"Description": "The head that the subject was made of; split by it, not by subject"}}
    rows = [f"{_subject(index)}\t{anatomy}" for index, anatomy in enumerate(anatomies)]
    files.write_text(out / "README", (_README_WIDE if wide else _README).format(source=source))
    files.write_text(out / "participants.tsv", "\n".join(["participant_id\tanatomy", *rows]) + "\n")
    files.write_json(out / "participants.json", columns)
    files.write_json(out / "dataset_description.json", description)
