"""Score arms against the acquired target, on the same subjects, the same grid and the same scale.

The target of each case is divided by a percentile of its own inside its head ("unit scale"): that of the arms' models,
99.9 by default. A synthetic volume is divided by the scale in its sidecar, which its model knew before it saw the case.
Each metric says which scale it takes: unit scale, or z-scores, (unit - mean) / std with the constants of the training
set, as in the reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os.path import abspath
from pathlib import Path

from unscanned.cluster.cases import in_order, map_cases
from unscanned.cluster.workers import Cluster, open_cluster
from unscanned.datasets.layout import Layout, bids_suffix
from unscanned.datasets.pairs import Pair, select_pairs, with_absolute_paths
from unscanned.display import AUTOMATIC, draws_progress, in_a_line
from unscanned.errors import BUG, DatasetError, SettingsError, UnscannedError, listed
from unscanned.evaluation.baselines import JointSums, Regression
from unscanned.evaluation.cases import (
    BASELINES,
    CEILINGS,
    find_ceilings,
    find_synthetic,
    list_volumes,
    load_images,
    read_intensity,
    training_pair,
)
from unscanned.evaluation.metrics import METRICS
from unscanned.evaluation.scores import REGIONS, score_case
from unscanned.evaluation.tables import (
    comparisons,
    html_scores,
    over_seeds,
    scores_csv,
    slices_csv,
    spreads,
    summaries,
)
from unscanned.evaluation.tissues import Labels, find_labels, own_labels
from unscanned.files import lock, write_json, write_text
from unscanned.formats.evaluation import (
    LIMIT_BYTES,
    Case,
    Constants,
    EvaluationRecord,
    Failure,
    Score,
    SliceErrors,
    compared_arms,
)
from unscanned.formats.sidecar import Intensity
from unscanned.machine.crash import of_one
from unscanned.machine.provenance import utc_now, version
from unscanned.outputs import begins_with, claim, json_with
from unscanned.progress import Progress, begin
from unscanned.volumes.intensity import UNIT_PERCENTILE

__all__ = ["EVALUATION", "Evaluation", "claim_evaluation", "evaluate"]

EVALUATION = json_with("definitions", "scores", "comparisons", "cases", limit_bytes=LIMIT_BYTES)
"The mark of evaluation.json."

_OUTPUTS = {
    "scores.csv": begins_with("case,subject,session,arm,region,status,"),
    "slices.csv": begins_with("case,arm,plane,index,"),
    "evaluation.json": EVALUATION,
}

Files = list[tuple[Pair, dict[str, Path | None]]]
"The cases to score, with the file of each arm; None where it is missing."


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Scores of all arms, as they stand in the files of `folder`. A notebook shows them as tables.

    Attributes:
        folder: Holds scores.csv, slices.csv and evaluation.json.
        arms: Baselines first, then the limits of a simulated target if known, then the arms in the order given.
        scores: One entry for each case, arm and region that was scored.
        failures: One entry for each case and arm that was not.
        content: What evaluation.json says, summaries and comparisons included.
    """

    folder: Path
    arms: tuple[str, ...]
    scores: tuple[Score, ...]
    failures: tuple[Failure, ...]
    content: EvaluationRecord

    def __repr__(self) -> str:
        count = len({score.subject for score in self.scores})
        failed = f", {len(self.failures)} failed" if self.failures else ""
        scored = f"{', '.join(self.arms)}; {count} subject{'s' * (count != 1)}{failed}"
        return in_a_line(f"Evaluation({scored}, {self.folder})")

    def _repr_html_(self) -> str:
        """Return the tables that a notebook shows."""
        return html_scores(self.content)

    @property
    def met_bug(self) -> bool:
        """Whether something that nobody foresaw kept a case from being scored."""
        return any(BUG in text for text in (*(row.reason for row in self.failures), *self.content.warnings))


