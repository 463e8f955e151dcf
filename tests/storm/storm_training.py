"""Kill training with SIGKILL at random moments, go on, and compare all that is on disk with the uninterrupted run.

PYTHONPATH=tests python -m storm.storm_training --kills 200 --seed 0
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storm.life import fresh, live, moments, small_dataset

from unscanned.files import read_json, sha256, write_json
from unscanned.settings import Settings, resolve
from unscanned.training.log import read_log
from unscanned.training.run import train

WORKERS = 2


@dataclass
class Outcome:
    """What a storm left behind.

    Attributes:
        kills: Lives that ended by SIGKILL.
        resumes: Lives that loaded a checkpoint of a step after the first and saved a later one.
        checkpoints: Checkpoints looked at after the kills.
        unreadable: Those whose file is not what the manifest says.
        different: Those that are not, bit for bit, what the uninterrupted run had at the same step.
        runs: Trainings that came to their end between kills.
        wrong_runs: Those whose model or log differs from the uninterrupted one's.
    """

    kills: int = 0
    resumes: int = 0
    checkpoints: int = 0
    unreadable: int = 0
    different: int = 0
    runs: int = 0
    wrong_runs: int = 0


def settings(epochs: int = 6, steps: int = 8) -> Settings:
    """A small network, two loader workers, and a checkpoint after every step."""
    return resolve(
        "demo",
        overrides={
            "prepare": {"shape": [16, 16, 16]},
            "split": {"train": 3, "validation": 1, "test": 1},
            "synthesis": {"stride": 8},
            "training": {
                "epochs": epochs,
                "steps_per_epoch": steps,
                "batch": 2,
                "patch": 8,
                "min_head": 0.0,
                "validation_stride": 8,
                "workers": WORKERS,
                "checkpoint_minutes": 1e-6,
                "device": "cpu",
                "threads": 1,
            },
        },
    )


def train_uninterrupted(dataset: Path, folder: Path, wanted: Settings) -> dict[str, str]:
    """Train to the end, and return the hash of the checkpoint of every step, and of the best ones."""

    def work() -> None:
        seen: dict[str, str] = {}

        def look() -> bool:
            for kind in ("checkpoints", "best"):
                for manifest in (folder / kind).glob("step-*.json"):
                    facts = read_json(manifest)
                    seen[f"{kind} {facts['step']}"] = facts["sha256"]
            return False

        train(dataset, folder, wanted, should_stop=look)
        look()
        write_json(folder / "hashes.json", seen)

    live(work, None)
    return dict(read_json(folder / "hashes.json"))


def inspect(folder: Path, truth: dict[str, str], outcome: Outcome) -> None:
    """Compare the checkpoints of a killed run with the uninterrupted one's."""
    for kind in ("checkpoints", "best"):
        for manifest in (folder / kind).glob("step-*.json"):
            outcome.checkpoints += 1
            try:
                facts = read_json(manifest)
                whole = sha256(manifest.with_suffix(".safetensors")) == facts["sha256"]
            except (OSError, ValueError, KeyError):
                whole = False
            if not whole:
                outcome.unreadable += 1
            elif truth[f"{kind} {facts['step']}"] != facts["sha256"]:
                outcome.different += 1


def last_step(folder: Path) -> int:
    """Return the step of the newest checkpoint of a run; 0 where there is none."""
    manifests = (folder / "checkpoints").glob("step-*.json")
    return max((int(path.stem.removeprefix("step-")) for path in manifests), default=0)


def course(folder: Path) -> list[dict[str, object]]:
    """Return the log without what depends on the clock."""
    return [
        {key: value for key, value in event.items() if key not in ("seconds", "waiting_s")}
        for event in read_log(folder / "log.jsonl")
    ]


def storm(root: Path, kills: int, seed: int, *, latest: float = 2.5) -> Outcome:
    """Kill lives of trainings, one training after another, until `kills` were killed and as many resumed.

    Args:
        root: Empty folder.
        kills: Number of kills and of resumes, at least.
        seed: Of their moments.
        latest: Seconds of processor time that a life takes at most; the moments are uniform.
    """
    wanted, dataset = settings(), small_dataset(root / "dataset")
    reference = root / "uninterrupted"
    truth = train_uninterrupted(dataset, reference, wanted)
    outcome, moment = Outcome(), moments(seed, 0.05, latest)
    folder = fresh(root / "killed")
    while min(outcome.kills, outcome.resumes) < kills:
        seconds, group = moment()
        found = last_step(folder)
        finished = live(partial(train, dataset, folder, wanted), seconds, group=group)
        outcome.resumes += 0 < found < last_step(folder)
        inspect(folder, truth, outcome)
        if (outcome.kills + outcome.runs) % 10 == 9:
            print(outcome, file=sys.stderr, flush=True)
        if not finished:
            outcome.kills += 1
            continue
        outcome.runs += 1
        same = sha256(folder / "model" / "model.safetensors") == sha256(reference / "model" / "model.safetensors")
        outcome.wrong_runs += not (same and course(folder) == course(reference))
        folder = fresh(folder)
    return outcome


def main() -> None:
    """Run the storm and print what it left behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latest", type=float, default=2.5, help="longest life in seconds of processor time")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="storm-") as root:
        outcome = storm(Path(root), options.kills, options.seed, latest=options.latest)
    print(json.dumps({**vars(outcome), "minutes": round((time.monotonic() - began) / 60, 1)}, indent=2))
    if outcome.unreadable or outcome.different or outcome.wrong_runs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
