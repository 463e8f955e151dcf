"""One verb for each step; each imports what it needs when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Group, Parameter, validators

from unscanned.cli import running, terminal
from unscanned.cli import settings as options
from unscanned.cli.settings import HowOptions, Options, PrepareOptions, WorkloadOptions, in_help
from unscanned.datasets.split import read_split
from unscanned.errors import UnscannedError
from unscanned.machine.provenance import version
from unscanned.outputs import Mark, begins_with, claim, json_with
from unscanned.progress import interruptible, shares
from unscanned.report import LIMIT_MB, MOST_MB
from unscanned.schema import read
from unscanned.settings import WRITTEN_BY, Layout, Settings, preset_names

__all__ = ["app"]

app = App(
    name="unscanned",
    help="Make the MR contrast that was never scanned: train on aligned pairs, synthesize, and show how good it is.\n\n"
    "A first look, without any data: `unscanned demo`.\n\n"
    "Your own scans: `unscanned check DATASET`, then `unscanned reproduce DATASET -o OUT`, or step by step `train`, "
    "`synthesize`, `evaluate`, `report`. Not for clinical use.",
    version=lambda: version(),
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # main() has a message for it
    default_parameter=Parameter(show_default=in_help, negative_iterable=()),
)

Out = Annotated[Path, Parameter(name=["--out", "-o"])]
Json = Annotated[Path | None, Parameter(name="--json")]
_PRESET = "Settings to start from: " + ", ".join(preset_names())
Preset = Annotated[
    str | None,
    Parameter(
        name=["--preset", "-p"],
        help=f"{_PRESET}. Unset takes the one that the file of --settings names, else {Settings().preset}.",
    ),
]
TrainPreset = Annotated[
    str | None,
    Parameter(
        name=["--preset", "-p"],
        help=f"{_PRESET}. Unset takes the one that the file of --settings names, else that of the model of --from, "
        f"else {Settings().preset}.",
    ),
]
File = Annotated[Path | None, Parameter(name="--settings", help="TOML file that overrides the preset.")]
_SETTINGS = Group(
    "Settings",
    help=f"What is not given is as in the preset. Shown are the values of {Settings().preset}, then those of other "
    "presets where they differ.",
)
_SYNTHESIS = Group("Synthesis", help="What is not given is as the model has it.")
Given = Annotated[Options | None, Parameter(name="*", group=_SETTINGS)]
GivenToPrepare = Annotated[PrepareOptions | None, Parameter(name="*", group=_SETTINGS)]
Source = Annotated[str, Parameter(name=["--source", "--data.source"])]
Target = Annotated[str, Parameter(name=["--target", "--data.target"])]
InLayout = Annotated[Layout, Parameter(name=["--layout", "--data.layout"])]
Resample = Annotated[bool, Parameter(name=["--resample", "--prepare.resample"], negative="")]
How = Annotated[HowOptions | None, Parameter(name="*", group=_SYNTHESIS)]
Load = Annotated[WorkloadOptions | None, Parameter(name="*", group="Workload")]
LimitMb = Annotated[
    float,
    Parameter(
        name="--limit-mb",
        validator=validators.Number(gt=0, lte=MOST_MB),
        help="Room for the volumes of each case in the page, MB; the precision follows from it.",
    ),
]
DryRun = Annotated[
    bool, Parameter(name="--dry-run", negative="", help="Print the resolved settings, what they cost here, and stop.")
]
ModelsIn = Annotated[
    Path | None,
    Parameter(
        name="--models-in",
        help="Folder of models with names, as `fetch model -o` makes it, in place of the usual ones.",
    ),
]
Subset = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]
Arms = Annotated[
    tuple[str, ...],
    Parameter(consume_multiple=True, help=f"Presets to compare, of {', '.join(preset_names())}."),
]


@app.command
def demo(*, out: Out = Path("runs/demo"), subjects: int = 8, seed: int = 0) -> None:
    """Simulate heads, train a small generator, synthesize, score and report. Needs no data; takes a few minutes.

    Example: `unscanned demo -o runs/demo`

    Parameters
    ----------
    out
        Folder for the dataset, the run and the report.
    subjects
        Simulated subjects, at least 7: five train, one chooses the epoch, the others test.
    seed
        Seed of the simulation, the split and the training.
    """
    from unscanned import demo as module

    with running.computing() as (progress, stop):
        shown = module.demo(out, subjects=subjects, seed=seed, progress=progress, should_stop=stop)
    terminal.say_scores(shown.evaluation)
    terminal.say(f"synthetic T2   {shown.synthetic[0]}")
    terminal.say(f"report         {shown.report}")


@app.command
def fetch(
    what: str,
    url: str | None = None,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    sha256: str | None = None,
    name: str | None = None,
    contrasts: Subset = ("PD", "T2"),
    keep_archive: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Download a public dataset or a model, resumed after a break, verified, and unpacked.

    Example: `unscanned fetch ixi -o data/ixi`

    Example: `unscanned fetch model https://example.org/t1w-t2w.zip --sha256 HEX`

    Parameters
    ----------
    what
        ixi: about 580 subjects, CC BY-SA 3.0, some 4 GB a contrast. model: one that `unscanned models` then lists.
    url
        Of the model: a zip or an uncompressed tar archive.
    out
        Folder for the scans. For a model it may be left out: models go to a folder of yours that all verbs look into.
    sha256
        Of the model's archive, 64 hexadecimal digits.
    name
        To call the model by; unset takes its contrasts, such as t1w-t2w.
    contrasts
        Of ixi, any of PD, T2, T1.
    keep_archive
        Keep the .tar files of ixi after unpacking.
    """
    from unscanned.errors import SettingsError

    if what == "model":
        if url is None or sha256 is None:
            missing = "URL" if url is None else "--sha256"
            raise SettingsError("must be given", where=missing, do="See unscanned fetch --help.")
        from unscanned.synthesis.fetch_model import fetch_model

        with running.progress() as progress:
            model = fetch_model(url, sha256, out=out, name=name, progress=progress)
        place = f" --models-in {out}" if out else ""
        terminal.say(f"model {model.name} is in {model.folder}; next: unscanned models {model.name}{place}")
        return
    from unscanned.datasets.ixi import fetch_ixi

    if what != "ixi":
        raise SettingsError("nothing of this name can be fetched", where="fetch", found=what, expected="ixi or model")
    for word, given in (("URL", url), ("--sha256", sha256), ("--name", name)):
        if given is not None:
            raise SettingsError("only for a model", where=word, do="See unscanned fetch --help.")
    if out is None:
        raise SettingsError("must be given", where="--out", do="See unscanned fetch --help.")
    with running.progress() as progress:
        folder = fetch_ixi(out, contrasts=contrasts, keep_archive=keep_archive, progress=progress)
    terminal.say(f"{' and '.join(contrasts)} are in {folder}; next: unscanned check {folder}")


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

    _claim_json(json, json_with("models"))
    if name is None:
        terminal.say_models(list_models(models_in), json)
    else:
        terminal.say_model(find_model(name, models_in), json)


