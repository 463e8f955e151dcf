"""Evaluation: scores, the report, and a look at volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unscanned.cli import running, terminal
from unscanned.cli import settings as options
from unscanned.cli.verbs.common import (
    Cluster,
    InLayout,
    Json,
    Labels,
    LimitMb,
    Out,
    Resample,
    Source,
    Subset,
    Target,
    app,
    claim_json,
)
from unscanned.datasets.split import read_split
from unscanned.report import LIMIT_MB


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
    labels: Labels = None,
    cluster: Cluster = None,
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
    json
        Also write the evaluation to this file.
    """
    from unscanned.evaluation.evaluate import EVALUATION
    from unscanned.evaluation.evaluate import evaluate as run
    from unscanned.files import write_json
    from unscanned.outputs import check_apart

    check_apart(dataset, out)
    claim_json(json, EVALUATION)
    arms = options.named_folders(synthetic)
    parts = read_split(split) if split is not None else None
    with running.workers(cluster, shared=out) as workers, running.progress() as progress:
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
            cluster=workers,
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
