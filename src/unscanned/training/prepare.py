"""Pairs of scans, brought to the model's grid and unit scale and cached on disk.

Prepared volumes are read through memory maps, so that training memory does not grow with the number of subjects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from os.path import abspath, realpath
from pathlib import Path
from typing import Any

import numpy as np

from unscanned.cluster.cases import in_order, map_cases
from unscanned.cluster.summary import Row, Summary
from unscanned.cluster.workers import Cluster
from unscanned.contrast.appearance import measure_appearance
from unscanned.datasets.aligned import align
from unscanned.datasets.pairs import Pair, with_absolute_paths
from unscanned.display import warn
from unscanned.errors import DatasetError, ResourceError, SettingsError, UnscannedError, VolumeError, in_words
from unscanned.files import atomic_path, lock, read_sealed, sha256, short_digest, write_sealed
from unscanned.formats.case import CaseRecord, ScanFile
from unscanned.machine.crash import of_one
from unscanned.outputs import claim, nothing
from unscanned.progress import Progress, begin
from unscanned.settings import Prepare
from unscanned.training.maps import MappedVolumes
from unscanned.volumes.grid import Frame, frame
from unscanned.volumes.intensity import UNIT_PERCENTILE, Contrast, Normalization
from unscanned.volumes.nifti import GENERATED, Volume, read_volume

__all__ = ["Case", "normalization", "prepare", "prepare_pair", "refuse_other_cases"]

_DEFAULTS = Prepare()
_VOLUMES = ("source", "target", "head")
_FILES = ("case.json", *(f"{name}.npy" for name in _VOLUMES))
_FIRST = ("shape", "spacing_mm", "resample", "percentile")
"Settings that the key of a cache has always named."

_CONTENT = 4
"What a cache holds; raised when that grows, so that an older cache is made again."

TOLERATED = 0.02
"Share of a head that the model's grid may leave out without a warning: skin, and noise that looks like head."


@dataclass(frozen=True)
class Case:
    """A prepared pair on disk, in unit scale on the model's grid, read through memory maps.

    Attributes:
        name: Case, such as `sub-01_ses-1`.
        subject: Subject, which decides the split.
        folder: Holds source.npy, target.npy, head.npy and case.json.
    """

    name: str
    subject: str
    folder: Path

    @property
    def source(self) -> np.ndarray:
        """(i, j, k) float32 or float16 (`prepare.precision`), unit scale."""
        return self._volumes["source"]

    @property
    def target(self) -> np.ndarray:
        """(i, j, k) float32 or float16 (`prepare.precision`), unit scale."""
        return self._volumes["target"]

    @property
    def head(self) -> np.ndarray:
        """(i, j, k) bool: inside the head of the source."""
        return self._volumes["head"]

    @cached_property
    def _volumes(self) -> MappedVolumes:
        return MappedVolumes({name: self.folder / f"{name}.npy" for name in _VOLUMES})

    @cached_property
    def facts(self) -> CaseRecord:
        """What `case.json` says: files, hashes, frame and scales."""
        return CaseRecord.load(read_sealed(self.folder / "case.json"), where=self.folder, error=DatasetError)

    @property
    def scans(self) -> dict[str, Any]:
        """The case with the name and hash of both scans, as a model names what it was trained on."""
        return self.facts.model_dump(include={"case", "source", "target"})

    def __getstate__(self) -> dict[str, Any]:
        # Loader workers map the files anew instead of being sent their content.
        return {"name": self.name, "subject": self.subject, "folder": self.folder}


def prepare_pair(pair: Pair, folder: str | Path, settings: Prepare = _DEFAULTS) -> Case:
    """Bring one pair to the model's grid and unit scale, and cache it in `folder/<case>`.

    A cache made from the same files with the same settings is returned as it is.

    Args:
        pair: Source and target scan.
        folder: The cache.
        settings: The model's grid and intensity scale.

    Raises:
        VolumeError: A scan is refused, or is not there.
        DatasetError: The target is missing, or source and target lie on different grids.
        SettingsError: The model's grid has more voxels than the budget for one volume.
        ResourceError: The disk is full.
    """
    if pair.target is None:
        raise DatasetError("the target is missing", where=pair.case, do="Run unscanned check to see all such cases.")
    case = Case(pair.case, pair.subject, Path(folder) / pair.case)
    key = _key(pair, settings)
    if _is_cached(case, key):
        return case
    case = Case(pair.case, pair.subject, case.folder)  # without what it knew of an older cache
    source, target = read_volume(pair.source), read_volume(pair.target)
    for volume in (source, target):
        if volume.synthetic:
            raise VolumeError(GENERATED, where=volume.path, do="Remove it, or put the acquired scan in its place.")
    aligned = align(pair, source, target, resample=settings.resample, percentile=settings.percentile)
    head = aligned.head
    where = frame(source, shape=settings.shape, spacing_mm=settings.spacing_mm, head=head, averages=settings.averages)
    precision = np.dtype(settings.precision)
    arrays: dict[str, np.ndarray] = {
        "source": (where.forward(aligned.source) / np.float32(aligned.source_scale)).astype(precision, copy=False),
        "target": (where.forward(aligned.target) / np.float32(aligned.target_scale)).astype(precision, copy=False),
        "head": where.forward(head.astype(np.float32)) > 0.5,
    }
    # The key goes first and comes back last: whoever is killed in between leaves no cache that looks whole.
    with contextlib.suppress(OSError):
        (case.folder / "case.json").unlink()
    for name, array in arrays.items():
        _save(case.folder / f"{name}.npy", array)
    record = CaseRecord(
        case=pair.case,
        subject=pair.subject,
        session=pair.session,
        source=ScanFile(name=pair.source.name, sha256=str(source.sha256)),
        target=ScanFile(name=pair.target.name, sha256=str(target.sha256)),
        source_scale=aligned.source_scale,
        target_scale=aligned.target_scale,
        appearance=measure_appearance(source.array, source.affine),
        target_appearance=measure_appearance(target.array, target.affine),
        settings=_known(settings),
        frame=where.to_json(),
        head_left_out=_left_out(head, source, where, arrays["head"]),
        warnings=[*source.warnings, *target.warnings],
        bytes={name: (case.folder / f"{name}.npy").stat().st_size for name in arrays},
        key=key,
    )
    write_sealed(case.folder / "case.json", record.to_json())
    return case


def prepare(
    pairs: Sequence[Pair],
    folder: str | Path,
    settings: Prepare = _DEFAULTS,
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> tuple[list[Case], dict[str, UnscannedError]]:
    """Prepare all pairs; one bad pair does not stop the others.

    Args:
        pairs: Pairs of a dataset.
        folder: The cache.
        settings: As for `prepare_pair`.
        cluster: Where to work; None works in this process. On a cluster, `folder` gets summary.csv too.
        progress: Called with (done, total, case).

    Raises:
        SettingsError: As for `prepare_pair` and `refuse_other_cases`.
        ResourceError: The disk is full, or as for `map_cases`.

    Warns:
        UserWarning: The model's grid leaves out more than a fiftieth of a head.

    Returns:
        The prepared cases in the order of `pairs`, and the error of each case that was refused.
    """
    refuse_other_cases(pairs, folder, settings)
    names = [pair.case for pair in pairs]
    cases, failures = [], {}
    with contextlib.nullcontext() if cluster is None else _summary(pairs, folder) as summary:
        sent = pairs if cluster is None else [with_absolute_paths(pair) for pair in pairs]
        preparing = partial(_prepare_one, folder=folder if cluster is None else abspath(folder), settings=settings)
        outcomes = in_order(
            map_cases(preparing, sent, names=names, cluster=cluster, folder=abspath(folder), progress=progress)
        )
        for pair, outcome in zip(pairs, outcomes, strict=True):
            if summary is not None:
                summary.take(pair.case, outcome, "written")
            try:
                outcome.get()
                cases.append(Case(pair.case, pair.subject, Path(folder) / pair.case))
            except (ResourceError, SettingsError):
                raise
            except Exception as error:
                failures[pair.case] = of_one(error, where=pair.case)
    _warn_of_crops(cases)
    if progress:
        progress(len(pairs), len(pairs), "prepared")
    return cases, failures


def _prepare_one(pair: Pair, progress: Progress | None, *, folder: str | Path, settings: Prepare) -> Case:
    begin(progress, pair.case)
    return prepare_pair(pair, folder, settings)


@contextlib.contextmanager
def _summary(pairs: Sequence[Pair], folder: str | Path) -> Iterator[Summary]:
    with lock(folder), Summary.of(folder, [Row(pair.case, abspath(pair.source)) for pair in pairs]) as summary:
        yield summary


def refuse_other_cases(pairs: Iterable[Pair], folder: str | Path, settings: Prepare) -> None:
    """Refuse a cache that holds cases of another dataset under the names of these, before any is replaced.

    A case with one other scan is made anew: a scan that was mended or registered again is no other dataset.

    Raises:
        SettingsError: A case there was prepared from two other scans, or a file that is no prepared case has its name.
    """
    for pair in pairs:
        case = Case(pair.case, pair.subject, Path(folder) / pair.case)
        there = [case.folder / name for name in _FILES if (case.folder / name).exists()]
        if there and not _is_known(case, pair, settings):
            claim(there[0], nothing, "a case that was prepared from the same scans, or nothing")


def _is_known(case: Case, pair: Pair, settings: Prepare) -> bool:
    """Whether a folder in a cache is this case's, whole or not, whatever settings it was prepared with."""
    try:
        if _is_cached(case, _key(pair, settings)):
            return True
        facts = case.facts
    except (OSError, ValueError, DatasetError, VolumeError):  # cut off or damaged: it is made again
        return all(entry.name in _FILES or entry.name.startswith(".") for entry in case.folder.iterdir())
    for file, scan in ((pair.source, facts.source), (pair.target, facts.target)):
        try:
            if file is None or sha256(file) == scan.sha256:
                return True
        except (OSError, ValueError):  # it is refused where it is read
            return True
    return False


