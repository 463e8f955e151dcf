"""Train the models of the package, score them, and put them on its shelf: `make models`.

python tools/make_models.py runs/models --labels head-labels [--real DATASET...] [--models pd-t2 t1w-t2w]

Everything comes from docs/experiments/models.toml. For each model, OUT gets

- the heads that it is trained on and chosen by, and those of anatomies that are left out, to test on,
- the run of `unscanned train`, which goes on where it was when the call is repeated,
- synthetic volumes and an evaluation for each domain: the test heads, test heads beyond the spread of the training, and
  real scans of BIDS datasets that have both contrasts, whole heads and extracted brains. Beside the model stand the
  source and a voxelwise regression of all other subjects,
- the model with its card, in half precision if that changes no scan by more than `pack` allows, which then replaces
  the one on the shelf.

--shelf FOLDER is another shelf than the package's. Without --labels, heads of the package's own take their place.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os.path import realpath, relpath
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from unscanned.cli.running import Stop
from unscanned.datasets.pairs import Pair, select_pairs
from unscanned.errors import CheckpointError, DatasetError, SettingsError
from unscanned.evaluation.cases import evaluated_images
from unscanned.evaluation.evaluate import evaluate
from unscanned.formats.evaluation import read_evaluation
from unscanned.report.model_card import write_card
from unscanned.settings import Settings, resolve
from unscanned.simulation.simulate import simulate
from unscanned.synthesis.model import Model
from unscanned.synthesis.model_file import load_model, save_model
from unscanned.synthesis.pack import pack
from unscanned.synthesis.shelf import SHIPPED, shelve
from unscanned.synthesis.synthesize import synthesize
from unscanned.training.run import check_settings, train
from unscanned.training.start import load_start
from unscanned.volumes.nifti import STAMP, read_volume
from unscanned.volumes.skull import looks_skull_stripped

FILE = Path(__file__).parents[1] / "docs" / "experiments" / "models.toml"

COMMAND = 'make models LABELS=head-labels REAL="ms-t1-t2-flair glioma-t1-t2-flair" MODELS={}'
"What trains a model again and scores it, with the data in folders of these names."

Contrasts = tuple[str, str]
"Source and target."


def make_model(
    name: str, plan: Mapping[str, Any], out: Path, labels: Path | None, real: Sequence[Path], shelf: Path
) -> Path:
    """Train, score, pack and shelve one model of the plan.

    Args:
        name: Of the model.
        plan: What models.toml says.
        out: Folder of all that is made on the way.
        labels: Folder of label maps; None takes heads of the package's own.
        real: BIDS datasets of real scans.
        shelf: Where the model goes.

    Returns:
        Its folder on the shelf.

    Raises:
        UnscannedError: As for `simulate`, `train`, `evaluate`, `pack` and `write_card`.
    """
    own, heads = plan["models"][name], plan["heads"]
    contrasts = (own["source"], own["target"])
    training_maps, test_maps = divide(labels, heads["held_out"], out / "labels") if labels else (None, None)
    settings = settings_of(plan, name, training_maps)
    common = {
        "physics": "wide",
        "contrasts": contrasts,
        "shape": tuple(settings.prepare.shape),
        "spacing_mm": settings.prepare.spacing_mm,
    }
    dataset = simulate(out / name / "heads", labels=training_maps, **heads["training"], **common)
    with Stop() as stop:
        train(dataset, out / name / "run", settings, should_stop=stop)
    model = portable(load_model(out / name / "run" / "model", "cpu"), out)

    common |= {"labels": test_maps, **heads["test"]}
    domains = {
        **real_domains(real, contrasts, out / name),
        "simulated heads, anatomies left out": simulate(out / name / "test", clean=True, **common),
        "simulated heads, noise, receive field and slices beyond the training's": simulate(
            out / name / "beyond", clean=True, spread=heads["beyond"], **common
        ),
    }
    evaluations, first = {}, {}
    for number, (domain, place) in enumerate(domains.items(), 1):
        pairs = select_pairs(place, source=contrasts[0], target=contrasts[1]).pairs
        first[pairs[0].source] = None
        made = out / name / "synthetic" / ("real" if place.suffix == ".csv" else place.name)
        # What is there already, such as a real scan that stands in several domains, is not made again.
        synthesize(model, [(pair.source, pair.case) for pair in pairs], made, renew=True, force=True)
        evaluations[domain] = out / name / "evaluations" / str(number)
        source, target = contrasts
        evaluate(place, {name: made}, evaluations[domain], source=source, target=target, leave_one_out=True)

    folder = out / "packed" / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        pack(model, folder, [read_volume(path) for path in first])
    except CheckpointError as error:
        print(f"{name} stays in float32: {error}", file=sys.stderr)
        save_model(model, folder)
    words = {key: value for key, value in own.items() if key not in ("source", "target", "settings")}
    words["failures"] = [
        show_failure(failure, folder / f"failure-{number}.jpg", evaluations.values())
        for number, failure in enumerate(own.get("failures", []), 1)
    ]
    write_card(folder, {**plan["card"], "command": COMMAND.format(name), **words}, evaluations)
    shutil.rmtree(shelf / name, ignore_errors=True)
    shutil.copytree(folder, shelf / name)
    shelve(shelf, name)
    return shelf / name


def portable(model: Model, out: Path) -> Model:
    """Return a model whose settings name its label maps as from `out`: where that lies tells nobody else anything."""
    labels = model.settings.simulated.labels
    if labels is None:
        return model
    return replace(model, settings=model.settings.change(simulated={"labels": relpath(labels, out)}))


def show_failure(failure: Mapping[str, Any], path: Path, evaluations: Iterable[Path]) -> dict[str, str]:
    """Return a known failure as a card has it, with a picture of its slice if its scan was evaluated."""
    told = {"what": failure["what"]}
    for record in map(read_evaluation, evaluations):
        for case in record.cases:
            if case.case == failure.get("scan"):
                [arm] = record.folders
                images = evaluated_images(case, record)
                shown = {
                    record.source: images.source,
                    arm: images.arms[arm],
                    f"{record.target} (acquired)": images.target,
                }
                draw_slice(shown, arm, images.head, failure["axial"], path)
                return {**told, "picture": path.name}
    return told


def draw_slice(images: Mapping[str, np.ndarray], synthetic: str, head: np.ndarray, axial: int, path: Path) -> None:
    """Draw the same axial slice of several images beside each other, each in its own greys, the synthetic stamped."""
    rows, columns = (slice(along.min(), along.max() + 1) for along in np.nonzero(head[:, :, axial]))
    height = 3 * (columns.stop - columns.start) / (rows.stop - rows.start) + 0.5  # with a line for the names
    figure = Figure(figsize=(3 * len(images), height), facecolor="black", layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        axes.imshow(np.rot90(image[rows, columns, axial]), cmap="gray", vmin=0, vmax=np.percentile(image[head], 99.5))
        axes.set_title(name, color="white")
        axes.axis("off")
        if name == synthetic:
            axes.text(0.5, 0.01, STAMP, color="#ffd166", ha="center", fontsize=7, transform=axes.transAxes)
    figure.savefig(path, dpi=100)


def settings_of(plan: Mapping[str, Any], name: str, labels: Path | None) -> Settings:
    """Return the settings of a training: those of all models, then those of this one, its contrasts and label maps."""
    own = plan["models"][name]
    shared = {key: value for key, value in plan["settings"].items() if key != "preset"}
    own_settings = own.get("settings", {})
    tables = {
        table: {**shared.get(table, {}), **own_settings.get(table, {})} for table in shared.keys() | own_settings.keys()
    }
    tables["data"] = {"source": own["source"], "target": own["target"]}
    if labels:
        tables["simulated"] = {**tables["simulated"], "labels": str(labels)}
    return resolve(plan["settings"]["preset"], overrides=tables)


def divide(labels: Path, held_out: Sequence[str], out: Path) -> tuple[Path, Path]:
    """Return two folders of links to the label maps: those to train on, and those that are held out.

    Raises:
        SettingsError: One to hold out is not there.
    """
    maps = {path.name: path for path in sorted(labels.glob("*.nii*"))}
    if missing := [name for name in held_out if name not in maps]:
        raise SettingsError("no such label map", where=labels, found=", ".join(maps), expected=", ".join(missing))
    folders = out / "train", out / "test"
    for folder, is_held_out in zip(folders, (False, True), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in maps.items():
            if (name in held_out) == is_held_out and not (folder / name).exists():
                (folder / name).symlink_to(realpath(path))
    return folders


def real_domains(datasets: Sequence[Path], contrasts: Contrasts, out: Path) -> dict[str, Path]:
    """Write tables of all real pairs, of whole heads and of extracted brains; return those of two patients and more."""
    pairs: list[Pair] = []
    for dataset in datasets:
        try:
            pairs += select_pairs(dataset, source=contrasts[0], target=contrasts[1]).pairs
        except DatasetError as error:
            print(f"passed over: {error}", file=sys.stderr)
    stripped = {pair.case for pair in pairs if _is_stripped(pair)}
    parts = {
        "real scans": pairs,
        "real scans, whole heads": [pair for pair in pairs if pair.case not in stripped],
        "real scans, extracted brains": [pair for pair in pairs if pair.case in stripped],
    }
    found = {}
    for domain, part in parts.items():
        if len({pair.subject for pair in part}) > 1:
            found[domain] = out / f"{domain.replace(', ', '-').replace(' ', '-')}.csv"
            with open(found[domain], "w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(["subject", "session", *contrasts])
                rows.writerows([p.subject, p.session or "", realpath(p.source), realpath(p.target)] for p in part)
    return found


def _is_stripped(pair: Pair) -> bool:
    scan = read_volume(pair.source)
    return looks_skull_stripped(scan.array, scan.affine)


def main() -> None:
    """Make the models that are named, one after the other."""
    plan = tomllib.loads(FILE.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--real", type=Path, nargs="*", default=[])
    parser.add_argument("--models", nargs="*", choices=plan["models"], default=list(plan["models"]), metavar="NAME")
    parser.add_argument("--shelf", type=Path, default=SHIPPED)
    given = parser.parse_args()
    for name in given.models:
        settings = settings_of(plan, name, None)
        check_settings(settings)
        load_start(settings)
    for name in given.models:
        print(make_model(name, plan, given.out, given.labels, given.real, given.shelf))


if __name__ == "__main__":
    main()
