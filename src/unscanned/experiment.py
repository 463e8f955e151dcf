"""The reference's experiment in one call: every arm trained on one split, synthesized, scored and shown."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from os.path import abspath
from pathlib import Path
from typing import Any

from unscanned.cluster.cases import in_order, map_cases
from unscanned.cluster.workers import Cluster, open_cluster
from unscanned.datasets.pairs import Pair, Selection, select_pairs
from unscanned.datasets.split import split_subjects
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import SettingsError, UnscannedError, listed
from unscanned.evaluation.cases import BASELINES
from unscanned.evaluation.evaluate import Evaluation, claim_evaluation, evaluate
from unscanned.evaluation.tissues import find_labels
from unscanned.files import read_json, write_json
from unscanned.machine.device import choose_device
from unscanned.machine.provenance import environment, utc_now
from unscanned.outputs import check_apart, claim, json_with, nothing
from unscanned.progress import Progress, interruptible, labelled, shares
from unscanned.report.page import claim_report, write_report
from unscanned.settings import Settings, check, decisive, difference, to_dict
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import synthesize
from unscanned.training.cost import MEASURE_SECONDS, Cost, estimate_cost
from unscanned.training.effort import SCORED, run_costs, synthesis_cost
from unscanned.training.prepare import prepare, refuse_other_cases
from unscanned.training.run import Trained, check_alone, check_settings, train
from unscanned.training.start import resolve_run

__all__ = ["ARMS", "Reproduced", "arm_settings", "claim_folder", "estimate_costs", "reproduce", "training_settings"]

ARMS = ("adv", "adv-gdl", "resgan", "resgan-acm")
"""The arms of the reference, in its order; each is a preset."""


@dataclass(frozen=True)
class Reproduced:
    """What the experiment made.

    Attributes:
        evaluation: Scores of all arms and baselines.
        report: The HTML file.
        failures: Cases that were refused, by arm or step, with the reason.
        incomplete: What each case lacks that was left out because it has not both contrasts.
    """

    evaluation: Evaluation
    report: Path
    failures: dict[str, UnscannedError]
    incomplete: dict[str, str]


@draws_progress
def reproduce(
    dataset: str | Path,
    out: str | Path,
    *,
    arms: Sequence[str] = ARMS,
    seeds: Sequence[int] = (),
    folds: int = 1,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    labels: str | Path | None = None,
    command: str | None = None,
    cluster: Cluster | str | None = None,
    progress: Progress | None = AUTOMATIC,
    should_stop: Callable[[], bool] = lambda: False,
) -> Reproduced:
    """Train the arms on one split, synthesize and score the test subjects, and write the report.

    Interrupted and called again, it goes on where it was: finished arms and volumes are not made again. The chain's
    first stage is the arm `resgan` itself where that is among the arms, since it is the same training.

    With seeds, with folds or with both, each arm is several trainings. A subject's score in an arm is the mean over the
    seeds, and always comes from models that were not trained on it.

    Args:
        dataset: Folder or CSV of paired scans.
        out: Gets prepared/, arms/, synthetic/, evaluation/, report.html and reproduce.json.
        arms: Presets.
        seeds: Train each arm with each of these seeds in the place of `training.seed`; none trains it once.
        folds: Divide all subjects into so many parts, and train each arm once for each part that tests: see
            `split_subjects`. 1 takes the one split of the settings.
        file: TOML settings for all arms.
        overrides: Settings for all arms, as for `resolve`.
        labels: Label maps of tissues, as for `evaluate`.
        command: What the user typed, for the record.
        cluster: Where to work, as for `open_cluster`: trainings run side by side, one on each worker, and a chain
            waits for the one that is its first stage. A worker that is lost leaves its last checkpoint, from which
            another one goes on. None works in this process.
        progress: Called with (done, total, label). Without it a bar, in a terminal and in Jupyter; None draws none.
        should_stop: Asked after each training step, and whenever other work tells how far it is.

    Raises:
        SettingsError: The arms would not share data, grid and split, two are the same, one is named twice, or none
            is; a seed is named twice or out of bounds; no subject is left to test on; `out` is the dataset, a run,
            another experiment's, or one with other folds or without seeds; or as for `check_settings` for any arm.
            Nothing was written.
        DatasetError: As for `select_pairs`, `split_subjects` and `find_labels`. Nothing was written.
        UnscannedError: As for `train`, `evaluate` and `write_report`.
    """
    out = Path(out)
    if labels is not None:
        find_labels(labels)
    of_arm = arm_settings(arms, file, overrides)
    settings = training_settings(of_arm, seeds, folds)
    check_apart(dataset, out)
    first = next(iter(settings.values()))
    for wanted in settings.values():
        check_settings(wanted)
        check_alone(wanted)
    found = select_pairs(dataset, **to_dict(first.data))
    splits = {place: _split(found, wanted) for place, wanted in settings.items()}
    apart = [*splits.values()][:folds]
    split: dict[str, Any] = apart[0] if folds == 1 else {"folds": apart}
    tested = set().union(*(fold["test"] for fold in apart))
    trained_on = {subject for parts in splits.values() for part in ("train", "validation") for subject in parts[part]}
    used = [pair for pair in found.pairs if pair.subject in trained_on]
    claim_folder(out)
    _claim_experiment(out, split, splits, used, first)
    failures: dict[str, UnscannedError] = {}
    parts = _parts(progress, settings, found.pairs, splits, side_by_side=cluster is not None)
    kind = "arm" if len(settings) == len(of_arm) else "training"
    names = {
        place: f"{kind} {number} of {len(settings)}, {_words(place)}: " for number, place in enumerate(settings, 1)
    }

    def watched(part: str, label: str) -> Progress | None:
        return labelled(interruptible(parts[part], should_stop, out), label)

    record: dict[str, Any] = {
        "command": command,
        "dataset": str(dataset),
        "started": utc_now(),
        "environment": environment(),
        "arms": {},
    }
    with nullcontext() if cluster is None else open_cluster(cluster, device=first.training.device) as workers:
        if workers is None:
            trainings = _train_here(dataset, out, settings, parts, names, should_stop)
        else:
            prepare(used, out / "prepared", first.prepare, cluster=workers)  # once, not by each training
            trainings = _train_there(dataset, out, settings, workers, watched("train", "training: "))
        for arm, (trained, seconds) in trainings.items():
            failures |= trained.failures
            record["arms"][arm] = {
                "stages": trained.stages,
                "seconds_this_call": seconds,
                "settings": to_dict(settings[arm]),
            }
        write_json(out / "split.json", split)
        for arm, wanted in settings.items():
            began = time.monotonic()
            device = choose_device(wanted.training.device if workers is None else "cpu")
            model = load_model(out / "arms" / arm / "model", device)
            # The dataset says which contrast a test scan is: one that looks unusual is scored, not lost, and stamped.
            made = synthesize(
                model,
                [(pair.source, pair.case) for pair in found.pairs if pair.subject in splits[arm]["test"]],
                out / "synthetic" / arm,
                renew=True,
                force=True,
                cluster=workers,
                progress=watched(f"synthesize {arm}", f"{names[arm]}synthesis, "),
            )
            failures |= {f"{arm}: {scan}": error for scan, error in made.failures.items()}
            record["arms"][arm]["synthesis_seconds_this_call"] = time.monotonic() - began
        members = {arm: [f"{arm}/seed-{seed}" for seed in seeds] for arm in of_arm}
        evaluation = evaluate(
            dataset,
            {_words(place): out / "synthetic" / place for arm in of_arm for place in members[arm] or [arm]},
            out / "evaluation",
            source=first.data.source,
            target=first.data.target,
            layout=first.data.layout,
            subjects=sorted(tested),
            training=apart[0]["train"] if folds == 1 else (),
            folds=apart if folds > 1 else (),
            seeds={arm: [*map(_words, places)] for arm, places in members.items()} if seeds else None,
            percentile=first.prepare.percentile,
            resample=first.prepare.resample,
            labels=labels,
            cluster=workers,
            progress=watched("score", "scores, "),
        )
    record |= {"finished": utc_now(), "split": split, "incomplete": found.incomplete}
    write_json(out / "reproduce.json", record)
    places, each = [*settings], len(settings) // len(of_arm)
    by_arm = [places[start : start + each] for start in range(0, len(places), each)]
    report = write_report(
        out / "evaluation",
        out / "report.html",
        runs={_words(first): out / "arms" / first for first, *_ in by_arm},
        further={_words(first): [out / "arms" / place for place in rest] for first, *rest in by_arm},
        details={"How this was made": record},
        progress=watched("report", "report, "),
    )
    return Reproduced(evaluation, report, failures, found.incomplete)


Trainings = dict[str, tuple[Trained, float]]
"What each training made, by its place below arms/, and the seconds that it took in this call."


def _train_here(
    dataset: str | Path,
    out: Path,
    settings: Mapping[str, Settings],
    parts: Mapping[str, Progress | None],
    names: Mapping[str, str],
    should_stop: Callable[[], bool],
) -> Trainings:
    """Train one after the other."""
    trainings: Trainings = {}
    for arm, wanted in settings.items():
        began = time.monotonic()
        trained = train(
            dataset,
            out / "arms" / arm,
            wanted,
            cache=out / "prepared",
            first_stage=_first_stage(arm, settings, out),
            progress=labelled(parts[f"train {arm}"], f"{names[arm]}training, "),
            should_stop=should_stop,
        )
        trainings[arm] = trained, time.monotonic() - began
    return trainings


def _train_there(
    dataset: str | Path,
    out: Path,
    settings: Mapping[str, Settings],
    cluster: Cluster,
    progress: Progress | None,
) -> Trainings:
    """Train side by side; a training that fails stops no other, and its error is raised when all have ended."""
    arms = list(settings)
    folder = Path(abspath(out))
    first_stages = [_first_stage(arm, settings, folder) for arm in arms]
    cases = [(arm, _with_absolute_paths(settings[arm]), first) for arm, first in zip(arms, first_stages, strict=True)]
    number_of = {folder / "arms" / arm / "model": number for number, arm in enumerate(arms)}
    after = {number: number_of[first] for number, first in enumerate(first_stages) if first is not None}
    on_worker = partial(_training_on_worker, abspath(dataset), folder)
    outcomes = in_order(
        map_cases(
            None,
            cases,
            names=[*map(_words, arms)],
            cluster=cluster,
            on_worker=on_worker,
            folder=folder,
            after=after,
            progress=progress,
        )
    )
    ended = dict(zip(arms, outcomes, strict=True))
    return {
        arm: (replace(outcome.get(), model=out / "arms" / arm / "model"), outcome.seconds)
        for arm, outcome in ended.items()
    }


def _with_absolute_paths(settings: Settings) -> Settings:
    """Return settings whose paths mean the same to a worker that was started in another folder."""
    split, labels, start = settings.split.file, settings.simulated.labels, settings.training.start
    changes: dict[str, dict[str, Any]] = {}
    if split is not None:
        changes["split"] = {"file": abspath(split)}
    if labels is not None:
        changes["simulated"] = {"labels": abspath(labels)}
    if start is not None and Path(start).is_dir():  # else a name
        changes["training"] = {"start": abspath(start)}
    return settings.change(**changes)


def _training_on_worker(
    dataset: str, out: Path, device: str
) -> Callable[[tuple[str, Settings, Path | None], Progress | None], Trained]:
    return partial(_train_arm, dataset=dataset, out=out, device=device)


def _train_arm(
    case: tuple[str, Settings, Path | None], progress: Progress | None, *, dataset: str, out: Path, device: str
) -> Trained:
    arm, settings, first_stage = case
    wanted = settings.change(training={"device": device})
    return train(
        dataset, out / "arms" / arm, wanted, cache=out / "prepared", first_stage=first_stage, progress=progress
    )


def _parts(
    progress: Progress | None,
    settings: Mapping[str, Settings],
    pairs: Sequence[Pair],
    splits: Mapping[str, Mapping[str, list[str]]],
    *,
    side_by_side: bool,
) -> dict[str, Progress | None]:
    """Return the progress of each part of an experiment by its name; all arms are trained before any is tested."""
    costs: dict[str, float] = {}
    made: dict[str, float] = {}
    for arm, wanted in settings.items():
        training, validation, test = (
            sum(pair.subject in splits[arm][part] for pair in pairs) for part in ("train", "validation", "test")
        )
        made[f"synthesize {arm}"] = test * synthesis_cost(wanted)
        has_first_stage = _first_stage(arm, settings, Path()) is not None
        costs[f"train {arm}"] = sum(run_costs(wanted, training, validation, has_first_stage=has_first_stage).values())
    if side_by_side:
        costs = {"train": sum(costs.values())}
    costs |= made
    tests = [len({*split["test"]}) for split in splits.values()]
    shown = SCORED * (sum(tests) + max(tests) * len(BASELINES))
    costs |= {"score": shown, "report": shown}
    return dict(zip(costs, shares(progress, [*costs.values()]), strict=True))


def arm_settings(
    arms: Sequence[str], file: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> dict[str, Settings]:
    """Return the settings of each arm of an experiment.

    Raises:
        SettingsError: As for `reproduce`, but for what depends on the dataset.
    """
    if not arms or len(set(arms)) < len(arms):
        raise SettingsError("each arm is to be named once", where="arms", found=", ".join(arms) or "none")
    settings = {arm: resolve_run(arm, file, overrides) for arm in arms}
    _refuse_twins(settings)
    _refuse_unlike(settings)
    return settings


def training_settings(
    settings: Mapping[str, Settings], seeds: Sequence[int] = (), folds: int = 1
) -> dict[str, Settings]:
    """Return the settings of each training of an experiment by its place below arms/.

    Args:
        settings: Of each arm, as `arm_settings` returns them.
        seeds: As for `reproduce`.
        folds: As for `reproduce`.

    Raises:
        SettingsError: A seed is out of bounds or named twice, there is no fold, or the settings have a file of subjects
            beside folds.

    Example:
        >>> list(training_settings({"resgan": Settings()}, seeds=[0, 1], folds=2))
        ['resgan/seed-0/fold-1', 'resgan/seed-0/fold-2', 'resgan/seed-1/fold-1', 'resgan/seed-1/fold-2']
    """
    if len(set(seeds)) < len(seeds):
        raise SettingsError("each seed is to be named once", where="seeds", found=listed([*map(str, seeds)]))
    chosen: list[int | None] = [*seeds] or [None]
    made: dict[str, Settings] = {}
    for arm, wanted in settings.items():
        for seed in chosen:
            seeded = wanted if seed is None else wanted.change(training={"seed": seed})
            place = arm if seed is None else f"{arm}/seed-{seed}"
            if folds == 1:
                made[place] = seeded
                continue
            for fold in range(1, max(folds, 1) + 1):
                own = seeded.change(split={"folds": folds, "fold": fold})
                check(own)
                made[f"{place}/fold-{fold}"] = own
    return made


def estimate_costs(
    dataset: str | Path, settings: Mapping[str, Settings], *, seconds: float = MEASURE_SECONDS
) -> dict[str, Cost]:
    """Return what each arm costs on this machine; a chain that takes its first stage from another arm costs less.

    Args:
        dataset: Folder or CSV of paired scans.
        settings: Of each arm, as `arm_settings` returns them.
        seconds: About how long to measure in all.

    Raises:
        UnscannedError: As for `estimate_cost`.
    """
    return {
        arm: estimate_cost(
            dataset,
            wanted,
            seconds=seconds / len(settings),
            has_first_stage=_first_stage(arm, settings, Path()) is not None,
        )
        for arm, wanted in settings.items()
    }


def claim_folder(out: Path) -> None:
    """Refuse a folder in which an experiment would replace what is not one's.

    Raises:
        SettingsError: It holds a run of `train`, or a file of another kind under the name of an output.
    """
    experiment = "an earlier experiment, or nothing"
    for name in ("settings.json", "log.jsonl", "model", "stage-1"):
        claim(out / name, nothing, "no run of unscanned train", do="Choose a folder of its own.")
    claim(out / "split.json", lambda path: _is_split(read_json(path)), experiment)
    claim(out / "reproduce.json", json_with("arms", "dataset", "environment"), experiment)
    claim_report(out / "report.html")
    claim_evaluation(out / "evaluation")


def _claim_experiment(
    out: Path,
    split: Mapping[str, Any],
    splits: Mapping[str, Mapping[str, list[str]]],
    pairs: Sequence[Pair],
    settings: Settings,
) -> None:
    """Refuse a folder with the experiment of other subjects, scans, seeds or folds, before any of it is replaced."""
    kinds = {_kind(place) for place in splits}
    begun = sorted(path.parent for depth in _DEPTHS for path in (out / "arms").glob(f"{depth}/settings.toml"))
    for folder in begun:
        place = folder.relative_to(out / "arms").as_posix()
        if _kind(place) not in kinds:
            raise SettingsError(
                "the folder holds an experiment with other seeds or folds",
                where=folder,
                found=f"a training of {_words(place)}",
                expected=f"trainings such as {_words(next(iter(splits)))}",
                do="Choose another folder, or the options that this one was begun with.",
            )
    same = "the same subjects in the split"
    do = "Choose another folder, or the dataset and split that this one was begun with."
    claim(out / "split.json", json_with(**split), same, do=do)
    for path in (folder / "split.json" for folder in begun):
        own = splits.get(path.parent.relative_to(out / "arms").as_posix(), split)
        claim(path, json_with(**own), same, do=do)
    refuse_other_cases(pairs, out / "prepared", settings.prepare)


_DEPTHS = ("*", "*/*", "*/*/*")
"Where trainings lie below arms/: the arm, its seed, its fold."


def _kind(place: str) -> str:
    """Return what a training's place below arms/ consists of beside the arm."""
    return re.sub(r"-\d+", "", place.partition("/")[2])


