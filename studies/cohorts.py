"""Cohorts of small scans on the workers of one machine: what they outlive, what a task costs, and what grows.

    python studies/cohorts.py storm OUT        200 scans; one corrupt, one deadly, a worker and the client killed
    python studies/cohorts.py throughput OUT   two workers against one, and the overhead of a task
    python studies/cohorts.py overhead OUT     the same with work that waits 2 s, whatever else the machine does
    python studies/cohorts.py ahead OUT        the next case is read while one is computed
    python studies/cohorts.py memory OUT       resident memory of a worker over scans, as memory.json and memory.png
    python studies/cohorts.py planning OUT     planning of 100,000 scans, with open files and inodes

Each writes JSON into OUT. The dataset and the model are made there: four simulated heads, and the demo's networks after
six steps, as the tests have them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from unscanned.cluster.cases import map_cases
from unscanned.cluster.summary import read_summary
from unscanned.cluster.workers import Cluster, open_cluster
from unscanned.files import write_json
from unscanned.settings import resolve
from unscanned.simulation.simulate import simulate
from unscanned.synthesis.array_job import emit_slurm, read_list
from unscanned.synthesis.audit import audit
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.synthesize import list_inputs, synthesize
from unscanned.training.run import train

TINY = {
    "prepare": {"shape": [32, 32, 32]},
    "split": {"train": 2, "validation": 1, "test": 1},
    "training": {
        "epochs": 2,
        "steps_per_epoch": 3,
        "batch": 2,
        "patch": 16,
        "min_head": 0.1,
        "validation_stride": 16,
        "device": "cpu",
    },
    "synthesis": {"stride": 16},
}

CRASH = """
import os
_open = os.open
def open(path, *given, **more):
    if "{mark}" in str(path):
        os.kill(os.getpid(), 9)  # as the kernel does when memory is short
    return _open(path, *given, **more)
os.open = open
"""


def write_scans(dataset: str | Path, folder: str | Path, count: int, *, contrast: str = "PDw") -> Path:
    """Write a dataset of `count` subjects: copies of the scans of `dataset` in turn."""
    scans = sorted(Path(dataset).glob(f"sub-*/anat/*_{contrast}.nii.gz"))
    for number in range(count):
        path = Path(folder, f"sub-{number:03d}", "anat", f"sub-{number:03d}_{contrast}.nii.gz")
        path.parent.mkdir(parents=True)
        shutil.copy(scans[number % len(scans)], path)
    shutil.copy(Path(dataset) / "dataset_description.json", folder)
    return Path(folder)


def deadly(folder: str | Path, mark: str) -> dict[str, str]:
    """Return an environment in which a process dies that opens a file with this mark in its path."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "sitecustomize.py").write_text(CRASH.format(mark=mark))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def start(*words: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, in a session of its own."""
    command = [sys.executable, "-m", "unscanned", *map(str, words)]
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the worker processes below a client: those that Dask spawned and that work."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(condition: Callable[[], object], seconds: float = 240.0) -> None:
    """Wait until something is the case."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.05)


def volumes(out: str | Path) -> dict[str, int]:
    """Return the synthetic volumes of a folder with the time they were written at."""
    return {path.name: path.stat().st_mtime_ns for path in Path(out).glob("sub-*/anat/sub-*.nii.gz")}


def statuses(out: str | Path) -> dict[str, int]:
    """Return how many scans have each status."""
    found = [row.status for row in read_summary(out).values()]
    return {status: found.count(status) for status in sorted(set(found))}


def world(out: Path) -> tuple[Path, Path]:
    """Return a dataset of four heads and a model that was trained on them for six steps."""
    dataset, run = out / "dataset", out / "run"
    if not dataset.exists():
        simulate(dataset, subjects=4, shape=(32, 40, 32), seed=1)
    train(dataset, run, resolve("demo", overrides=TINY), progress=None)
    return dataset, run / "model"


def storm(out: Path, count: int = 200) -> dict[str, object]:
    """Run a cohort through all that can happen to it, and count."""
    dataset, model = world(out)
    scans = write_scans(dataset, out / "scans", count)
    corrupt = scans / "sub-003" / "anat" / "sub-003_PDw.nii.gz"
    corrupt.write_bytes(corrupt.read_bytes()[:2000])
    environment = deadly(out / "deadly", "sub-005_PDw")
    made = out / "synthetic"
    call = ("synthesize", model, scans, "-o", made, "--cluster", "local:2", "--force")
    began = time.monotonic()
    first = start(*call, environment=environment)
    wait_for(lambda: len(volumes(made)) >= count // 4, 3600)
    os.kill(workers_of(first)[0].pid, signal.SIGKILL)
    wait_for(lambda: len(volumes(made)) >= count // 2, 3600)
    workers = workers_of(first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    wait_for(lambda: not any(worker.is_running() for worker in workers))
    before = volumes(made)
    second = start(*call, environment=environment)
    _, complained = second.communicate(timeout=3600)
    after, found = volumes(made), audit(made, progress=None)
    return {
        "scans": count,
        "outputs": len(after),
        "made before the client was killed": len(before),
        "made twice": sum(after[name] != moment for name, moment in before.items()),
        "exit": second.returncode,
        "rows": statuses(made),
        "audit": found.counts,
        "reasons": {Path(row.scan).name: row.reason for row in found.faults},
        "partial files left": len([*made.rglob(".partial-*")]),
        "seconds": round(time.monotonic() - began),
        "last words": complained.splitlines()[-1],
    }


def throughput(out: Path, count: int = 12, rounds: int = 3, stride: int = 2) -> dict[str, object]:
    """Time cohorts on one worker and on two, in turn, and the share of a worker's time that is not its work."""
    dataset, model = world(out)
    scans = list_inputs([write_scans(dataset, out / f"scans-{count}", count)], source="PD", target="T2")[0]
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for number in range(rounds):
        for workers in (1, 2):
            with open_cluster(f"local:{workers}", threads=1) as cluster:
                synthesize(model, scans[:2], out / "warm", force=True, overwrite=True, cluster=cluster, stride=stride)
                made, began = out / f"made-{workers}-{number}", time.monotonic()
                moments: list[float] = []
                synthesize(
                    model,
                    scans,
                    made,
                    force=True,
                    cluster=cluster,
                    stride=stride,
                    progress=lambda done, total, words, moments=moments: moments.append(time.monotonic()),
                )
                seconds = [row.seconds for row in read_summary(made).values()]
                # The audit comes after the last volume.
                until = max(path.stat().st_mtime for path in made.glob("sub-*/anat/*.json")) - time.time()
                wall = time.monotonic() + until - began
            found[workers].append(
                {"wall_s": wall, "scan_s": statistics.median(seconds), "overhead": 1 - sum(seconds) / (wall * workers)}
            )
    median = {
        workers: {key: statistics.median(each[key] for each in all_of_it) for key in all_of_it[0]}
        for workers, all_of_it in found.items()
    }
    return {
        "scans": count,
        "rounds": rounds,
        "median": median,
        "two over one": median[1]["wall_s"] / median[2]["wall_s"],
        "rounds_each": found,
        "load of the machine": os.getloadavg(),
        "cores": os.cpu_count(),
    }


