"""Kill synthesis with SIGKILL at random moments, and look for files that are not whole under their final names.

PYTHONPATH=tests python -m storm.storm_synthesize --kills 60 --seed 0
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storm.life import live, moments, small_dataset
from storm.storm_training import settings

from unscanned.datasets.layout import sidecar_path
from unscanned.errors import VolumeError
from unscanned.files import read_json, sha256
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import list_inputs, synthesize
from unscanned.training.run import train
from unscanned.volumes.nifti import read_volume

STRIDES = (8, 4)
SCANS = 2


@dataclass
class Outcome:
    """What a storm left behind.

    Attributes:
        kills: Lives that ended by SIGKILL.
        finished: Lives that came to their end.
        volumes: Synthetic volumes looked at after the lives.
        partial: Files under a final name that are not whole, volumes or sidecars.
        wrong: Volumes that are whole but not, bit for bit, what an undisturbed run makes with one of the two strides.
        bare: Volumes without a sidecar.
        parted: Volumes beside the sidecar of another volume.
        alone: Sidecars without their volume, which a kill may leave and the next life makes good.
        missing: Outputs, volumes or sidecars, that a life which came to its end has left out.
    """

    kills: int = 0
    finished: int = 0
    volumes: int = 0
    partial: int = 0
    wrong: int = 0
    bare: int = 0
    parted: int = 0
    alone: int = 0
    missing: int = 0


def make(model: Path, dataset: Path, out: Path, stride: int) -> None:
    """Synthesize the first scans of the dataset."""
    loaded = load_model(model)
    scans, _ = list_inputs([dataset], source="PD", target="T2")
    synthesize(loaded, scans[:SCANS], out, stride=stride)


def volumes(out: Path) -> list[Path]:
    """Return the synthetic volumes below a folder."""
    return sorted(out.rglob("*_desc-synthetic_T2w.nii.gz"))


def sidecars(out: Path) -> list[Path]:
    """Return the sidecars of synthetic volumes below a folder."""
    return sorted(out.rglob("*_desc-synthetic_T2w.json"))


def inspect(out: Path, truth: dict[str, set[str]], outcome: Outcome) -> None:
    """Read everything that stands under a final name."""
    found = {path: sha256(path) for path in volumes(out)}
    for path, digest in found.items():
        outcome.volumes += 1
        try:
            read_volume(path)
        except VolumeError:
            outcome.partial += 1
        outcome.wrong += digest not in truth[path.name]
        outcome.bare += not sidecar_path(path).exists()
    for sidecar in sidecars(out):
        volume = sidecar.with_name(sidecar.name.removesuffix(".json") + ".nii.gz")
        try:
            named = read_json(sidecar)["Sha256"]
        except (OSError, ValueError, KeyError):
            outcome.partial += 1
            continue
        outcome.alone += volume not in found
        outcome.parted += volume in found and named != found[volume]


def storm(root: Path, kills: int, seed: int) -> Outcome:
    """Kill syntheses that write the same volumes over and over with two strides in turn.

    After each second life that came to its end the volumes are removed, so that half of the lives make new ones. The
    last life is left to come to its end, and has to make good what the kill before it left. The moments are uniform up
    to a tenth more than what an undisturbed life takes.

    Args:
        root: Empty folder.
        kills: Number of kills.
        seed: Of their moments.
    """
    dataset, out = small_dataset(root / "dataset"), root / "synthetic"
    live(partial(train, dataset, root / "run", settings(epochs=1, steps=2)), None)
    model = root / "run" / "model"
    truth: dict[str, set[str]] = {}
    for stride in STRIDES:
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        undisturbed = root / f"undisturbed-{stride}"
        live(partial(make, model, dataset, undisturbed, stride), None)
        for path in volumes(undisturbed):
            truth.setdefault(path.name, set()).add(sha256(path))
    outcome, moment, turn = Outcome(), moments(seed, 0.02, 1.1 * _used_since(began)), 0
    finished = False
    while outcome.kills < kills or not finished:
        seconds, group = moment() if outcome.kills < kills else (None, False)
        finished = live(partial(make, model, dataset, out, STRIDES[turn % 2]), seconds, group=group)
        inspect(out, truth, outcome)
        outcome.kills += not finished
        if (outcome.kills + outcome.finished) % 10 == 9:
            print(outcome, file=sys.stderr, flush=True)
        if finished:
            outcome.finished += 1
            outcome.missing += 2 * len(truth) - len(volumes(out)) - len(sidecars(out))
            turn += 1
            if turn % 2 == 0:
                shutil.rmtree(out)
    return outcome


def _used_since(began: resource.struct_rusage) -> float:
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return now.ru_utime + now.ru_stime - began.ru_utime - began.ru_stime


def main() -> None:
    """Run the storm and print what it left behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="storm-") as root:
        outcome = storm(Path(root), options.kills, options.seed)
    print(json.dumps({**vars(outcome), "minutes": round((time.monotonic() - began) / 60, 1)}, indent=2))
    if outcome.partial or outcome.wrong or outcome.bare or outcome.parted or outcome.missing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