def _words(place: str) -> str:
    """Return a training in words, such as "resgan, seed 0, fold 2"."""
    arm, *rest = place.split("/")
    return ", ".join([arm, *(part.replace("-", " ") for part in rest)])


def _refuse_twins(settings: Mapping[str, Settings]) -> None:
    for (one_arm, one), (another_arm, another) in combinations(settings.items(), 2):
        if decisive(one) == decisive(another) and one.training.epochs == another.training.epochs:
            raise SettingsError(
                "two arms would be the same training",
                where=f"{one_arm} and {another_arm}",
                do="Give one of them, and settings that do not override what the presets differ in: the settings.toml "
                "of a run names them all.",
            )


def _refuse_unlike(settings: Mapping[str, Settings]) -> None:
    first = next(iter(settings.values()))
    for arm, other in settings.items():
        for table in ("data", "prepare", "split"):
            if getattr(other, table) != getattr(first, table):
                raise SettingsError(
                    "the arms differ in what they are compared on",
                    where=arm,
                    found=difference(
                        {table: to_dict(getattr(first, table))},
                        {table: to_dict(getattr(other, table))},
                        second="here",
                    ),
                    expected="the same in all arms",
                    do="Give these settings once, for all arms.",
                )


def _is_split(content: Any) -> bool:
    """Whether a file holds the split of an experiment, or those of its folds."""
    splits = content.get("folds", [content]) if isinstance(content, dict) else [content]
    return all(isinstance(split, dict) and {"train", "validation", "test"} <= split.keys() for split in splits)


def _split(found: Selection, settings: Settings) -> dict[str, list[str]]:
    split = split_subjects(found.pairs, **to_dict(settings.split))
    if not split["test"]:
        raise SettingsError(
            "no subject is left to score the arms on",
            where=settings.split.file or "split.test",
            found="0 test subjects",
            expected="1 or more",
            do="Set split.test, or list test subjects in the file of split.file.",
        )
    return split


def _first_stage(arm: str, settings: Mapping[str, Settings], out: Path) -> Path | None:
    """Return the model of an earlier arm that is the first stage of this arm's chain, if there is one."""
    if settings[arm].context.stages == 1:
        return None
    wanted = _alike(settings[arm])
    for other, candidate in settings.items():
        if other == arm:
            return None
        if candidate.context.stages == 1 and _alike(candidate) == wanted:
            return out / "arms" / other / "model"
    return None


def _alike(settings: Settings) -> tuple[Any, ...]:
    """Return what two trainings share of which one is the first stage of the other's chain."""
    decides = {key: value for key, value in decisive(settings).items() if key != "context"}
    return decides, settings.training.epochs, settings.split