def normalization(cases: Iterable[Case], *, percentile: float = UNIT_PERCENTILE) -> Normalization:
    """Return the constants of the training set; hand it the training cases only.

    Means and standard deviations are those of all voxels of all volumes, background included, in float64.
    """
    sums = {"source": np.zeros(3), "target": np.zeros(3)}
    scales: dict[str, list[float]] = {"source": [], "target": []}
    minima: dict[str, list[float]] = {"source": [], "target": []}
    for case in cases:
        for name, total in sums.items():
            array = np.asarray(getattr(case, name), np.float64)
            if not np.isfinite(array.sum()):
                raise DatasetError(
                    "a prepared volume holds numbers that are not finite",
                    where=case.name,
                    found=f"{np.count_nonzero(~np.isfinite(array))} voxels of the {name}",
                    do=f"Remove {case.folder}: it is prepared again.",
                )
            total += [array.size, array.sum(), np.square(array).sum()]
            scales[name].append(getattr(case.facts, f"{name}_scale"))
            minima[name].append(float(array.min()))
    if not scales["source"]:
        raise DatasetError("no training case to take the intensity constants from")
    contrasts = {}
    for name, (n, first, second) in sums.items():
        mean = first / n
        std = float(np.sqrt(max(second / n - mean**2, 0.0)))
        contrasts[name] = Contrast(float(np.median(scales[name])), float(mean), std, min(minima[name]))
    return Normalization(percentile, contrasts["source"], contrasts["target"])


