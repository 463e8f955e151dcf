"""Synthetic volumes on disk: one file, many, or a dataset, as a BIDS derivative whose sidecars say what made them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from os.path import abspath, isdir, realpath
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib

from unscanned.cluster.cases import map_cases
from unscanned.cluster.summary import SUMMARY, Row, Summary
from unscanned.cluster.workers import Cluster, open_cluster
from unscanned.contrast.check import check_contrast
from unscanned.datasets.layout import bids_case, bids_label, bids_suffix, has_bids_suffix, identify, sidecar_path, stem
from unscanned.datasets.pairs import case_name, select_pairs
from unscanned.display import AUTOMATIC, draws_progress, in_a_line
from unscanned.errors import Interrupted, ResourceError, SettingsError, UnscannedError, VolumeError, in_words, listed
from unscanned.files import atomic_path, lock, read_json, read_text, remove_partials, sha256, write_json, write_text
from unscanned.machine.crash import of_one
from unscanned.machine.precision import check_precision
from unscanned.machine.provenance import NAME, version
from unscanned.outputs import claim
from unscanned.progress import Progress, begin, shares
from unscanned.settings import Synthesis
from unscanned.synthesis.audit import audit_outputs
from unscanned.synthesis.familiarity import check_familiarity
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import StoredModel, load_model, load_stored, stored
from unscanned.synthesis.sidecar import describe, output_key, read_sidecar, relative
from unscanned.volumes.nifti import SYNTHETIC, Volume, read_volume, write_volume

__all__ = [
    "Making",
    "Synthesized",
    "list_inputs",
    "making_on_worker",
    "output_path",
    "plan_cohort",
    "refuse_collisions",
    "synthesize",
]

_ENTITIES = ("task", "acq", "ce", "rec", "run", "echo", "part", "chunk")
"What else the name of an anatomical derivative may say beside subject and session, in the order that BIDS asks for."

_COSTS = (5, 85, 10)
"Of reading and checking a scan, making the volume, and writing it with its sidecar, as in `Model.synthesize`."


@dataclass(repr=False)
class Synthesized:
    """What became of each input.

    Attributes:
        written: New synthetic volumes.
        skipped: Volumes that were there already, from the same input, model and settings.
        failures: The reason for each input that was refused.
    """

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failures: dict[str, UnscannedError] = field(default_factory=dict)

    def __repr__(self) -> str:
        first = in_a_line(f", the first: {next(iter(self.failures.values()))}") if self.failures else ""
        counts = f"{len(self.written)} written, {len(self.skipped)} skipped, {len(self.failures)} failed"
        return f"Synthesized({counts}{first})"


def list_inputs(
    inputs: Iterable[str | Path], *, source: str, target: str
) -> tuple[list[tuple[Path, str | None]], dict[str, UnscannedError]]:
    """Return the scans behind the inputs, each with its case, and an error for each case with several to choose from.

    Args:
        inputs: Files, BIDS or IXI folders, or CSV tables; from the latter three, every scan of the source contrast.
        source: Contrast to look for.
        target: Contrast that will be made.

    Returns:
        (scan, case) in the order given, where the case is None for a single file, whose own name then counts; and the
        errors by dataset and case.

    Warns:
        UserWarning: Files of a dataset were passed over.

    Raises:
        DatasetError: A dataset cannot be read, or has no scan of the source contrast.
    """
    scans: list[tuple[Path, str | None]] = []
    failures: dict[str, UnscannedError] = {}
    for entry in map(Path, inputs):
        if isdir(entry) or entry.suffix.lower() in (".csv", ".tsv"):
            found = select_pairs(entry, source=source, target=target, require_target=False)
            scans += [(pair.source, pair.case) for pair in found.pairs]
            failures |= {str(error.where): error for error in found.refused.values()}
            for why in dict.fromkeys(found.passed_over.values()):
                names = listed([path.name for path, other in found.passed_over.items() if other == why])
                warnings.warn(f"{entry}: passed over {names}: {why}", stacklevel=2)
        else:
            scans.append((entry, None))
    return scans, failures


def output_path(out: str | Path, scan: Path, target: str, case: str | None = None) -> Path:
    """Return where the synthetic volume of a scan is written: its BIDS derivative name below `out`.

    Example:
        >>> output_path("out", Path("IXI012-HH-1211-PD.nii.gz"), "T2").as_posix()
        'out/sub-IXI012/anat/sub-IXI012_desc-synthetic_T2w.nii.gz'
    """
    ending = f"_desc-synthetic_{bids_suffix(target)}.nii.gz"
    entities = ""
    if case is None:
        known = identify(scan)
        if known is None:
            case = f"sub-{bids_label(stem(scan).removeprefix('sub-'))}"
        else:
            case = case_name(known.subject, known.session)
            entities = _entities(known.entities)
    case = bids_case(case)
    return Path(out).joinpath(*case.split("_"), "anat", case + entities + ending)


def _entities(named: str) -> str:
    """Return the entities of a scan's name as its derivative may have them, in their order; the others go into acq."""
    found = [(name, bids_label(label)) for name, _, label in (part.partition("-") for part in named.split("_")[1:])]
    kept = {name: label for name, label in found if name in _ENTITIES}
    if others := "".join(name + label for name, label in found if name not in _ENTITIES):
        kept["acq"] = kept.get("acq", "") + others
    return "".join(f"_{name}-{kept[name]}" for name in _ENTITIES if name in kept)