def wait_2_s(case: int, progress: object) -> int:
    """Do what a model would that takes 2 s a scan, without a processor."""
    time.sleep(2.0)
    return case


def overhead(out: Path, count: int = 12, rounds: int = 3) -> dict[str, object]:
    """Time tasks of 2 s on one worker and on two, in turn: what is not waiting is the cost of the tasks."""
    names = [f"scan {number}" for number in range(count)]
    walls: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for workers in (1, 2):
            with open_cluster(f"local:{workers}", device="cpu", threads=1) as cluster:
                cluster.client.wait_for_workers(workers)
                list(map_cases(wait_2_s, range(workers), names=names, cluster=cluster))
                began = time.monotonic()
                list(map_cases(wait_2_s, range(count), names=names, cluster=cluster))
                walls[workers].append(time.monotonic() - began)
    median = {workers: statistics.median(all_of_it) for workers, all_of_it in walls.items()}
    return {
        "tasks": count,
        "walls, s": {workers: [round(wall, 2) for wall in all_of_it] for workers, all_of_it in walls.items()},
        "two over one": median[1] / median[2],
        "overhead of a task, one worker": median[1] / (2.0 * count) - 1,
        "overhead of a task, two workers": median[2] / (2.0 * count / 2) - 1,
        "load of the machine": os.getloadavg(),
    }


class Halves:
    """Work that waits half a second as if it read, and one second as if it computed, and says when; "deadly" kills."""

    def __call__(self, case: str, progress: object = None) -> tuple[float, ...]:
        """Wait, and return when reading and computing began and ended."""
        return self.read_ahead(case)(progress)

    def read_ahead(self, case: str) -> Callable[[object], tuple[float, ...]]:
        """Wait for the first half; what is returned waits for the second."""
        if case == "deadly":
            time.sleep(0.2)  # so that the worker has begun with the other case that it has in hand
            os.kill(os.getpid(), signal.SIGKILL)
        read = _waited(0.5)
        return lambda progress: (*read, *_waited(1.0))