def _key(pair: Pair, settings: Prepare) -> str:
    """Return the digest of the scans, the settings and what a cache holds."""
    files = [_stamp(path) for path in (pair.source, pair.target) if path is not None]
    return short_digest({"settings": str(_known(settings)), "files": files, "content": _CONTENT})


def _known(settings: Prepare) -> dict[str, Any]:
    """Return what the key of a cache says of the settings: a later one only where it is not at its default.

    So a setting that is added leaves the caches of earlier releases valid.
    """
    defaults = vars(_DEFAULTS)
    return {name: value for name, value in vars(settings).items() if name in _FIRST or value != defaults[name]}


def _warn_of_crops(cases: Sequence[Case]) -> None:
    """Say how much of the heads the model's grid leaves out, as a network does not learn what it never sees."""
    shares = {case: case.facts.head_left_out for case in cases}
    cut = [case for case, share in shares.items() if share > TOLERATED]
    if cut:
        worst = max(cut, key=shares.__getitem__)
        shape = " x ".join(map(str, worst.source.shape))
        warn(
            f"the model's grid of {shape} voxels leaves out part of the head in {len(cut)} of {len(cases)} cases, "
            f"most in {worst.name}: {shares[worst]:.0%}. A larger prepare.shape keeps it."
        )


def _left_out(mask: np.ndarray, source: Volume, where: Frame, kept: np.ndarray) -> float:
    """Return the share of a head, by volume, that lies outside the model's grid."""
    if where.holds(mask):
        return 0.0
    voxel, kept_voxel = (abs(np.linalg.det(affine[:3, :3])) for affine in (source.affine, where.working_affine))
    return float(max(0.0, 1 - kept.sum() * kept_voxel / (mask.sum() * voxel)))


def _stamp(path: Path) -> str:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise VolumeError(
            f"the file cannot be read: {in_words(error)}", where=path, do="Check the path and its permissions."
        ) from error
    return f"{realpath(path)}:{status.st_size}:{status.st_mtime_ns}"


def _is_cached(case: Case, key: str) -> bool:
    try:
        sizes = {name: (case.folder / f"{name}.npy").stat().st_size for name in case.facts.bytes}
        return sizes == case.facts.bytes and case.facts.key == key
    except (OSError, ValueError, DatasetError):
        return False


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.ascontiguousarray(array))