@draws_progress
def synthesize(
    model: Model | str | Path,
    scans: Sequence[tuple[Path, str | None]],
    out: str | Path,
    *,
    overwrite: bool = False,
    renew: bool = False,
    force: bool = False,
    cluster: Cluster | str | None = None,
    progress: Progress | None = AUTOMATIC,
    **changes: Any,
) -> Synthesized:
    """Synthesize the target contrast of scans, each on its own grid, with a sidecar.

    A scan whose output is there already from the same input, model and settings is skipped. From the same model alone,
    it is made again; anything else under its name is refused. A scan that is refused does not stop the others.

    Args:
        model: What to synthesize with; its name or folder is loaded as `load_model` does.
        scans: As `list_inputs` returns them: (scan, case).
        out: Folder; gets dataset_description.json and a BIDS derivative tree.
        overwrite: Make volumes again that are there already, and replace whatever has their names.
        renew: Replace the synthetic volumes of other models too.
        force: Go on with scans that do not show the model's source contrast, or are too unlike its training scans; the
            sidecar then says so.
        cluster: Where to work, as for `open_cluster`; None works in this process. On a cluster, `out` gets summary.csv
            too, and at the end every volume is checked against its sidecar.
        progress: Called with (done, total, label), in thousandths of a scan. Without it a bar, in a terminal and in
            Jupyter; None draws none.
        **changes: Settings of synthesis in place of the model's own, as for `Model.how`.

    Raises:
        SettingsError: As for `Model.how`, two scans have one output, or `out` is another dataset; nothing was
            written.
        CheckpointError: As for `load_model`.
        BusyError: Another run writes into `out`.
        ResourceError: The disk is full, memory is short, or as for `map_cases`.
    """
    model = model if isinstance(model, Model) else load_model(model)
    how = model.how(**changes)
    result = Synthesized()
    paths = _paths(model, scans, out)
    place = nullcontext() if cluster is None else open_cluster(cluster, shared=out, reads_ahead=None)
    with lock(out), place as workers:
        remove_partials(out)
        if workers is None:
            _describe_dataset(Path(out), scans, model.target)
            made = _make_here(Making(model, how, overwrite, renew, force), scans, paths, progress)
        else:
            rows = plan_cohort(model, scans, Path(out))
            on_worker = partial(making_on_worker, stored(model), how, overwrite, renew, force)
            made = _make_there(on_worker, rows, Path(out), workers, progress)
        for (scan, _), path, found in zip(scans, paths, made, strict=True):
            if isinstance(found, UnscannedError):
                result.failures[str(scan)] = found
            else:
                (result.written if found else result.skipped).append(path)
        if progress:
            progress(1000 * len(scans), 1000 * len(scans), "synthesized")
    return result


def plan_cohort(model: Model, scans: Sequence[tuple[Path, str | None]], out: Path) -> list[Row]:
    """Return a row for each scan of a cohort, and make the folder ready for its volumes; its lock is held.

    Raises:
        SettingsError: Two scans have one output, or the folder is another dataset.
    """
    paths = _paths(model, scans, out)
    _describe_dataset(out, scans, model.target)
    _ignore(out, f"/{SUMMARY}")
    pairs = zip(paths, scans, strict=True)
    return [Row(path.relative_to(out).as_posix(), abspath(scan)) for path, (scan, _) in pairs]