def _waited(seconds: float) -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def halves(count: int, cluster: Cluster) -> tuple[float, list[tuple[float, ...]]]:
    """Return the time that so many cases of `Halves` take one worker, and their moments in the order of computing."""
    names = [f"scan {number}" for number in range(count)]
    began = time.monotonic()
    found = [outcome.get() for _, outcome in map_cases(Halves(), names, names=names, cluster=cluster)]
    return time.monotonic() - began, sorted(found, key=lambda moments: moments[2])


def ahead(out: Path, count: int = 20) -> dict[str, object]:
    """Time a worker that reads ahead beside one that does not: 0.5 s of reading and 1 s of computing a case."""
    walls = {}
    for reads_ahead in (False, True):
        with open_cluster("local:1", device="cpu", threads=1, reads_ahead=reads_ahead) as cluster:
            walls[reads_ahead] = round(halves(count, cluster)[0], 2)
    return {"cases": count, "one after the other, s": walls[False], "read ahead, s": walls[True]}


def memory(out: Path, count: int = 150) -> dict[str, object]:
    """Return the resident memory of the one worker after each scan, and draw it."""
    dataset, model = world(out)
    resident, limit = resident_mib(dataset, model, out, count)
    draw_memory(resident, out / "memory.png")
    third = len(resident) // 3
    return {
        "scans": count,
        "middle third, MiB": statistics.median(resident[third : 2 * third]),
        "last third, MiB": statistics.median(resident[2 * third :]),
        "most, MiB": max(resident),
        "limit, MiB": limit and limit / 2**20,
        "resident_mib": [round(value, 1) for value in resident],
    }


def resident_mib(dataset: Path, model: Path, out: Path, count: int) -> tuple[list[float], int | None]:
    """Return the resident memory of a worker after each scan of a cohort, MiB, and its limit, bytes."""
    scans = list_inputs([write_scans(dataset, out / "scans-memory", count)], source="PD", target="T2")[0]
    after: dict[str, float] = {}
    with open_cluster("local:1", threads=1) as cluster:
        (process,) = cluster.client.run(os.getpid).values()
        worker = psutil.Process(process)

        def look(done: int, total: int, words: str) -> None:
            after.setdefault(words.split()[0], worker.memory_info().rss / 2**20)

        synthesize(model, scans, out / "made-memory", force=True, cluster=cluster, progress=look)
        limit = cluster.memory_bytes
    return [after[str(done)] for done in range(1, count + 1)], limit


def draw_memory(resident: list[float], path: Path) -> None:
    """Draw resident memory over scans."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.2), layout="constrained")
    axes.plot(resident, color="#1f5f8b")
    axes.set(xlabel="scans done", ylabel="resident memory of the worker, MiB", ylim=(0, 1.25 * max(resident)))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def planning(out: Path, count: int = 100_000) -> dict[str, object]:
    """Time what a cohort of this size costs before its first scan is read; the scans are empty files."""
    _, model = world(out)
    table = out / "scans.csv"
    empty = out / "scan.nii.gz"
    empty.touch()
    table.write_text("subject,PD\n" + "".join(f"s{number:06d},scan.nii.gz\n" for number in range(count)))
    found: dict[str, object] = {"scans": count}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        began, used = time.monotonic(), time.process_time()
        result = work()
        found[f"{what}, s"] = round(time.monotonic() - began, 1)
        found[f"{what}, s of the processor"] = round(time.process_time() - used, 1)
        return result

    scans, _ = timed("listing", lambda: list_inputs([table], source="PD", target="T2"))
    loaded = load_model(model)
    timed("rows, list and script", lambda: emit_slurm(loaded, scans, out / "made-plan", out / "jobs"))
    timed("a task reads its list", lambda: read_list(out / "jobs"))
    timed("audit", lambda: audit(out / "made-plan", progress=None))
    found["inodes before any output"] = sum(1 for _ in (out / "made-plan").rglob("*")) + len(
        [*(out / "jobs").iterdir()]
    )
    found["open files"] = psutil.Process().num_fds()
    found["most memory, MiB"] = round(psutil.Process().memory_info().rss / 2**20)
    return found


STUDIES = {
    "storm": storm,
    "throughput": throughput,
    "overhead": overhead,
    "ahead": ahead,
    "memory": memory,
    "planning": planning,
}


def main() -> None:
    """Run one study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    result = STUDIES[given.study](given.out.resolve())
    write_json(given.out / f"{given.study}.json", result)
    print(json.dumps({key: value for key, value in result.items() if key != "resident_mib"}, indent=2))


if __name__ == "__main__":
    main()