@app.command
def simulate(
    *,
    out: Out,
    labels: Path | None = None,
    subjects: int = 8,
    per_anatomy: int = 1,
    contrasts: Subset = ("PD", "T2"),
    seed: int = 0,
    shape: Annotated[tuple[int, int, int] | None, Parameter(negative="")] = None,
    spacing_mm: float | None = None,
    physics: Literal["narrow", "wide"] = "narrow",
    target: str | None = None,
    clean: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write simulated PD, T2, T1 and FLAIR volumes as a BIDS dataset, from label maps or from heads of its own.

    Example: `unscanned simulate -o data/heads --subjects 8`

    Example: `unscanned simulate -o data/heads --labels head-labels --subjects 28 --per-anatomy 2`

    Example: `unscanned simulate -o data/wide --subjects 8 --physics wide --contrasts T1 T2`

    Parameters
    ----------
    out
        Folder of the dataset.
    labels
        Folder of whole-head label maps (FreeSurfer numbers); without it, heads are built.
    subjects
        Number of subjects.
    per_anatomy
        Subjects made from one anatomy, each with a deformation and a scanner of its own.
    contrasts
        Any of PD, T2, T1, and FLAIR with wide physics.
    seed
        The same seed gives the same files.
    shape
        Voxels along i, j, k.
    spacing_mm
        Isotropic voxel size.
    physics
        narrow: one kind of scanner; wide: the spread of real ones, with the labels of tissues in derivatives/truth.
    target
        With wide physics, the contrast whose sequence stays the same; the last of the contrasts by default.
    clean
        Write images without noise too, into derivatives/truth; evaluate then says what noise and tissues allow.
    """
    from unscanned.simulation import simulate as module

    with running.progress() as progress:
        folder = module.simulate(
            out,
            labels=labels,
            subjects=subjects,
            per_anatomy=per_anatomy,
            contrasts=contrasts,
            seed=seed,
            shape=shape,
            spacing_mm=spacing_mm,
            physics=physics,
            target=target,
            clean=clean,
            progress=progress,
        )
    terminal.say(f"{subjects} subjects are in {folder}; next: unscanned check {folder}")


@app.command
def check(
    dataset: Path,
    *,
    source: Source = "PD",
    target: Target = "T2",
    layout: InLayout = "auto",
    resample: Resample = False,
    preset: Annotated[str, Parameter(name=["--preset", "-p"], help=f"{_PRESET}.")] = "resgan",
    propose: Path | None = None,
    measure_s: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=3600))] = 20.0,
    json: Json = None,
) -> None:
    """Read every pair of a dataset, print what is there and what is wrong, and advise; exit 3 where a case is unusable.

    It says which contrasts there are, whether each pair is aligned, which settings fit, and what a training with them
    costs on this machine.

    Example: `unscanned check data/my-bids --source T1w --target T2w --propose mine.toml`

    Parameters
    ----------
    dataset
        BIDS dataset, folder of IXI files, or a CSV with the columns subject, session and the two contrasts.
    source
        Contrast to synthesize from.
    target
        Contrast to synthesize.
    layout
        How the dataset is laid out; auto looks at the names.
    resample
        Only warn of a target on another grid: `prepare.resample` will bring it to the source's.
    propose
        Write the proposed settings to this TOML file, for --settings of train and reproduce.
    measure_s
        About how many seconds to take training steps for the estimate of time and memory; 0 takes none.
    json
        Also write all that was found to this file.
    """
    from unscanned.datasets.check import examine
    from unscanned.datasets.proposal import propose as proposal_of
    from unscanned.training.cost import estimate_cost

    _claim_json(json, json_with("dataset", "source", "target", "usable", "unusable", "findings"))
    start = options.resolve(preset, None, None)
    if propose is not None:
        claim(propose, begins_with(WRITTEN_BY), "settings that unscanned wrote")
    with running.progress() as progress:
        found = examine(dataset, source=source, target=target, layout=layout, resample=resample, progress=progress)
    terminal.say_examination(found)
    proposal = proposal_of(found, layout=layout, multiple=start.training.patch)
    cost = None
    if proposal is not None:
        terminal.say_proposal(proposal, dataset, propose)
        try:
            cost = estimate_cost(dataset, start.change(**proposal.settings), seconds=measure_s)
        except UnscannedError as error:
            terminal.complain(f"the cost cannot be estimated: {error}")
        else:
            terminal.say_cost(f"unscanned train with preset {preset}", cost)
    if json is not None:
        terminal.write_examination(json, found, proposal, cost)
    terminal.raise_unusable(found)


@app.command
def mend(
    scan: Path,
    *,
    out: Out,
    volume_index: int | None = None,
    replace_nonfinite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a clean copy of a scan that is refused: one volume of a 4D file, or 0 in the place of NaN and infinity.

    Example: `unscanned mend sub-01_T2w.nii.gz -o mended/sub-01_T2w.nii.gz --volume-index 0`

    Parameters
    ----------
    scan
        The file; it is not changed.
    out
        The new file; a JSON file beside it says what was done.
    volume_index
        Which volume of a 4D file, counted from 0.
    replace_nonfinite
        Put 0 in the place of voxels that are not finite.
    """
    from unscanned.datasets.mend import mend as run

    volume = run(scan, out, volume_index=volume_index, replace_nonfinite=replace_nonfinite)
    for warning in volume.warnings:
        terminal.complain(f"{scan}: {warning}")
    terminal.say(str(out))


@app.command
def prepare(
    dataset: Path,
    *,
    out: Out,
    preset: Preset = None,
    settings: File = None,
    given: GivenToPrepare = None,
    dry_run: DryRun = False,
) -> None:
    """Bring all pairs to the model's grid and intensity scale, and cache them. `train` does it by itself.

    Example: `unscanned prepare data/ixi -o runs/resgan/prepared`

    Parameters
    ----------
    dataset
        As for check.
    out
        Folder of the cache.
    """
    resolved = options.resolve(preset, settings, given)
    if dry_run:
        return terminal.say_settings(resolved)
    from unscanned.datasets.pairs import select_pairs
    from unscanned.outputs import check_apart
    from unscanned.training import prepare as module

    check_apart(dataset, out)
    with running.progress() as progress:
        found = select_pairs(dataset, **resolved.data.model_dump())
        cases, failures = module.prepare(found.pairs, out, resolved.prepare, progress=progress)
    terminal.say(f"{len(cases)} cases are prepared in {out}")
    terminal.complain_of_incomplete(found.incomplete)
    terminal.raise_partial({**found.refused, **failures}, len(found.pairs) + len(found.refused))
    return None


@app.command
def train(
    dataset: Path,
    *,
    out: Out,
    preset: TrainPreset = None,
    settings: File = None,
    given: Given = None,
    dry_run: DryRun = False,
) -> None:
    """Train one arm; called again after an interruption, it goes on where it was, bit for bit.

    Example: `unscanned train data/ixi -o runs/resgan --preset resgan`

    Example: `unscanned train my-bids -o runs/mine --from t1w-t2w`

    Example: `unscanned train data/bids -o runs/t1-t2 --data.source T1w --data.target T2w --prepare.spacing-mm 1`

    Parameters
    ----------
    dataset
        As for check.
    out
        Folder of the run: settings, logs, checkpoints, and the trained model in its folder `model`.
    """
    from unscanned.training.start import resolve_run

    resolved = resolve_run(preset, settings, options.overrides(given))
    if dry_run:
        from unscanned.training.cost import estimate_cost

        return terminal.say_settings(resolved, estimate_cost(dataset, resolved))
    from unscanned.training.run import train

    with running.computing(resolved.training.device) as (progress, stop):
        trained = train(dataset, out, resolved, progress=progress, should_stop=stop)
    terminal.say(f"model {trained.model}; next: unscanned synthesize {trained.model} SCAN -o OUT")
    terminal.complain_of_incomplete(trained.incomplete)
    terminal.raise_partial(trained.failures, None)
    return None


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
) -> None:
    """Make the target contrast of scans, each on its own grid, with a sidecar that says what made it.

    Give a model and then the scans, or the scans alone and --to: then the model is picked by the contrast of each scan,
    as its name, its JSON file or its looks tell, and it is said which and why.

    Example: `unscanned synthesize runs/resgan/model sub-01_PDw.nii.gz -o synthetic`

    Example: `unscanned synthesize sub-01_T1w.nii.gz --to T2w -o synthetic`

    Example: `unscanned synthesize runs/resgan/model data/my-bids -o synthetic --mode volume --memory-mib 1024`

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
        CPU threads.
    overwrite
        Make volumes again that are there already.
    force
        Go on with scans that do not show the model's source contrast, or are too unlike its training scans; the
        sidecar then says so.
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
    set_process_threads(threads)
    chosen = choose_device(device)
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
        with running.computing(device) as (progress, stop):
            parts = shares(interruptible(progress, stop, out), [len(scans) for _, scans in work])
            for (each, scans), part in zip(work, parts, strict=True):
                made = run(each, scans, out, overwrite=overwrite, force=force, progress=part, **options.overrides(how))
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


@app.command
def evaluate(
    dataset: Path,
    *synthetic: str,
    out: Out,
    source: Source = "PD",
    target: Target = "T2",
    layout: InLayout = "auto",
    split: Path | None = None,
    leave_one_out: bool = False,
    resample: Resample = False,
    labels: Path | None = None,
    json: Json = None,
) -> None:
    """Score synthetic volumes against the acquired ones: MAE, MSE, PSNR, SSIM, per subject and per slice.

    Example: `unscanned evaluate data/my-bids synthetic/resgan synthetic/unet -o evaluation`

    Example: `unscanned evaluate data/my-bids synthetic/t1w-t2w -o evaluation --source T1 --target T2 --leave-one-out`

    Parameters
    ----------
    dataset
        As for check: the acquired pairs.
    synthetic
        Folders of synthetic volumes, one for each arm, as FOLDER or NAME=FOLDER.
    out
        Folder for scores.csv, slices.csv and evaluation.json.
    source
        Contrast that was synthesized from.
    target
        Contrast that was synthesized.
    layout
        How the dataset is laid out.
    split
        split.json of the run: its test subjects are scored, and a voxelwise regression is fitted on its training
        subjects as a baseline.
    leave_one_out
        For models from elsewhere, that have seen no scan of the dataset: the regression of each subject is fitted on
        all others.
    resample
        Bring volumes on another grid to the target's grid instead of refusing them.
    labels
        Folder of label maps, such as sub-001_dseg.nii.gz, with their names in dseg.tsv: errors by tissue.
    json
        Also write the evaluation to this file.
    """
    from unscanned.evaluation.evaluate import EVALUATION
    from unscanned.evaluation.evaluate import evaluate as run
    from unscanned.files import write_json
    from unscanned.outputs import check_apart

    check_apart(dataset, out)
    _claim_json(json, EVALUATION)
    arms = options.named_folders(synthetic)
    parts = read_split(split) if split is not None else None
    with running.progress() as progress:
        result = run(
            dataset,
            arms,
            out,
            source=source,
            target=target,
            layout=layout,
            subjects=parts["test"] if parts else None,
            training=parts["train"] if parts else (),
            leave_one_out=leave_one_out,
            resample=resample,
            labels=labels,
            progress=progress,
        )
    if json is not None:
        write_json(json, result.content.to_json())
    terminal.say_scores(result)
    terminal.say(f"scores         {result.folder}; next: unscanned report {result.folder} -o report.html")
    terminal.raise_failed_scores(result)


@app.command
def report(
    evaluation: Path,
    *,
    out: Out = Path("report.html"),
    runs: Subset = (),
    cases: Subset = (),
    limit_mb: LimitMb = LIMIT_MB,
) -> None:
    """Write one self-contained HTML page: verdict, a viewer of the volumes, tables, curves, and pictures of every case.

    Example: `unscanned report evaluation -o report.html --runs resgan=runs/resgan`

    Example: `unscanned report evaluation -o report.html --cases sub-002 sub-007`

    Parameters
    ----------
    evaluation
        Folder that evaluate made.
    out
        The HTML file.
    runs
        Runs whose training curves are shown, as NAME=FOLDER.
    cases
        Cases or subjects whose volumes are in the viewer; the first where none is named.
    """
    from unscanned.report.page import write_report

    arms = options.named_folders(runs)
    with running.progress() as progress:
        path = write_report(evaluation, out, runs=arms, cases=cases, limit_mb=limit_mb, progress=progress)
    terminal.say(f"report         {path}")


@app.command
def view(
    files: Annotated[tuple[Path, ...], Parameter(negative="")],
    *,
    out: Out = Path("view.html"),
    open: Annotated[bool, Parameter(negative="--no-open")] = True,
    limit_mb: LimitMb = LIMIT_MB,
) -> None:
    """Look at volumes side by side, linked in three planes: writes a self-contained HTML page and opens it.

    Example: `unscanned view sub-01_T1w.nii.gz sub-01_T2w.nii.gz`

    Example: `unscanned view synthetic/sub-01/anat/sub-01_desc-synthetic_T2w.nii.gz -o sub-01.html --no-open`

    Parameters
    ----------
    files
        NIfTI files, each on whatever grid.
    out
        The HTML file.
    open
        Open the page in the browser; without a display, its path is only printed.
    """
    from unscanned.report.view import write_view

    with running.progress() as progress:
        path = write_view(files, out, limit_mb=limit_mb, progress=progress)
    terminal.say(str(path))
    if open:
        running.browse(path)


@app.command
def reproduce(
    dataset: Path,
    *,
    out: Out,
    arms: Arms = ("adv", "adv-gdl", "resgan", "resgan-acm"),
    settings: File = None,
    given: Given = None,
    json: Json = None,
    dry_run: DryRun = False,
) -> None:
    """Run the reference's experiment: train the arms on one split, synthesize, score, report. Goes on after a break.

    Example: `unscanned reproduce data/ixi -o runs/ixi`

    Example: `unscanned reproduce data/bids -o runs/bids --data.source T1w --data.target T2w --training.epochs 3`

    Parameters
    ----------
    dataset
        As for check.
    out
        Folder for arms, synthetic volumes, scores and report.html.
    json
        Also write the scores to this file.
    """
    if dry_run:
        from unscanned.experiment import arm_settings, estimate_costs

        resolved = arm_settings(arms, settings, options.overrides(given))
        costs = estimate_costs(dataset, resolved)
        for arm, wanted in resolved.items():
            terminal.say_settings(wanted, costs[arm])
        return terminal.say_total(costs)
    from unscanned.evaluation.evaluate import EVALUATION
    from unscanned.experiment import reproduce as run
    from unscanned.files import write_json
    from unscanned.training.start import resolve_run

    _claim_json(json, EVALUATION)
    command = "unscanned " + " ".join(sys.argv[1:])
    # Without an arm, which is refused below, there is no device.
    first = resolve_run(arms[0], settings, options.overrides(given)) if arms else Settings()
    with running.computing(first.training.device) as (progress, stop):
        result = run(
            dataset,
            out,
            arms=arms,
            file=settings,
            overrides=options.overrides(given),
            command=command,
            progress=progress,
            should_stop=stop,
        )
    if json is not None:
        write_json(json, result.evaluation.content.to_json())
    terminal.say_scores(result.evaluation)
    terminal.say(f"report         {result.report}")
    terminal.complain_of_incomplete(result.incomplete)
    terminal.raise_partial(result.failures, None)
    terminal.raise_failed_scores(result.evaluation)
    return None


@app.command
def benchmark(*, workload: Load | None = None, json: Json = None, plot: Path | None = None) -> None:
    """Time inference and training on this machine beside plain PyTorch, MONAI, ONNX Runtime and OpenVINO, in one run.

    Example: `unscanned benchmark --json benchmark.json --plot benchmark.png`

    Parameters
    ----------
    workload
        What is timed.
    json
        Also write all figures to this file.
    plot
        Also draw the cost against size into this image file.
    """
    from unscanned.benchmark import run, show
    from unscanned.benchmark.workload import Workload
    from unscanned.files import write_json

    asked = read(Workload, options.overrides(workload))
    _claim_json(json, json_with("settings", "machine", "floor", "inference", "training", "size"))
    if plot is not None:
        show.check_plot(plot)
    with running.progress() as progress:
        result = run.benchmark(asked, progress=progress)
    terminal.say_lines(show.table(result))
    if json is not None:
        write_json(json, result)
    if plot is not None:
        show.plot(result, plot)


def _claim_json(path: Path | None, is_own: Mark) -> None:
    """Refuse before the work begins a file for the results that holds anything but such results."""
    if path is not None:
        claim(path, is_own, "results of the same command")
