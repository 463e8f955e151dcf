"""What each part of the recipe brings at equal processor time: named variants, scored on the same test subjects.

python studies/ablate_recipe.py data/heads runs/ablation --settings docs/experiments/ablation.toml --seconds 1200

The budget is processor time of all threads together. A schedule needs its length before it begins, so each variant
takes a few steps first, on the training patches, with its adversary and without, and the budget is divided by what
they took; what drawing simulated pairs takes counts too. Validation is not counted. Called again, it goes on where it
was: finished trainings, volumes and measurements are not made again.

With --leave-one-out each subject is left out once and all others train, without validation: each variant and seed is
then as many trainings as there are subjects, scored together.

OUT gets log.txt, a run, its volumes and steps.json for each variant and seed, and two tables: scores.csv has a row for
each variant, seed and test subject; ablation.csv has one for each variant and metric, with the mean over subjects (each
the mean over its seeds) and the paired difference to the reference variant with its 95 % t-interval, and with several
seeds one for each seed too, paired with the reference's of that seed.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unscanned.datasets.pairs import select_pairs
from unscanned.datasets.split import split_subjects
from unscanned.errors import SettingsError
from unscanned.evaluation.evaluate import evaluate
from unscanned.evaluation.statistics import compare, subject_means, summarize
from unscanned.files import read_json, write_json, write_text
from unscanned.formats.evaluation import EvaluationRecord
from unscanned.machine.device import choose_device
from unscanned.machine.provenance import environment, utc_now
from unscanned.settings import Settings, resolve, to_dict
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import synthesize
from unscanned.training.batches import PatchBatches
from unscanned.training.prepare import Case, normalization, prepare
from unscanned.training.run import train
from unscanned.training.simulated import simulated_pairs
from unscanned.training.stage import build_step

REPORT = {"batch": 4, "min_head": 0.1, "learning_rate": 5e-4}
"What docs/results.md trained the reference's arms and `unet` with."

RECIPE = {
    "training": {
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 50,
        "final_rate": 0.02,
        "average": 0.998,
    },
    "augmentation": {"shift": 0.5, "flip": 0.5},
}
"The recipe on another arm, which keeps its own losses and momentum."


GDL: dict[str, Any] = {"loss": {"gdl": 1.0}}
"The gradient difference loss: the settings that all variants share may leave it out, as those of docs/results.md do."


def _resgan() -> dict[str, Any]:
    recipe = copy.deepcopy(RECIPE)
    recipe["training"] |= {"batch": 4, "min_head": 0.1}
    return recipe | GDL


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "strong": ("strong", {}),
    "today": ("unet", {"training": REPORT}),
    "unet-recipe": ("strong", {"generator": {"name": "unet", "options": {}}}),
    "constant-rate": ("strong", {"training": {"schedule": "constant", "learning_rate": 5e-4}}),
    "no-average": ("strong", {"training": {"average": 0.0}}),
    "no-flip": ("strong", {"augmentation": {"flip": 0.0}}),
    "no-shift": ("strong", {"augmentation": {"shift": 0.0}}),
    "no-warm-up": ("strong", {"training": {"warmup_steps": 0}}),
    "adam": ("strong", {"training": {"optimizer": "adam", "weight_decay": 0.0}}),
    "instance-norm": ("strong", {"generator": {"options": {"filters": 8, "norm": "instance"}}}),
    "group-norm": ("strong", {"generator": {"options": {"filters": 8, "norm": "group"}}}),
    "16-filters": ("strong", {"generator": {"options": {"filters": 16}}}),
    "shallow": ("strong", {"generator": {"options": {"filters": 8, "blocks_down": [1, 1, 1, 2]}}}),
    "patch-48": ("strong", {"training": {"patch": 48, "batch": 2}}),
    "patch-64": ("strong", {"training": {"patch": 64, "batch": 2}}),
    "batch-8": ("strong", {"training": {"batch": 8}}),
    "residual": ("strong", {"generator": {"residual": True}}),
    "gdl": ("strong", GDL),
    "ssim": ("strong", {"loss": {"ssim": 0.2}}),
    "inside": ("strong", {"loss": {"outside": 0.1}}),
    "intensity": ("strong", {"augmentation": {"intensity": 0.2}}),
    "field": ("strong", {"augmentation": {"field": 0.3}}),
    "noise": ("strong", {"augmentation": {"noise": 0.03}}),
    "blur": ("strong", {"augmentation": {"blur": 0.7}}),
    "resolution": ("strong", {"augmentation": {"resolution": 2.0}}),
    "clip": ("strong", {"training": {"clip_norm": 1.0}}),
    "bfloat16": ("strong", {"training": {"precision": "bfloat16"}}),
    "strong-gan": ("strong-gan", {}),
    "gan-gdl": ("strong-gan", GDL),
    "gan-no-penalty": ("strong-gan", {"loss": GDL["loss"] | {"gradient_penalty": 0.0}}),
    "gan-spectral-norm": (
        "strong-gan",
        {"loss": GDL["loss"] | {"gradient_penalty": 0.0}, "discriminator": {"spectral_norm": True}},
    ),
    "gan-ten-times": ("strong-gan", {"loss": GDL["loss"] | {"adversarial": 0.1}}),
    "gan-from-the-start": ("strong-gan", {"loss": GDL["loss"] | {"adversarial_after": 0}}),
    "with-wide": ("strong", {"simulated": {"share": 0.5}, "prepare": {"spacing_mm": 1.5}}),
    "resgan": ("resgan", {"training": REPORT} | GDL),
    "resgan-recipe": ("resgan", _resgan()),
}
"Preset and what is changed in it: `strong` with one part changed each, other arms; `gan-` ones compare with `gan-gdl`."

EPOCHS = 20
"Validations of a training."

WARM_UP, MEASURED = 3, 9
"Steps before and while the clock runs."

DRAWN = 5
"Simulated pairs that are drawn while the clock runs."


def settings_of(variant: str, file: Path | None, common: Mapping[str, Any]) -> Settings:
    """Return the settings of a variant: its preset, the file that all share, what it changes, what the call gives."""
    preset, changes = VARIANTS[variant]
    own = {table: {**values} for table, values in changes.items()}
    for table, values in common.items():
        own[table] = {**own.get(table, {}), **values}
    return resolve(preset, file, own)


def seconds_a_step(settings: Settings, cases: Sequence[Case]) -> tuple[float, float]:
    """Return the processor time of a training step before its adversary joins, and after; the same twice without one.

    All threads together; each is the median of a few steps after some others.
    """
    device = choose_device(settings.training.device)
    if settings.training.threads:
        torch.set_num_threads(settings.training.threads)
    constants = normalization(cases, percentile=settings.prepare.percentile)
    torch.manual_seed(0)
    step = build_step(settings, 1, device, target=constants.target)
    batches = PatchBatches(
        cases,
        constants,
        settings.training,
        augmentation=settings.augmentation,
        gives_head=settings.loss.outside < 1,
    )

    def median() -> float:
        taken = []
        for number in range(WARM_UP + MEASURED):
            began = time.process_time()
            step(*(part.to(device) for part in batches(number)))
            if step.average is not None:
                step.average.update(number + 1)
            taken.append(time.process_time() - began)
        return statistics.median(taken[WARM_UP:])

    if step.adversary is None:
        alone = median()
        return alone, alone
    step.adversary.takes_part = False
    before = median()
    step.adversary.takes_part = True
    return before, median()


def steps_that_fit(seconds: float, before: float, after: float, joins: int) -> float:
    """Return how many steps fit into a time, where one takes `before` seconds up to step `joins` and `after` then."""
    if joins * before >= seconds:
        return seconds / before
    return joins + (seconds - joins * before) / after


def seconds_a_pair(settings: Settings) -> float:
    """Return the processor time of drawing a simulated pair, the heads already read; 0 where a training draws none."""
    pairs = simulated_pairs(settings)
    if pairs is None:
        return 0.0
    pairs.stream.load()
    pairs.stream.draw(0)
    taken = []
    for number in range(DRAWN):
        began = time.process_time()
        pairs.stream.draw(number)
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def ablate(
    dataset: Path,
    out: Path,
    variants: Sequence[str],
    *,
    seconds: float,
    file: Path | None = None,
    seeds: Sequence[int] = (0,),
    common: Mapping[str, Any] | None = None,
    leave_one_out: bool = False,
) -> EvaluationRecord:
    """Train the variants at equal processor time, score them, and write both tables.

    Args:
        dataset: Aligned pairs.
        out: Folder for everything; see the module.
        variants: Names of `VARIANTS`; the first is what the others are compared with.
        seconds: Processor time of each training.
        file: TOML settings that all share, over their presets: data, grid and split.
        seeds: Of the trainings.
        common: Settings over all else, such as `{"training": {"threads": 1}}`.
        leave_one_out: Whether each subject is the test of trainings on all others, in place of the split of `file`.

    Raises:
        UnscannedError: As for `train` and `evaluate`.
    """
    common = common or {}
    out.mkdir(parents=True, exist_ok=True)
    first = settings_of(variants[0], file, common)
    found = select_pairs(dataset, **to_dict(first.data))
    subjects = sorted({pair.subject for pair in found.pairs})
    if leave_one_out:
        splits = {
            f"run-without-{subject}": {
                "train": [other for other in subjects if other != subject],
                "validation": [],
                "test": [subject],
            }
            for subject in subjects
        }
    else:
        splits = {"run": split_subjects(found.pairs, **to_dict(first.split))}
    tested = [subject for split in splits.values() for subject in split["test"]]
    pairs = [pair for pair in found.pairs if pair.subject in next(iter(splits.values()))["train"]]
    cases, _ = prepare(pairs, out / "prepared", first.prepare)
    arms = {f"{variant}_seed-{seed}": (variant, seed) for seed in seeds for variant in variants}
    steps = {}
    for arm, (variant, seed) in arms.items():
        settings = settings_of(variant, file, common).change(training={"seed": seed})
        steps[arm] = _length(out / arm, settings, cases, seconds, out)
        for run, split in splits.items():
            if leave_one_out:
                write_json(out / f"{run}.json", split)
                settings = settings.change(split={"file": str(out / f"{run}.json")})
            _train(dataset, out / arm / run, settings, steps[arm], out)
            model = load_model(out / arm / run / "model", choose_device(settings.training.device))
            scans = [(pair.source, pair.case) for pair in found.pairs if pair.subject in split["test"]]
            synthesize(model, scans, out / arm / "synthetic", renew=True, force=True)
        _say(out, f"{arm}: synthesized")
    record = evaluate(
        dataset,
        {arm: out / arm / "synthetic" for arm in arms},
        out / "evaluation",
        source=first.data.source,
        target=first.data.target,
        layout=first.data.layout,
        subjects=tested,
        training=[] if leave_one_out else splits["run"]["train"],
        leave_one_out=leave_one_out,
        percentile=first.prepare.percentile,
        resample=first.prepare.resample,
    ).content
    _write_tables(record, out, arms, steps, variants[0])
    _say(out, f"wrote {out / 'ablation.csv'}")
    return record


def _length(folder: Path, settings: Settings, cases: Sequence[Case], seconds: float, out: Path) -> dict[str, Any]:
    """Return how many steps a training of a variant has, and what that was computed from."""
    path = folder / "steps.json"
    if path.exists():
        length: dict[str, Any] = read_json(path)
        if length["budget_s"] != seconds:
            raise SettingsError(
                "another budget",
                where=path,
                found=f"{length['budget_s']:g} s",
                expected=f"{seconds:g} s, or a new folder",
            )
    else:
        pair = seconds_a_pair(settings)
        before, after = (each + pair / settings.simulated.every for each in seconds_a_step(settings, cases))
        left = seconds - settings.simulated.pool * pair
        joins = settings.loss.adversarial_after if settings.loss.adversarial > 0 else 0
        fit = steps_that_fit(left, before, after, joins)
        count = max(1, round(fit / EPOCHS))
        length = {
            "seconds_a_step": left / fit,
            "steps": EPOCHS * count,
            "budget_s": seconds,
            "environment": environment(),
        }
        write_json(path, length)
    _say(out, f"{folder.name}: {length['steps']} steps of {length['seconds_a_step']:.3f} s of processor time")
    if settings.loss.adversarial_after >= length["steps"]:
        _say(out, f"{folder.name}: its adversary joins after {settings.loss.adversarial_after} steps, so it never does")
    return length


def _train(dataset: Path, run: Path, settings: Settings, length: Mapping[str, Any], out: Path) -> None:
    """Train a variant for its budget."""
    counted = {"epochs": EPOCHS, "steps_per_epoch": length["steps"] // EPOCHS}
    began = time.process_time()
    trained = train(dataset, run, settings.change(training=counted), cache=out / "prepared")
    taken, best = time.process_time() - began, trained.stages[0]["best"]
    _say(out, f"{run.parent.name}, {run.name}: trained, {taken:.0f} s of processor time in this call, best {best}")


def _write_tables(
    record: EvaluationRecord,
    out: Path,
    arms: Mapping[str, tuple[str, int]],
    steps: Mapping[str, Mapping[str, Any]],
    reference: str,
) -> None:
    """Write scores.csv and ablation.csv: the baselines are variants too, with no seed."""
    seeds = sorted({seed for _, seed in arms.values()})
    inside = [score for score in record.scores if score.region == "head"]
    metrics = list(record.definitions)
    rows: list[list[Any]] = [["variant", "seed", "subject", "case", "steps", "seconds_a_step", *metrics]]
    values: dict[tuple[str, int | None], dict[str, list[tuple[str, float]]]] = {}
    for score in inside:
        variant, seed = arms.get(score.arm, (score.arm, ""))
        length = steps.get(score.arm, {})
        told = [score.values[name] for name in metrics]
        rows.append(
            [variant, seed, score.subject, score.case, length.get("steps", ""), length.get("seconds_a_step", ""), *told]
        )
        for name, value in zip(metrics, told, strict=True):
            if value is not None:
                values.setdefault((variant, None), {}).setdefault(name, []).append((score.subject, value))
                if seed != "" and len(seeds) > 1:
                    values.setdefault((variant, seed), {}).setdefault(name, []).append((score.subject, value))
    write_text(out / "scores.csv", _csv(rows))
    table: list[list[Any]] = [
        [
            "variant",
            "seed",
            "metric",
            "mean",
            "sd",
            "subjects",
            f"minus {reference}",
            "low",
            "high",
            "steps",
            "seconds_a_step",
        ]
    ]
    for (variant, seed), of_metric in sorted(values.items(), key=lambda entry: entry[0][1] is not None):
        lengths = [steps[arm] for arm, (name, its) in arms.items() if name == variant and seed in (None, its)]
        taken = [
            statistics.mean(length[key] for length in lengths) if lengths else "" for key in ("steps", "seconds_a_step")
        ]
        for name, each in of_metric.items():
            means = subject_means(each)
            summary = summarize(means.values(), len(means))
            against = compare(subject_means(values[reference, seed][name]), means)
            difference = [against.difference, against.low, against.high] if variant != reference else ["", "", ""]
            table.append(
                [variant, "" if seed is None else seed, name, summary.mean, summary.sd, summary.n, *difference, *taken]
            )
    write_text(out / "ablation.csv", _csv(table))


def markdown(path: Path, psnr: str = "psnr") -> str:
    """Return the table of ablation.csv for a page: a row for each variant, and for each of its seeds.

    Args:
        path: The table.
        psnr: Name of the metric in the column of PSNR: psnr or psnr_one_gain.
    """
    with open(path, encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    minus = next(name for name in lines[0] if name.startswith("minus "))
    told: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for line in lines:
        told.setdefault((line["variant"], line["seed"]), {})[line["metric"]] = line
    rows = []
    for key, of_metric in told.items():
        line = of_metric[psnr]
        interval = f" [{float(line['low']):+.2f}, {float(line['high']):+.2f}]" if line["low"] else ""
        difference = f"{float(line[minus]):+.2f}{interval}" if line[minus] else ""
        others = [_mean_sd(of_metric[name], 3) for name in ("ssim", "hfen")]
        rows.append([*key, line["steps"], _mean_sd(line, 2), difference, *others])
    header = ["variant", "seed", "steps", _HEADINGS[psnr], minus, "SSIM", "HFEN"]
    body = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in body)


_HEADINGS = {"psnr": "PSNR, dB", "psnr_one_gain": "PSNR after one gain, dB"}


def _mean_sd(line: Mapping[str, str], digits: int) -> str:
    return f"{float(line['mean']):.{digits}f}" + (f" ({float(line['sd']):.{digits}f})" if line["sd"] else "")


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [[f"{cell:.5g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    )
    return text.getvalue()


def _say(out: Path, message: str) -> None:
    line = f"{utc_now()} {message}"
    print(line, file=sys.stderr, flush=True)
    with open(out / "log.txt", "a", encoding="utf-8") as file:
        file.write(line + "\n")


def main() -> None:
    """Run the ablation and print the table of `psnr`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=1200.0, help="processor time of each training")
    parser.add_argument("--settings", type=Path, help="TOML settings that all share: data, grid and split")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--labels", help="folder of the label maps of simulated pairs")
    parser.add_argument("--leave-one-out", action="store_true", help="train without each subject once, and score it")
    given = parser.parse_args()
    common: dict[str, dict[str, Any]] = {"training": {"threads": given.threads, "device": "cpu"}}
    if given.labels:
        common["simulated"] = {"labels": given.labels}
    ablate(
        given.dataset,
        given.out,
        given.variants,
        seconds=given.seconds,
        file=given.settings,
        seeds=given.seeds,
        common=common,
        leave_one_out=given.leave_one_out,
    )
    print(markdown(given.out / "ablation.csv", "psnr_one_gain" if given.leave_one_out else "psnr"))


if __name__ == "__main__":
    main()