def _paths(model: Model, scans: Sequence[tuple[Path, str | None]], out: str | Path) -> list[Path]:
    """Return the output of each scan; refuse outputs that would replace each other or another dataset."""
    paths = [output_path(out, scan, model.target, case) for scan, case in scans]
    refuse_collisions([(scan, path) for (scan, _), path in zip(scans, paths, strict=True)])
    _own_description(Path(out))
    return paths


Made = list[bool | UnscannedError]
"Of each scan whether its volume was made, not there already; or why there is none."


def _make_here(
    making: Making, scans: Sequence[tuple[Path, str | None]], paths: Sequence[Path], progress: Progress | None
) -> Made:
    """Make the volumes in this process, one after the other."""

    def label(number: int, words: str) -> str:
        return f"scan {number + 1} of {len(scans)}, {scans[number][0].name}, {words}"

    made: Made = []
    cases = [(scan, path) for (scan, _), path in zip(scans, paths, strict=True)]
    try:
        for number, outcome in map_cases(making, cases, progress=progress, words=label, unit=1000):
            try:
                made.append(outcome.get())
            except ResourceError:
                raise
            except Exception as error:
                made.append(of_one(error, where=scans[number][0]))
    except Interrupted as error:
        raise error.but(found=f"{len(made)} of {len(scans)} scans done") from error
    return made


def _make_there(
    on_worker: Callable[[str], Making], rows: Sequence[Row], out: Path, cluster: Cluster, progress: Progress | None
) -> Made:
    """Make the volumes on a cluster, with a row for each scan, and check at the end that each is whole."""
    making_them, checking = shares(progress, (95, 5))
    cases = [(Path(row.scan), Path(abspath(out), row.output)) for row in rows]
    names = [scan.name for scan, _ in cases]
    outputs = [row.output for row in rows]
    made: dict[int, bool | UnscannedError] = {}
    with Summary.of(out, rows) as summary:
        for number, outcome in map_cases(
            None, cases, names=names, cluster=cluster, on_worker=on_worker, folder=abspath(out), progress=making_them
        ):
            error = outcome.error
            made[number] = bool(outcome.value) if error is None else of_one(error, where=names[number])
            summary.take(outputs[number], outcome, "written" if outcome.value else "skipped")
        whole = [number for number, found in made.items() if isinstance(found, bool)]
        found = audit_outputs(out, [outputs[number] for number in whole], cluster=cluster, progress=checking)
        for number in whole:
            if (fault := found[outputs[number]]) is not None:
                made[number] = fault
                summary.mark(outputs[number], "broken", str(fault))
    return [made[number] for number in range(len(rows))]


@dataclass(frozen=True, eq=False)
class Making:
    """Makes the synthetic volume of a scan at its path, and says whether it was not there already."""

    model: Model
    how: Synthesis
    overwrite: bool
    renew: bool
    force: bool

    def __call__(self, case: tuple[Path, Path], progress: Progress | None) -> bool:
        """Make the volume of (scan, path); return False where it is there from the same input, model and settings."""
        begin(shares(progress, _COSTS)[0], "reading")
        return self.read_ahead(case)(progress)

    def read_ahead(self, case: tuple[Path, Path]) -> Callable[[Progress | None], bool]:
        """Read the scan of (scan, path), and return what makes its volume as a call does."""
        scan, path = case
        return partial(self._make, read_volume(scan), path)

    def _make(self, volume: Volume, path: Path, progress: Progress | None) -> bool:
        model, how = self.model, self.how
        _, making, writing = shares(progress, _COSTS)
        if not self.overwrite:
            if _is_done(path, output_key(volume, model, how), self.force):
                return False
            _claim(path, None if self.renew else model)
        checked = check_contrast(volume, model.profile, model.source, force=self.force)
        familiarity = check_familiarity(model, volume, in_doubt=checked.hangs_on_its_name, force=self.force)
        synthetic = model.synthesize(volume, how, progress=making)
        begin(writing, "writing")
        # Both are whole on disk before either gets its name, the sidecar first and an older volume gone: whatever
        # happens in between, no volume stands without its own sidecar.
        with atomic_path(path) as content, atomic_path(sidecar_path(path)) as sidecar:
            write_volume(
                content, synthetic.array, volume.affine, description=f"{SYNTHETIC} {model.target} {NAME} {version()}"
            )
            facts = describe(model, volume, path, how, checked, familiarity, synthetic, sha256(content))
            write_json(sidecar, facts.to_json())
            Path(realpath(path)).unlink(missing_ok=True)  # a link stays, as it does where it is written through
        return True


