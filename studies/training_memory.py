"""Memory of a training over the number of its subjects: that of the process itself, without the pages of its files.

    python studies/training_memory.py --subjects 6 60 600 --json training-memory.json --plot training-memory.png

One prepared case of the given shape is made of noise. The others are hard links to its three volumes, with a case.json
each: a process maps each of them anew, so all that it holds for a case is there; only the page cache is shared, which
is not counted. Each training is a process of its own: intensity constants of all cases, the list of patches, a few
steps of the small generator, one validation, and checkpoints. `RssAnon` and its peak come from /proc, every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from unscanned.files import write_json, write_sealed
from unscanned.formats.case import CaseRecord, ScanFile
from unscanned.settings import resolve
from unscanned.training.inputs import TrainingRun
from unscanned.training.prepare import Case, normalization
from unscanned.training.stage import Stage

STEPS = 6


def make_cases(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    """Write one case of noise inside an ellipsoid, and others that are hard links to it."""
    first, random = folder / "sub-0000", np.random.default_rng(0)
    first.mkdir(parents=True)
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, n) for n in shape), indexing="ij")
    head = sum(axis**2 for axis in axes) < 1
    for name in ("source", "target"):
        np.save(first / f"{name}.npy", (head * (0.5 + 0.1 * random.standard_normal(shape))).astype(np.float32))
    np.save(first / "head.npy", head)
    scan = ScanFile(name="scan.nii.gz", sha256="0" * 64)
    for number in range(count):
        case = folder / f"sub-{number:04d}"
        case.mkdir(exist_ok=True)
        if number:
            for name in ("source", "target", "head"):
                os.link(first / f"{name}.npy", case / f"{name}.npy")
        record = CaseRecord(
            case=case.name,
            subject=case.name,
            source=scan,
            target=scan,
            source_scale=1.0,
            target_scale=1.0,
            settings={},
            frame={},
            bytes={},
            key="",
        )
        write_sealed(case / "case.json", record.to_json())


def train(folder: Path, count: int, shape: tuple[int, int, int]) -> dict[str, float]:
    """Train on so many cases and one more to validate on, and return the memory in MiB."""
    torch.set_num_threads(1)
    training = {"epochs": 1, "steps_per_epoch": STEPS, "min_head": 0.1, "device": "cpu", "batch": 2}
    settings = resolve("demo", overrides={"training": training, "prepare": {"shape": list(shape)}})
    cases = [Case(f"sub-{number:04d}", f"sub-{number:04d}", folder / f"sub-{number:04d}") for number in range(count)]
    peak, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):
            peak = max(peak, memory_mib()["RssAnon"])

    watcher = threading.Thread(target=watch, daemon=True)  # an error ends the process
    watcher.start()
    constants = normalization(cases)
    with tempfile.TemporaryDirectory() as run:
        shared = TrainingRun(Path(run), settings, cases[:-1], cases[-1:], constants, torch.device("cpu"))
        Stage(1, Path(run), cases[:-1], 0).train(shared)
    ended.set()
    watcher.join()
    found = memory_mib()
    return {"subjects": count - 1, "rss_anon_mib": found["RssAnon"], "peak_mib": max(peak, found["RssAnon"])}


def memory_mib() -> dict[str, float]:
    """Return what the system says of this process's memory."""
    status = Path("/proc/self/status").read_text()
    return {name: int(kib) / 1024 for name, kib in re.findall(r"^(Rss\w+):\s*(\d+) kB", status, re.MULTILINE)}


def measure(subjects: list[int], shape: tuple[int, int, int]) -> list[dict[str, float]]:
    """Return the memory of a training for each number of subjects."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        make_cases(Path(folder), max(subjects) + 1, shape)
        for count in subjects:
            words = [__file__, "--one", folder, "--subjects", str(count), "--shape", *map(str, shape)]
            began = time.monotonic()
            done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
            found.append({**json.loads(done.stdout), "seconds": time.monotonic() - began})
            print(json.dumps(found[-1]), file=sys.stderr)
    return found


def draw(found: list[dict[str, float]], path: Path) -> None:
    """Draw memory over subjects."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    subjects = [row["subjects"] for row in found]
    axes.plot(subjects, [row["peak_mib"] for row in found], "o-", label="peak")
    axes.plot(subjects, [row["rss_anon_mib"] for row in found], "s--", label="at the end")
    axes.set(xscale="log", xlabel="training subjects", ylabel="memory without file pages, MiB")
    axes.set_ylim(0, 1.2 * max(row["peak_mib"] for row in found))
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", type=int, nargs="+", default=[6, 60, 600])
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 224, 224])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", type=Path, help="folder of cases; of the process that trains")
    asked = parser.parse_args()
    i, j, k = asked.shape
    if asked.one is not None:
        print(json.dumps(train(asked.one, asked.subjects[0] + 1, (i, j, k))))
        return
    found = measure(asked.subjects, (i, j, k))
    if asked.json is not None:
        write_json(asked.json, {"shape": asked.shape, "steps": STEPS, "trainings": found})
    if asked.plot is not None:
        draw(found, asked.plot)


if __name__ == "__main__":
    main()
