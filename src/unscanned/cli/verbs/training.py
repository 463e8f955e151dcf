"""Training: one arm, the whole experiment, and what they cost."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from unscanned.cli import running, terminal
from unscanned.cli import settings as options
from unscanned.cli.verbs.common import (
    Arms,
    Cluster,
    DryRun,
    File,
    Folds,
    Given,
    Json,
    Labels,
    Load,
    Out,
    Seeds,
    TrainPreset,
    app,
    claim_json,
)
from unscanned.machine.started import is_rank, tells
from unscanned.outputs import json_with
from unscanned.schema import read
from unscanned.settings import Settings


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

    Example: `unscanned train data/ixi -o runs/resgan --training.devices 4`

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
    from unscanned.training.run import check_settings, train

    if resolved.training.devices > 1 and not is_rank():
        from unscanned.cli.devices import train_on_devices

        check_settings(resolved)
        return train_on_devices(dataset, out, resolved)
    with running.computing(resolved.training.device) as (progress, stop):
        trained = train(dataset, out, resolved, progress=progress, should_stop=stop)
    if tells():
        terminal.say(f"model {trained.model}; next: unscanned synthesize {trained.model} SCAN -o OUT")
        terminal.complain_of_incomplete(trained.incomplete)
    terminal.raise_partial(trained.failures, None)
    return None


@app.command
def reproduce(
    dataset: Path,
    *,
    out: Out,
    arms: Arms = ("adv", "adv-gdl", "resgan", "resgan-acm"),
    seeds: Seeds = (),
    folds: Folds = 1,
    settings: File = None,
    given: Given = None,
    labels: Labels = None,
    cluster: Cluster = None,
    json: Json = None,
    dry_run: DryRun = False,
) -> None:
    """Run the reference's experiment: train the arms on one split, synthesize, score, report. Goes on after a break.

    Example: `unscanned reproduce data/ixi -o runs/ixi`

    Example: `unscanned reproduce data/ixi -o runs/ixi --arms resgan strong --seeds 0 1 2 --folds 5 --cluster local:2`

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
        from unscanned.evaluation.tissues import find_labels
        from unscanned.experiment import arm_settings, estimate_costs, training_settings

        if labels is not None:
            find_labels(labels)
        of_arm = arm_settings(arms, settings, options.overrides(given))
        resolved = training_settings(of_arm, seeds, folds)
        each = len(resolved) // len(of_arm)
        shown = dict([*resolved.items()][::each])
        costs = estimate_costs(dataset, shown)
        for place, wanted in shown.items():
            terminal.say_settings(wanted, costs[place])
        return terminal.say_total(costs, each=each)
    from unscanned.evaluation.evaluate import EVALUATION
    from unscanned.experiment import reproduce as run
    from unscanned.files import write_json
    from unscanned.training.start import resolve_run

    claim_json(json, EVALUATION)
    command = "unscanned " + shlex.join(sys.argv[1:])
    # Without an arm, which is refused below, there is no device.
    first = resolve_run(arms[0], settings, options.overrides(given)) if arms else Settings()
    device = first.training.device
    with (
        running.workers(cluster, device=device, shared=out) as workers,
        running.computing(device if cluster is None else "cpu") as (progress, stop),
    ):
        result = run(
            dataset,
            out,
            arms=arms,
            seeds=seeds,
            folds=folds,
            file=settings,
            overrides=options.overrides(given),
            labels=labels,
            command=command,
            cluster=workers,
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
    claim_json(json, json_with("settings", "machine", "floor", "inference", "training", "size"))
    if plot is not None:
        show.check_plot(plot)
    with running.progress() as progress:
        result = run.benchmark(asked, progress=progress)
    terminal.say_lines(show.table(result))
    if json is not None:
        write_json(json, result)
    if plot is not None:
        show.plot(result, plot)
