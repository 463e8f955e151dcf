"""Synthesis: models, and the volumes that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from unscanned.cli import running, terminal
from unscanned.cli import settings as options
from unscanned.cli.settings import HowOptions
from unscanned.cli.verbs.common import Cluster, How, Json, ModelsIn, Out, app, claim_json
from unscanned.cluster.summary import LOST_AFTER_S
from unscanned.outputs import json_with
from unscanned.progress import interruptible, shares


@app.command
def models(name: str | None = None, *, models_in: ModelsIn = None, json: Json = None) -> None:
    """List the models that there are: those that come with unscanned, and those that were fetched; or show one's card.

    Example: `unscanned models`

    Parameters
    ----------
    name
        Of a model, to show its card.
    json
        Also write all that is shown to this file.
    """
    from unscanned.synthesis.shelf import find_model, list_models

    claim_json(json, json_with("models"))
    if name is None:
        terminal.say_models(list_models(models_in), json)
    else:
        terminal.say_model(find_model(name, models_in), json)


@app.command
def synthesize(
    model: Path | None = None,
    inputs: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    *,
    out: Out,
    to: str | None = None,
    models_in: ModelsIn = None,
    how: How = None,
    device: str = "auto",
    threads: int | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    force: Annotated[bool, Parameter(negative="")] = False,
    cluster: Cluster = None,
    emit: Annotated[tuple[Literal["slurm"], Path] | None, Parameter(negative="")] = None,
) -> None:
    """Make the target contrast of scans, each on its own grid, with a sidecar that says what made it.

    Give a model and then the scans, or the scans alone and --to: then the model is picked by the contrast of each scan,
    as its name, its JSON file or its looks tell, and it is said which and why.

    Example: `unscanned synthesize runs/resgan/model sub-01_PDw.nii.gz -o synthetic`

    Example: `unscanned synthesize sub-01_T1w.nii.gz --to T2w -o synthetic`

    Example: `unscanned synthesize runs/resgan/model data/my-bids -o synthetic --mode volume --memory-mib 1024`

    Example: `unscanned synthesize runs/resgan/model data/my-bids -o synthetic --cluster local:4`

    Example: `unscanned synthesize runs/resgan/model data/my-bids -o synthetic --emit slurm jobs`

    Parameters
    ----------
    model
        Folder of a trained model, or a name that `unscanned models` lists; a folder of that name with a model in it
        goes first. With --to, the first scan.
    inputs
        Scans, BIDS datasets, IXI folders or CSV tables.
    out
        Folder; gets a BIDS derivative tree.
    to
        Contrast to make, such as T2w, with a model that is picked for each scan.
    device
        auto, cpu, cuda or cuda:N.
    threads
        CPU threads; with --cluster, of each worker.
    overwrite
        Make volumes again that are there already.
    force
        Go on with scans that do not show the model's source contrast, or are too unlike its training scans; the
        sidecar then says so.
    emit
        slurm DIR: make nothing, and write the script of an array job and its list of scans into DIR.
    """
    given = [path for path in (model, *inputs) if path is not None]
    _check_words(given, to, models_in)
    from unscanned.machine.device import choose_device
    from unscanned.machine.threads import set_process_threads
    from unscanned.outputs import check_apart
    from unscanned.synthesis.choice import choose_models
    from unscanned.synthesis.model_file import load_model
    from unscanned.synthesis.synthesize import Synthesized, list_inputs, output_path, refuse_collisions
    from unscanned.synthesis.synthesize import synthesize as run

    for dataset in given if to is not None else given[1:]:
        check_apart(dataset, out)
    if emit is not None:
        return _emit(given, emit[1], out, to, cluster, overwrite, models_in, how, device, threads, force)
    set_process_threads(threads)
    chosen = choose_device(device if cluster is None else "cpu")
    if to is None:
        loaded = load_model(given[0], chosen, models_in=models_in)
        scans, failures = list_inputs(given[1:], source=loaded.source, target=loaded.target)
        work = [(loaded, scans)]
    else:
        choices, failures = choose_models(given, to, models_in=models_in)
        for choice in choices:
            terminal.say_choice(choice)
        named = {choice.model.name: choice.model for choice in choices}
        by_name = {name: load_model(found, chosen) for name, found in named.items()}
        work = [(by_name[choice.model.name], [*choice.scans]) for choice in choices]
        refuse_collisions(
            [(scan, output_path(out, scan, each.target, case)) for each, scans in work for scan, case in scans]
        )
    result = Synthesized()
    if work:
        with (
            running.workers(cluster, device=device, threads=threads, shared=out, reads_ahead=None) as workers,
            running.computing(device if cluster is None else "cpu") as (progress, stop),
        ):
            parts = shares(interruptible(progress, stop, out), [len(scans) for _, scans in work])
            for (each, scans), part in zip(work, parts, strict=True):
                made = run(
                    each,
                    scans,
                    out,
                    overwrite=overwrite,
                    force=force,
                    cluster=workers,
                    progress=part,
                    **options.overrides(how),
                )
                result.written += made.written
                result.skipped += made.skipped
                result.failures |= made.failures
    for path in result.written:
        terminal.say(str(path))
    if result.skipped:
        terminal.say(f"{len(result.skipped)} were there already, from the same input, model and settings")
    count = sum(len(scans) for _, scans in work) + len(failures)
    failures |= result.failures
    if count == 1 and failures:
        raise next(iter(failures.values()))
    terminal.raise_partial(failures, count)
    return None


def _emit(
    given: Sequence[Path],
    folder: Path,
    out: Path,
    to: str | None,
    cluster: str | None,
    overwrite: bool,
    models_in: Path | None,
    how: HowOptions | None,
    device: str,
    threads: int | None,
    force: bool,
) -> None:
    """Write the script of an array job in place of the volumes."""
    from unscanned.errors import SettingsError
    from unscanned.synthesis.array_job import emit_slurm
    from unscanned.synthesis.model_file import load_model
    from unscanned.synthesis.synthesize import list_inputs

    for word, is_given in (("--to", to is not None), ("--cluster", cluster is not None), ("--overwrite", overwrite)):
        if is_given:
            raise SettingsError("does not go together with --emit", where=word, do="Leave out one of them.")
    loaded = load_model(given[0], models_in=models_in)
    scans, failures = list_inputs(given[1:], source=loaded.source, target=loaded.target)
    script = emit_slurm(
        loaded, scans, out, folder, force=force, device=device, threads=threads, **options.overrides(how)
    )
    terminal.say(f"{len(scans)} scans are listed; next: sbatch {script}, and then unscanned audit {out}")
    terminal.raise_partial(failures, len(scans) + len(failures), done="listed")


@app.command
def take(
    folder: Path,
    *,
    task: int = 0,
    tasks: int = 1,
    lost_after_s: Annotated[float, Parameter(validator=validators.Number(gt=0))] = LOST_AFTER_S,
) -> None:
    """Make volumes of the list that `synthesize --emit slurm` wrote, until none is left to take; its script calls this.

    Any number of tasks may share the list, on any machines that see its folder and that of the outputs.

    Example: `unscanned take jobs --task 3 --tasks 10`

    Parameters
    ----------
    folder
        That --emit named.
    task
        Number of this task, from 0: where in the list it begins.
    tasks
        How many tasks share the list.
    lost_after_s
        Age at which a scan that another task took, and that shows no sign of life, is taken up again, s.
    """
    from unscanned.synthesis.array_job import take_scans

    with running.progress() as progress, running.Stop() as stop:
        made = take_scans(
            folder, task=task, tasks=tasks, lost_after_s=lost_after_s, progress=progress, should_stop=stop
        )
    terminal.say(f"{len(made.written)} written, {len(made.skipped)} were there already")
    terminal.raise_partial(made.failures, None)


@app.command
def audit(out: Path, *, cluster: Cluster = None, json: Json = None) -> None:
    """Say which scans of a cohort have no output, a broken one, or failed, and why; exit 4 where one has.

    Holds summary.csv against the volumes and their sidecars, hashes included.

    Example: `unscanned audit synthetic --json audit.json`

    Parameters
    ----------
    out
        Folder that `synthesize --cluster`, `synthesize --emit` or `prepare --cluster` wrote into.
    json
        Also write the row of every scan to this file.
    """
    from unscanned.synthesis.audit import audit as run

    claim_json(json, json_with("folder", "counts", "scans"))
    with running.workers(cluster, shared=out) as workers, running.progress() as progress:
        found = run(out, cluster=workers, progress=progress)
    terminal.say_audit(found, json)


def _check_words(given: Sequence[Path], to: str | None, models_in: Path | None) -> None:
    """Refuse words of which it is not clear which is the model and which are scans, before anything is loaded."""
    from unscanned.errors import SettingsError
    from unscanned.synthesis.shelf import list_models

    see = "See unscanned synthesize --help."
    if not given:
        raise SettingsError("must be given", where="MODEL" if to is None else "INPUTS", do=see)
    first = given[0]
    if to is None and len(given) == 1 and not first.is_file():
        raise SettingsError("must be given", where="INPUTS", do=see)
    if to is None and first.is_file():
        raise SettingsError(
            "a model is needed before the scans",
            where=first,
            found="a file",
            expected="the folder or the name of a model",
            do="Or give --to CONTRAST, and a model is picked for each scan.",
        )
    if to is not None and not first.exists() and any(str(first).lower() == m.name for m in list_models(models_in)):
        raise SettingsError(
            "either a model or the contrast to make",
            where="--to",
            found=f"{to} with the model {first}",
            expected="scans alone",
            do="Leave out one of them.",
        )


@app.command
def verify(
    output: Path,
    *,
    model: Path | None = None,
    scan: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """Make a synthetic volume again from the model and scan in its sidecar, and say whether it is the same.

    Exit 0 where it is the same bit for bit, or within the tolerance for other machines; exit 4 where it is not.

    Example: `unscanned verify synthetic/sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz`

    Parameters
    ----------
    output
        A synthetic volume with its sidecar beside it.
    model
        Folder or name of the model, where it is no longer where the sidecar says.
    scan
        The source scan, likewise.
    device
        auto, cpu, cuda or cuda:N.
    threads
        CPU threads; unset takes as many as made the volume.
    """
    from unscanned.synthesis.verify import verify as run

    with running.computing(device) as (progress, stop):
        report = interruptible(progress, stop, output)
        result = run(output, model=model, scan=scan, device=device, threads=threads, progress=report)
    terminal.say_verification(result)


@app.command
def dicom(
    volume: Path,
    series_folder: Path,
    *,
    out: Out,
    scan: Path | None = None,
    series: str | None = None,
    echo_time_ms: float | None = None,
    force: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a synthetic volume as a derived MR series, on the slices of the DICOM series that its source came from.

    Every file is marked: Synthetic Data (0008,001C) is YES, and the series' description begins with SYNTHETIC. Needs
    `pip install pydicom`.

    Example: `unscanned dicom synthetic/sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz dicom/sub-01 -o dicom/sub-01-T2`

    Parameters
    ----------
    volume
        A synthetic volume with its sidecar beside it.
    series_folder
        Folder of the DICOM files that the source scan was converted from. The series is found by its grid and voxels.
    out
        New folder for the series.
    scan
        The source scan, where it is no longer where the sidecar says.
    series
        Series Instance UID, to look at no other series.
    echo_time_ms
        Echo time, to look at no other echo, ms.
    force
        Take the series on the volume's grid without comparing its voxels with the scan; every file says so.
    """
    from unscanned.synthesis.derived_series import write_dicom

    written = write_dicom(volume, series_folder, out, scan=scan, series=series, echo_time_ms=echo_time_ms, force=force)
    terminal.say(f"{len(written)} slices are in {out}")