def making_on_worker(
    model: StoredModel, how: Synthesis, overwrite: bool, renew: bool, force: bool, device: str
) -> Making:
    """Return the work of a worker, whose model stays loaded from scan to scan."""
    loaded = load_stored(model, device)
    check_precision(how.precision, loaded.device, convolution=loaded.settings.generator.convolution)
    return Making(loaded, how, overwrite, renew, force)


def refuse_collisions(outputs: Sequence[tuple[Path, Path]]) -> None:
    """Refuse two scans whose outputs have one name: the second would replace the first.

    Args:
        outputs: Each scan with its output.

    Raises:
        SettingsError: There are two.
    """
    seen: dict[Path, Path] = {}
    for scan, path in outputs:
        if path in seen and realpath(scan) != realpath(seen[path]):
            raise SettingsError(
                "two inputs have one output",
                where=path,
                found=f"{seen[path]} and {scan}",
                do="Give them BIDS names that differ, or synthesize them into two folders.",
            )
        seen[path] = scan


def _is_done(path: Path, key: str, force: bool) -> bool:
    try:
        facts = read_sidecar(path)
        # What was forced once is refused again without force.
        forced = facts.input_contrast_verified is False or facts.input_familiarity.verdict == "forced"
        accepted = force or not forced
        return accepted and facts.key == key and facts.sha256 == sha256(path)
    except (OSError, VolumeError):
        return False


def _claim(path: Path, model: Model | None) -> None:
    """Refuse to replace what is no synthetic volume, or one of another model than this; None stands for any."""

    def is_own(file: Path) -> bool:
        try:
            made_by = read_sidecar(path).model.sha256
        except VolumeError:  # gone or damaged; the volume's own header tells too
            return file == path and _says_synthetic(path)
        return file != path or model is None or made_by == model.sha256

    do = "Choose another folder, or give --overwrite to replace it."
    claim(path, is_own, "nothing, or a volume that the same model made", do=do)
    if not (path.exists() and _says_synthetic(path)):
        claim(sidecar_path(path), is_own, "nothing, or the sidecar of a synthetic volume", do=do)


def _says_synthetic(path: Path) -> bool:
    try:
        return bool(nib.Nifti1Image.from_filename(path).header["descrip"].tobytes().startswith(SYNTHETIC.encode()))
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        return False


def _describe_dataset(out: Path, scans: Sequence[tuple[Path, str | None]], target: str) -> None:
    """Write dataset_description.json, which names the datasets that all volumes here were made from."""
    found = _own_description(out)
    datasets = {_dataset_of(scan) for scan, _ in scans}
    sources = {f"file:{quote(str(relative(dataset, out)), errors='surrogateescape')}" for dataset in datasets}
    if found is not None:
        sources |= {source["URL"] for source in found["SourceDatasets"]}
    content = {
        "Name": "Synthetic MR volumes, not for diagnosis",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": NAME, "Version": version()}],
        "SourceDatasets": [{"URL": source} for source in sorted(sources)],
    }
    if found != content:
        write_json(out / "dataset_description.json", content)
    if not has_bids_suffix(target):
        _ignore(out, f"*_{bids_suffix(target)}.*")


def _ignore(out: Path, pattern: str) -> None:
    """Tell validators of BIDS to pass over names that BIDS has no suffix for."""
    path = out / ".bidsignore"
    lines = read_text(path).splitlines() if path.exists() else []
    if pattern not in lines:
        write_text(path, "\n".join([*lines, pattern]) + "\n")


def _own_description(out: Path) -> dict[str, Any] | None:
    """Return the dataset_description.json that an earlier call wrote, None where there is none; refuse any other."""
    path = out / "dataset_description.json"
    try:
        found: dict[str, Any] = read_json(path)
        if [tool["Name"] for tool in found["GeneratedBy"]] == [NAME]:
            _ = [source["URL"] for source in found["SourceDatasets"]]
            return found
        reason = "another dataset's description"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = in_words(error)
    raise SettingsError(
        "the output folder holds another dataset",
        where=path,
        found=reason,
        expected="a folder for synthetic volumes alone",
        do="Choose another folder, such as derivatives/unscanned inside the dataset.",
    )


def _dataset_of(scan: Path) -> Path:
    """Return the folder above the subject's folder of a BIDS dataset, else the scan's own folder."""
    folder = Path(abspath(scan)).parent
    return next((above.parent for above in [folder, *folder.parents] if above.name.startswith("sub-")), folder)