@draws_progress
def evaluate(
    dataset: str | Path,
    synthetic: Mapping[str, str | Path],
    out: str | Path,
    *,
    source: str = "PD",
    target: str = "T2",
    layout: Layout = "auto",
    subjects: Sequence[str] | None = None,
    training: Sequence[str] = (),
    percentile: float | None = None,
    leave_one_out: bool = False,
    folds: Sequence[Mapping[str, Sequence[str]]] = (),
    seeds: Mapping[str, Sequence[str]] | None = None,
    resample: bool = False,
    labels: str | Path | None = None,
    cluster: Cluster | str | None = None,
    progress: Progress | None = AUTOMATIC,
) -> Evaluation:
    """Score the synthetic volumes of one or more arms and write scores.csv, slices.csv and evaluation.json.

    A case that fails does not stop the others; see `Evaluation.failures`. The source itself is always scored as the arm
    `source`; with training subjects, a voxelwise regression fitted on them is scored as the arm `regression`, and for a
    model from elsewhere one fitted on the other scored subjects, if `leave_one_out` says so. Where
    `simulate` made the dataset, errors are counted in each tissue too, and where it did so with `--clean`, the limits
    that it wrote are scored as the arms of `CEILINGS`.

    Args:
        dataset: Folder or CSV file with the acquired pairs.
        synthetic: Folder of synthetic volumes for each arm, by the arm's name.
        out: Folder for the three files.
        source: Source contrast.
        target: Target contrast.
        layout: Layout of the dataset; see `select_pairs`.
        subjects: Subjects to score; when unset, those for which any arm has a volume.
        training: Subjects that the arms were trained on, never scored.
        leave_one_out: Fit the regression of each subject on all other subjects that are scored, for arms that were
            trained on none of this dataset.
        folds: Of a cross-validation: splits as `split_subjects` returns them. Each volume comes from a model that was
            trained in the fold that tests its subject; the regression of the subject is fitted on that fold's training
            subjects.
        seeds: Of arms that were trained with several seeds: the arms in `synthetic` of its seeds by the arm's name. A
            subject's score in the arm is the mean over its seeds, and the arm alone is compared with others; the spread
            over seeds is told beside.
        percentile: Percentile inside the head that becomes 1: the models' own. When unset, the one that the sidecars of
            the volumes name, or 99.9 where none does.
        resample: Whether an image on another grid than the target's is resampled to it.
        labels: Folder of label maps of tissues, `<case>_dseg.nii.gz`, on the targets' grids, with their names in
            dseg.tsv; errors are then counted in each tissue too. When unset, those that `simulate` wrote, if any.
        cluster: Where to score the cases, as for `open_cluster`; None scores them in this process.
        progress: Called with (done, total, case). Without it a bar, in a terminal and in Jupyter; None draws none.

    Raises:
        SettingsError: No arm, an arm with the name of a baseline, a sidecar that names another percentile, a file in
            `out` that is no evaluation's, or more than one of training subjects, folds and `leave_one_out`.
        DatasetError: No case to score, none that can be, a subject that is both trained on and scored, or no label maps
            in their folder.
        BusyError: Another process writes into `out`.
        ResourceError: As for `map_cases`.
    """
    seeds = {} if seeds is None else seeds
    _check_arms([*synthetic, *seeds], synthetic)
    known = [f"training subjects too: {listed(sorted(training))}"] * bool(training) + ["folds too"] * bool(folds)
    if leave_one_out + len(known) > 1:
        raise SettingsError(
            "two sets of subjects to fit the regression on",
            where="leave_one_out" if leave_one_out else "folds",
            found=known[0],
            expected="one of them",
            do="Leave out the split for a model that was trained on other data.",
        )
    claim_evaluation(out)
    named = labels
    labels = own_labels(dataset) if labels is None else labels
    tissues = None if labels is None else find_labels(labels)
    folders = ", ".join(map(str, synthetic.values()))
    found = select_pairs(dataset, source=source, target=target, layout=layout)
    pairs = found.pairs
    volumes = {arm: list_volumes(folder) for arm, folder in synthetic.items()}
    files, failures = _find_files(pairs, volumes, target, subjects)
    failures += [
        Failure(case=case, arm="target", reason=str(error))
        for case, error in found.refused.items()
        if any(name.startswith(f"{case}_") for names in volumes.values() for name in names)
    ]
    if subjects is not None and not subjects:
        raise DatasetError(
            "no case to score", where=dataset, found="no test subject", do="Give a split that tests some subjects."
        )
    if not files:
        raise DatasetError(
            "no case to score",
            where=folders,
            expected=f"files such as {pairs[0].case}_desc-synthetic_{bids_suffix(target)}.nii.gz",
            do="Check the folders of the arms, and that their names match the subjects of the dataset.",
        )
    unlabelled = _without_labels(files, named, tissues)
    expected = {pair.subject for pair, _ in files}.union(subjects or ())
    for fold in folds or [{"train": training, "test": sorted(expected)}]:
        _check_split(expected.intersection(fold["test"]), fold["train"])
    intensities = _intensities(files)
    percentile = _percentile(intensities, percentile)
    fitted_on = set(training).union(*(fold["train"] for fold in folds))
    if leave_one_out:
        fitted_on = {pair.subject for pair, _ in files}
    trained = [pair for pair in pairs if pair.subject in fitted_on]
    total = len(trained) + len(files)
    with lock(out), contextlib.nullcontext() if cluster is None else open_cluster(cluster, shared=out) as workers:
        subjects_scored = {pair.subject for pair, _ in files}
        regressions, warnings = _fit(
            trained, subjects_scored, percentile, resample, leave_one_out, folds, workers, _part(progress, 0, total)
        )
        own = regressions if leave_one_out or folds else {}
        shared = None if own else next(iter(regressions.values()), None)
        warnings += unlabelled
        constants = _constants(intensities, warnings)
        unscored = [_Unscored(pair, paths, regressions.get(pair.subject), dataset, tissues) for pair, paths in files]
        scoring = _Scoring(constants, target, percentile, resample)
        scored = _score(scoring, unscored, workers, _part(progress, len(trained), total))
        scores = [row for each in scored for row in each.scores]
        slices = [row for each in scored for row in each.slices]
        failures += [failure for each in scored for failure in each.failures]
        warnings += [text for each in scored for text in each.warnings]
        if not any(row.arm in synthetic for row in scores):
            raise DatasetError(
                "no volume could be scored",
                where=folders,
                found="; ".join(f"{failure.case}, {failure.arm}: {failure.reason}" for failure in failures[:3]),
            )
        if progress:
            progress(total, total, "scored")
        ceilings = [arm for arm in CEILINGS if any(row.arm == arm for row in scores)]
        made_here = (*BASELINES[: 2 if regressions else 1], *ceilings)
        compared = (*made_here, *compared_arms(synthetic, seeds))
        arms = tuple(name for arm in compared for name in (arm, *seeds.get(arm, ())))
        counted = over_seeds(scores, seeds)
        by_arm = summaries(arms, counted, expected)
        record = EvaluationRecord(
            unscanned=version(),
            created=utc_now(),
            source=source,
            target=target,
            dataset=str(dataset),
            folders={arm: str(folder) for arm, folder in synthetic.items()},
            percentile=percentile,
            resample=resample,
            training_subjects=sorted(training),
            definitions={name: f"{metric.definition}; {metric.better} is better" for name, metric in METRICS.items()},
            regions=_regions(scores, labels),
            constants=constants,
            arms=by_arm,
            comparisons=comparisons(compared, compared[len(made_here)], counted),
            cases=[_describe(pair, paths, own.get(pair.subject)) for pair, paths in files],
            scores=scores,
            slices=slices,
            failures=failures,
            warnings=list(dict.fromkeys(warnings)),
            regression=shared.curve() if shared else None,
            seeds={arm: list(members) for arm, members in seeds.items()},
            spread=spreads(by_arm, seeds),
            folds=[{part: sorted(fold[part]) for part in fold} for fold in folds],
        )
        content = record.to_json()
        write_text(Path(out, "scores.csv"), scores_csv(scores, failures))
        write_text(Path(out, "slices.csv"), slices_csv(slices))
        write_json(Path(out, "evaluation.json"), content)
    return Evaluation(Path(out), arms, tuple(scores), tuple(failures), EvaluationRecord.model_validate(content))


