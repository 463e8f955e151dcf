"""How often the check of familiarity warns of and refuses right and wrong scans, and whether its score tells failures.

A model is given its own domains, domains that it was not made for, scans of other contrasts, and files that are no
scan of a head. Where a dataset has the target too, the gain over the source itself stands beside the score: PSNR inside
the head after one gain for the whole scan, minus that of the source.

    python studies/familiarity.py --model NAME=RUN --training NAME=DATASET --given NAME:right:DOMAIN=DATASET \\
        --given NAME:wrong:DOMAIN=DATASET --labels LABEL_MAPS --json familiarity.json
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contrast_check import noisy, resampled
from scipy import ndimage, stats

from unscanned.contrast.appearance import measure_appearance
from unscanned.contrast.check import check_contrast
from unscanned.contrast.familiarity import REFUSES, WARNS, FamiliarityProfile, Traits, judge
from unscanned.datasets.pairs import Pair, select_pairs
from unscanned.errors import VolumeError
from unscanned.evaluation.metrics import psnr_one_gain
from unscanned.files import read_json, write_json
from unscanned.simulation.tissues import LABELS
from unscanned.synthesis.familiarity import measure_scan
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model
from unscanned.volumes.intensity import head_mask, head_scale
from unscanned.volumes.nifti import Volume, read_volume

HOUNSFIELD = {"air": -1000, "bone": 1200, "marrow": 300, "fat": -100, "cerebrospinal fluid": 10, "eye fluid": 10}
"Of tissues in CT; the others lie at 40."

DRAWS = 100
"Profiles that are made of each number of training scans."


def pairs_of(dataset: Path, model: Model, subjects: list[str] | None, source: str) -> list[Pair]:
    """Return the scans of a contrast in a dataset, with targets where they are there."""
    target = model.target if source != model.target else model.source
    found = select_pairs(dataset, source=source, target=target, require_target=False).pairs
    return [pair for pair in found if subjects is None or pair.subject in subjects]


def spoiled(scan: Volume, rng: np.random.Generator) -> Iterator[tuple[str, Volume]]:
    """Yield what is no scan of a head, or one that nobody would give."""
    array, affine, half = scan.array, scan.affine, scan.shape[2] // 2
    brightest = float(np.percentile(array, 99.5))
    noise = np.hypot(*rng.standard_normal((2, *scan.shape), np.float32)) * np.float32(0.3 * brightest)
    yield "noise alone", Volume(noise, affine)
    middle = [(np.arange(n) - n / 2) * mm for n, mm in zip(scan.shape, scan.spacing_mm, strict=True)]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*middle, indexing="ij")))
    ball = Volume((0.8 * brightest * (radius < 80)).astype(np.float32), affine)
    yield "ball phantom", Volume(noisy(ball, 0.02, rng), affine)
    yield "lower half of a head", Volume(array[:, :, :half], affine)
    yield "neck and jaw", Volume(array[:, :, : round(70 / scan.spacing_mm[2])], affine)
    thick = round(30 / scan.spacing_mm[2])
    yield "slab of 60 mm", Volume(array[:, :, half - thick : half + thick], affine @ _moved(half - thick))
    yield "noise of 15 %", Volume(noisy(scan, 0.15, rng), affine)
    sigma = 3 / np.array(scan.spacing_mm)
    yield "blurred by 7 mm", Volume(ndimage.gaussian_filter(array, sigma), affine)
    yield "voxels of 5 mm", resampled(scan, (5.0, 5.0, 5.0))


def _moved(slices: int) -> np.ndarray:
    move = np.eye(4)
    move[2, 3] = slices
    return move


def from_labels(path: Path) -> Iterator[tuple[str, Volume]]:
    """Yield a label map as it is, and what CT would show of it."""
    labels = read_volume(path)
    yield "label map", labels
    numbers = labels.array.astype(int)
    table = np.full(numbers.max() + 1, 40.0, np.float32)
    for number, tissue in LABELS.items():
        if number < len(table):
            table[number] = HOUNSFIELD.get(tissue, 40)
    yield "CT", Volume(table[numbers], labels.affine)


def row(
    name: str,
    model: Model,
    kind: str,
    domain: str,
    case: str,
    scan: Volume,
    target: Volume | None = None,
    stride: int | None = None,
) -> dict[str, Any]:
    """Return what both checks say of a scan by its looks, and how good its synthetic target is."""
    facts: dict[str, Any] = {"model": name, "kind": kind, "domain": domain, "case": case}
    bare = Volume(scan.array, scan.affine)  # without a name: this is about looks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            facts["contrast"] = check_contrast(bare, model.profile, model.source).verified
        except VolumeError:
            facts["contrast"] = False
        seen = model.profile and measure_appearance(scan.array, scan.affine)
        facts["contrast_score"] = model.profile.score(seen) if seen else None
        try:
            traits = measure_scan(model, scan)
            found = judge(traits, model.familiarity, force=True)
        except VolumeError as error:  # no head
            reason = error.parts["what"]
            return facts | {"verdict": "forced", "score": None, "relative": None, "reason": reason, "gain_db": None}
    relative = found.score / found.refuses_above
    facts |= {"verdict": found.verdict, "score": found.score, "relative": relative, "reason": found.reason}
    facts |= {"gain_db": None, "traits": traits}
    if target is not None:
        facts |= fidelity(model, scan, target, stride)
    return facts


def fidelity(model: Model, scan: Volume, target: Volume, stride: int | None) -> dict[str, float]:
    """Return the PSNR of the synthetic target and of the source, and the difference."""
    head, percentile = head_mask(scan.array, scan.affine), model.normalization.percentile
    made = model.synthesize(scan, model.how(stride=stride), progress=None).array / model.normalization.target.scale
    source = scan.array / np.float32(head_scale(scan.array, head, percentile))
    wanted = target.array / np.float32(head_scale(target.array, head, percentile))
    psnr = psnr_one_gain(wanted, made, head, data_range=1.0)
    of_source = psnr_one_gain(wanted, source, head, data_range=1.0)
    return {"psnr": psnr, "source_psnr": of_source, "gain_db": psnr - of_source}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a Markdown table of verdicts, one row for each model and domain."""
    lines = [
        "| model | given | right | scans | familiar | warned | refused | by the contrast check | score / its limit of "
        "refusal | dB above the source |",
        "|---|---|---|--:|--:|--:|--:|--:|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for each in rows:
        groups.setdefault((each["model"], each["kind"], each["domain"]), []).append(each)
    for (model, kind, domain), group in groups.items():
        counts = [sum(each["verdict"] == verdict for each in group) for verdict in ("familiar", "warned", "forced")]
        by_contrast = sum(each["contrast"] is False for each in group)
        scores = _span([each["relative"] for each in group], "{:.2f}")
        gains = _span([each["gain_db"] for each in group], "{:+.1f}")
        numbers = " | ".join(map(str, [len(group), *counts, by_contrast]))
        lines.append(f"| {model} | {domain} | {_RIGHT[kind]} | {numbers} | {scores} | {gains} |")
    return lines


_RIGHT = {"right": "yes", "wrong": "no", "no scan": "no"}


def _span(numbers: list[float | None], form: str) -> str:
    known = [number for number in numbers if number is not None]
    if not known:
        return ""
    low, high = form.format(min(known)), form.format(max(known))
    return low if low == high else f"{low} to {high}"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how often right scans are refused and wrong ones pass, and how the score goes with the gain."""
    facts: dict[str, Any] = {}
    for model in dict.fromkeys(each["model"] for each in rows):
        own = [each for each in rows if each["model"] == model]
        for kind in ("right", "wrong", "no scan"):
            group = [each for each in own if each["kind"] == kind]
            either = sum(each["verdict"] == "forced" or each["contrast"] is False for each in group)
            familiar = sum(each["verdict"] == "familiar" and each["contrast"] is not False for each in group)
            facts[f"{model}: {kind}"] = {"scans": len(group), "refused by either": either, "without a word": familiar}
        known = [(each["score"], each["gain_db"]) for each in own if each["gain_db"] is not None]
        if len(known) > 4:
            facts[f"{model}: rank correlation of score and gain"] = float(stats.spearmanr(known).statistic)
    return facts


def by_size(training: list[Traits], right: list[Traits], size: int, seed: int) -> str:
    """Return how often right scans are warned of and refused by their score, by profiles of few training scans."""
    rng, scores = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        order = rng.permutation(len(training))
        profile = FamiliarityProfile.of([training[index] for index in order[:size]])
        others = [training[index] for index in order[size:]]
        scores += [profile.score(seen) / profile.largest for seen in [*others, *right]]
    warned, refused = (100 * np.mean(np.array(scores) > limit) for limit in (WARNS, REFUSES))
    judged_each = len(training) - size + len(right)
    return f"{judged_each} right scans judged {DRAWS} times, {warned:.1f} % above the warning, {refused:.1f} % refused"


def judged(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each model and scan, and one for the training scans."""
    training = dict(each.split("=", 1) for each in arguments.training)
    for name, folder in (each.split("=", 1) for each in arguments.model):
        model = load_model(folder)
        split = read_json(Path(folder) / "split.json")
        pairs = pairs_of(Path(training[name]), model, split["train"], model.source)
        seen = [measure_scan(model, read_volume(pair.source)) for pair in pairs]
        model = dataclasses.replace(model, familiarity=FamiliarityProfile.of(seen))
        yield {"model": name, "kind": "training", "traits": seen}
        for given in arguments.given:
            to, kind, rest = given.split(":", 2)
            domain, dataset = rest.split("=", 1)
            if to != name:
                continue
            domain, _, source = domain.partition("@")
            is_own = dataset == training.get(name)
            held_out = [*split["validation"], *split["test"]] if is_own else None
            for pair in pairs_of(Path(dataset), model, held_out, source or model.source):
                target = None if pair.target is None or source else read_volume(pair.target)
                scan = read_volume(pair.source)
                yield row(name, model, kind, domain, pair.case, scan, target, arguments.stride)
        rng = np.random.default_rng(arguments.seed)
        unseen = pairs_of(Path(training[name]), model, [*split["validation"], *split["test"]], model.source)
        for pair in unseen[: arguments.spoil]:
            for domain, scan in spoiled(read_volume(pair.source), rng):
                yield row(name, model, "no scan", domain, pair.case, scan)
        for path in sorted(arguments.labels.glob("*.nii.gz"))[: arguments.spoil] if arguments.labels else ():
            for domain, scan in from_labels(path):
                yield row(name, model, "no scan", domain, path.name, scan)


def main() -> None:
    """Judge, print the table, and write all scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", required=True, metavar="NAME=RUN", help="folder of a run, with its split")
    parser.add_argument("--training", nargs="+", required=True, metavar="NAME=DATASET", help="what the run trained on")
    parser.add_argument(
        "--given",
        nargs="+",
        required=True,
        metavar="NAME:right|wrong:DOMAIN[@CONTRAST]=DATASET",
        help="scans for a model; of the dataset that it trained on, those that it did not see",
    )
    parser.add_argument("--labels", type=Path, help="whole-head label maps, given as they are, and as CT")
    parser.add_argument("--spoil", type=int, default=1, help="unseen heads that are spoiled, and label maps")
    parser.add_argument("--stride", type=int, help="of the synthesis that is scored; the model's own without it")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="numbers of training scans for the profile")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--json", type=Path, required=True, help="file for all scores")
    arguments = parser.parse_args()
    began, rows, traits = time.monotonic(), [], {}
    for each in judged(arguments):
        seen = each.pop("traits", None)
        if each["kind"] == "training":
            traits[each["model"]] = seen, []
            continue
        if each["kind"] == "right" and seen is not None:
            traits[each["model"]][1].append(seen)
        rows.append(each)
        print(each, file=sys.stderr, flush=True)
    sizes = {
        f"{name}, profiles of {size} scans": by_size(training, right, size, arguments.seed)
        for name, (training, right) in traits.items()
        for size in arguments.sizes
        if size <= len(training)
    }
    facts = {
        "seed": arguments.seed,
        "seconds": time.monotonic() - began,
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "summary": summary(rows) | sizes,
        "scans": rows,
    }
    write_json(arguments.json, facts)
    print(*table(rows), "", *(f"{key}: {value}" for key, value in facts["summary"].items()), sep="\n")


if __name__ == "__main__":
    main()
