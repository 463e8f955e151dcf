"""Data: fetch, simulate, check, mend and prepare it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from unscanned.cli import running, terminal
from unscanned.cli import settings as options
from unscanned.cli.verbs.common import (
    PRESETS,
    Cluster,
    DrawnFrom,
    DryRunOfSettings,
    File,
    GivenToPrepare,
    InLayout,
    Json,
    Out,
    Preset,
    Resample,
    Source,
    Subset,
    Target,
    app,
    claim_json,
)
from unscanned.errors import UnscannedError
from unscanned.outputs import begins_with, claim, json_with
from unscanned.settings import WRITTEN_BY


@app.command
def fetch(
    what: str,
    url: str | None = None,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    sha256: str | None = None,
    name: str | None = None,
    contrasts: Subset = (),
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
        Of ixi, any of PD, T2, T1; unset takes PD and T2.
    keep_archive
        Keep the .tar files of ixi after unpacking.
    """
    from unscanned.errors import SettingsError

    if what == "model":
        for word, is_given in (("--contrasts", bool(contrasts)), ("--keep-archive", keep_archive)):
            if is_given:
                raise SettingsError("only for ixi", where=word, do="See unscanned fetch --help.")
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
    contrasts = contrasts or ("PD", "T2")
    with running.progress() as progress:
        folder = fetch_ixi(out, contrasts=contrasts, keep_archive=keep_archive, progress=progress)
    terminal.say(f"{' and '.join(contrasts)} are in {folder}; next: unscanned check {folder}")


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
    patients: int = 0,
    spread: DrawnFrom = None,
) -> None:
    """Write simulated PD, T2, T1 and FLAIR volumes as a BIDS dataset, from label maps or from heads of its own.

    Example: `unscanned simulate -o data/heads --subjects 8`

    Example: `unscanned simulate -o data/heads --labels head-labels --subjects 28 --per-anatomy 2`

    Example: `unscanned simulate -o data/wide --subjects 8 --physics wide --contrasts T1 T2`

    Example: `unscanned simulate -o brains --physics wide --contrasts T1 T2 --spread.brain 1`

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
    patients
        With --clean, write the mean over so many patients with the same tissues too, about a second each.
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
            patients=patients,
            spread=options.overrides(spread) or None,
            progress=progress,
        )
    made = "1 subject is" if subjects == 1 else f"{subjects} subjects are"
    terminal.say(f"{made} in {folder}; next: unscanned check {folder}")


@app.command
def check(
    dataset: Path,
    *,
    source: Source = "PD",
    target: Target = "T2",
    layout: InLayout = "auto",
    resample: Resample = False,
    preset: Annotated[str, Parameter(name=["--preset", "-p"], help=f"{PRESETS}.")] = "resgan",
    propose: Path | None = None,
    measure_s: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=3600))] = 20.0,
    cluster: Cluster = None,
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

    claim_json(json, json_with("dataset", "source", "target", "usable", "unusable", "findings"))
    start = options.resolve(preset, None, None)
    if propose is not None:
        claim(propose, begins_with(WRITTEN_BY), "settings that unscanned wrote")
    with running.workers(cluster) as workers, running.progress() as progress:
        found = examine(
            dataset,
            source=source,
            target=target,
            layout=layout,
            resample=resample,
            cluster=workers,
            progress=progress,
        )
    terminal.say_examination(found)
    proposal = proposal_of(found, layout=layout, multiple=start.training.patch)
    cost = None
    if proposal is not None:
        terminal.say_proposal(proposal, dataset, propose, preset)
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
    cluster: Cluster = None,
    dry_run: DryRunOfSettings = False,
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
    from unscanned.training.start import resolve_run

    resolved = resolve_run(preset, settings, options.overrides(given))
    if dry_run:
        return terminal.say_settings(resolved)
    from unscanned.datasets.pairs import select_pairs
    from unscanned.outputs import check_apart
    from unscanned.training import prepare as module

    check_apart(dataset, out)
    with running.workers(cluster, shared=out) as workers, running.progress() as progress:
        found = select_pairs(dataset, **resolved.data.model_dump())
        cases, failures = module.prepare(found.pairs, out, resolved.prepare, cluster=workers, progress=progress)
    terminal.say(f"{len(cases)} cases are prepared in {out}")
    terminal.complain_of_incomplete(found.incomplete)
    terminal.raise_partial({**found.refused, **failures}, len(found.pairs) + len(found.refused))
    return None