@dataclass(frozen=True, eq=False)
class _Unscored:
    """A case to score: its scans, the volume of each arm, and what is known of it beside."""

    pair: Pair
    paths: Mapping[str, Path | None]
    regression: Regression | None
    dataset: str | Path
    labels: Labels | None

    def elsewhere(self) -> _Unscored:
        """Return the case as another process, with another working folder, finds it."""
        labels, case = self.labels, self.pair.case
        own = {case: Path(abspath(labels.files[case]))} if labels is not None and case in labels.files else {}
        return _Unscored(
            with_absolute_paths(self.pair),
            {arm: path and Path(abspath(path)) for arm, path in self.paths.items()},
            self.regression,
            abspath(self.dataset),
            None if labels is None else Labels(own, labels.names),
        )


@dataclass
class _Scored:
    """What became of a case."""

    scores: list[Score] = field(default_factory=list)
    slices: list[SliceErrors] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Scoring:
    """Scores a case; one that fails is told, and stops no other."""

    constants: Constants
    target: str
    percentile: float
    resample: bool

    def __call__(self, case: _Unscored, progress: Progress | None) -> _Scored:
        found, pair = _Scored(), case.pair
        begin(progress, pair.case)
        try:
            images = load_images(
                pair,
                case.paths,
                regression=case.regression,
                percentile=self.percentile,
                resample=self.resample,
                ceilings=find_ceilings(case.dataset, pair.case, self.target),
                labels=case.labels,
            )
            score_case(pair, images, self.constants, found.scores, found.slices, found.failures)
            found.warnings += [f"{pair.case}: {text}" for text in images.warnings]
        except Exception as error:
            found.failures.append(_unscored(pair, error))
        return found


