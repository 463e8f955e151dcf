"""Cohorts of small scans in which some kill their worker, for the tests of clusters and the study of cohorts."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from unscanned.cluster.summary import read_summary

CRASH = """
import os
_open = os.open
def open(path, *given, **more):
    if "{mark}" in str(path):
        os.kill(os.getpid(), 9)  # as the kernel does when memory is short
    return _open(path, *given, **more)
os.open = open
"""


def write_scans(dataset, folder, count, *, contrast="PDw"):
    """Write a dataset of `count` subjects: copies of the scans of `dataset`, each with a header of its own."""
    scans = sorted(Path(dataset).glob(f"sub-*/anat/*_{contrast}.nii.gz"))
    for number in range(count):
        path = Path(folder, f"sub-{number:03d}", "anat", f"sub-{number:03d}_{contrast}.nii.gz")
        path.parent.mkdir(parents=True)
        shutil.copy(scans[number % len(scans)], path)
    shutil.copy(Path(dataset) / "dataset_description.json", folder)
    return Path(folder)


def deadly(folder, mark):
    """Return an environment in which a process dies that opens a file with this mark in its path."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, "sitecustomize.py").write_text(CRASH.format(mark=mark))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def start(*words, environment=None, **how):
    """Start the command line in a process of its own, in a session of its own."""
    command = [sys.executable, "-m", "unscanned", *map(str, words)]
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **how,
    )


def workers_of(process):
    """Return the worker processes below a client: those that Dask spawned and that work."""
    import psutil

    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for(condition, seconds=120.0):
    """Wait until something is the case."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.05)


def volumes(out):
    """Return the synthetic volumes of a folder with the time they were written at."""
    return {path.name: path.stat().st_mtime_ns for path in Path(out).glob("sub-*/anat/sub-*.nii.gz")}


def statuses(out):
    """Return how many scans have each status."""
    found = [row.status for row in read_summary(out).values()]
    return {status: found.count(status) for status in sorted(set(found))}