def _unscored(pair: Pair, error: Exception) -> Failure:
    return Failure(case=pair.case, arm="target", reason=str(of_one(error, where=pair.case)))


def _score(
    scoring: _Scoring, cases: Sequence[_Unscored], cluster: Cluster | None, progress: Progress | None
) -> list[_Scored]:
    """Return what became of each case, in their order."""
    sent = cases if cluster is None else [case.elsewhere() for case in cases]
    names = [case.pair.case for case in cases]
    found: list[_Scored] = []
    outcomes = in_order(map_cases(scoring, sent, names=names, cluster=cluster, progress=progress))
    for case, outcome in zip(cases, outcomes, strict=True):
        try:
            found.append(outcome.get())
        except UnscannedError as error:  # of a worker that died with it
            found.append(_Scored(failures=[_unscored(case.pair, error)]))
    return found


def _part(progress: Progress | None, start: int, total: int) -> Progress | None:
    """Return the progress of a part that begins after `start` of all cases."""
    return None if progress is None else lambda done, of, label: progress(start + done, total, label)


def claim_evaluation(out: str | Path) -> None:
    """Refuse a folder in which an evaluation would replace anything but an evaluation.

    Raises:
        SettingsError: It would.
    """
    for name, is_own in _OUTPUTS.items():
        claim(Path(out, name), is_own, "an earlier evaluation, or nothing")


def _check_arms(names: Sequence[str], synthetic: Mapping[str, str | Path]) -> None:
    if not synthetic:
        raise SettingsError("no arm to score", expected="at least one folder of synthetic volumes")
    for arm in names:
        if arm in (*BASELINES, *CEILINGS, "target") or names.count(arm) > 1:
            raise SettingsError("the name is taken", where=f"arm {arm}", do="Give the arm another name.")
    for arm, folder in synthetic.items():
        if not Path(folder).is_dir():
            raise DatasetError("no such folder", where=f"arm {arm}: {folder}")


def _without_labels(files: Files, named: str | Path | None, tissues: Labels | None) -> list[str]:
    """Return a warning for each case that the folder of label maps that was named has none of; refuse one without any.

    Raises:
        DatasetError: The folder has no label map of any case.
    """
    if named is None or tissues is None:
        return []
    missing = [pair.case for pair, _ in files if pair.case not in tissues.files]
    if len(missing) == len(files):
        raise DatasetError(
            "no label map has the name of a case",
            where=named,
            found=next(iter(tissues.files.values())).name,
            expected=f"names such as {missing[0]}_dseg.nii.gz",
        )
    return [f"{case}: no errors by tissue: {named} has no label map of it" for case in missing]


def _check_split(scored: set[str], training: Sequence[str]) -> None:
    both = sorted(scored.intersection(training))
    if both:
        raise DatasetError(
            "subjects to score were trained on",
            found=", ".join(both),
            expected="no subject in both",
            do="Score the test subjects of the split only.",
        )


def _find_files(
    pairs: Sequence[Pair], volumes: Mapping[str, dict[str, list[Path]]], contrast: str, subjects: Sequence[str] | None
) -> tuple[Files, list[Failure]]:
    """The files of each case to score; a case with several candidates in an arm counts as a failure of that arm."""
    wanted = None if subjects is None else set(subjects)
    files: Files = []
    failures = []
    for pair in pairs:
        if wanted is not None and pair.subject not in wanted:
            continue
        paths: dict[str, Path | None] = {}
        for arm, names in volumes.items():
            try:
                paths[arm] = find_synthetic(names, pair.case, contrast)
            except DatasetError as error:
                failures.append(Failure(case=pair.case, arm=arm, reason=str(error)))
        if wanted is not None or any(paths.values()) or len(paths) < len(volumes):
            files.append((pair, paths))
    missing = sorted((wanted or set()) - {pair.subject for pair, _ in files})
    reason = "the dataset has no pair of it"
    return files, failures + [Failure(case=subject, arm="target", reason=reason) for subject in missing]


def _fit(
    pairs: Sequence[Pair],
    subjects: set[str],
    percentile: float,
    resample: bool,
    leave_one_out: bool,
    folds: Sequence[Mapping[str, Sequence[str]]],
    cluster: Cluster | None,
    progress: Progress | None,
) -> tuple[dict[str, Regression], list[str]]:
    """The voxelwise baseline of each subject to score, and a warning for each pair that could not be used."""
    warnings: list[str] = []
    sums: dict[str, JointSums] = {}
    summing = partial(_sums, percentile=percentile, resample=resample)
    sent = pairs if cluster is None else [with_absolute_paths(pair) for pair in pairs]
    names = [pair.case for pair in pairs]
    outcomes = in_order(map_cases(summing, sent, names=names, cluster=cluster, progress=progress))
    for pair, outcome in zip(pairs, outcomes, strict=True):
        try:
            found = outcome.get()
        except Exception as error:
            warnings.append(f"left out of the regression: {of_one(error, where=pair.case)}")
        else:
            sums[pair.subject] = sums[pair.subject] + found if pair.subject in sums else found
    everyone = sum(sums.values(), JointSums.none())
    try:
        if folds:
            return {subject: curve for fold in folds for subject, curve in _fit_fold(fold, sums).items()}, warnings
        if not leave_one_out:
            return dict.fromkeys(subjects, everyone.fit()), warnings
        return {subject: (everyone - sums.get(subject, JointSums.none())).fit() for subject in subjects}, warnings
    except DatasetError as error:
        return {}, [*warnings, f"no regression baseline: {error}"] if pairs else warnings


def _fit_fold(fold: Mapping[str, Sequence[str]], sums: Mapping[str, JointSums]) -> dict[str, Regression]:
    """Return the regression of each subject that a fold tests, one for all of them."""
    fitted = sum((sums[subject] for subject in fold["train"] if subject in sums), JointSums.none()).fit()
    return dict.fromkeys(fold["test"], fitted)


def _sums(pair: Pair, progress: Progress | None, *, percentile: float, resample: bool) -> JointSums:
    begin(progress, f"regression: {pair.case}")
    return JointSums.of(*training_pair(pair, percentile=percentile, resample=resample))


def _intensities(files: Files) -> list[tuple[str, Path, Intensity]]:
    """The arm, the file and the constants of each volume whose sidecar has them; scoring refuses what is unreadable."""
    found = []
    for _, paths in files:
        for arm, path in paths.items():
            with contextlib.suppress(DatasetError):
                if path is not None and (intensity := read_intensity(path)) is not None:
                    found.append((arm, path, intensity))
    return found


def _percentile(intensities: Sequence[tuple[str, Path, Intensity]], given: float | None) -> float:
    """The percentile inside the head that becomes 1: the one that is given and that all sidecars name."""
    named = {(arm, values.percentile) for arm, _, values in intensities if values.percentile is not None}
    wanted = {percentile for _, percentile in named}.union([] if given is None else [given])
    if len(wanted) > 1:
        raise SettingsError(
            "the arms were made at different percentiles of intensity" if given is None else "another percentile",
            where="percentile",
            found=", ".join(f"{arm}: {percentile:g}" for arm, percentile in sorted(named)),
            expected="one for all arms" if given is None else f"{given:g}, as given",
            do="Score arms whose models had the same prepare.percentile.",
        )
    return next(iter(wanted), UNIT_PERCENTILE)


def _constants(intensities: Sequence[tuple[str, Path, Intensity]], warnings: list[str]) -> Constants:
    """The mean and SD that make z-scores: one pair of numbers for all arms and cases, from the first sidecar."""
    found: dict[tuple[float, float], str] = {}
    for _, path, intensity in intensities:
        found.setdefault((intensity.mean, intensity.std), path.name)
    if not found:
        warnings.append("no sidecar has intensity constants: z-scores use each target's own mean and SD in the head")
        return Constants(mean=None, std=None, origin="each target's own, inside its head")
    (mean, std), name = next(iter(found.items()))
    if len(found) > 1:
        warnings.append(f"the arms have different intensity constants; those of {name} make the z-scores of all")
    return Constants(mean=mean, std=std, origin=f"training set, from the sidecar of {name}")


def _regions(scores: Sequence[Score], labels: str | Path | None) -> dict[str, str]:
    """What each region holds: those of every evaluation, and the tissues that were scored."""
    tissues = dict.fromkeys(row.region for row in scores if row.region not in REGIONS)
    return {**REGIONS, **dict.fromkeys(sorted(tissues), f"voxels of this tissue, from the label maps in {labels}")}


def _describe(pair: Pair, paths: Mapping[str, Path | None], own: Regression | None) -> Case:
    return Case(
        case=pair.case,
        subject=pair.subject,
        session=pair.session,
        source=abspath(pair.source),
        target=abspath(pair.target) if pair.target else None,
        synthetic={arm: abspath(path) if path else None for arm, path in paths.items()},
        regression=own.curve() if own else None,
    )
