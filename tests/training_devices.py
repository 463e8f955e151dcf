"""A training on two devices as processes of its own, and its ranks, for the tests that stop, kill and freeze them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import tool

from unscanned.training.log import read_log

EXITS_AT_A_SIGNAL = "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: os._exit(0))\n"
"A module that Python imports as it starts: the process ends at once, as if all was done."


def start(dataset: Path, run: Path, settings: Path, *options: object, devices: int = 2) -> subprocess.Popen[str]:
    """Start `unscanned train` on several devices; a rank that gets SIGUSR1 leaves with exit code 0."""
    place = run.with_name(f"{run.name}-python")
    place.mkdir(parents=True, exist_ok=True)
    (place / "sitecustomize.py").write_text(EXITS_AT_A_SIGNAL)
    environment = {**tool.ENVIRONMENT, "PYTHONPATH": os.pathsep.join((str(place), tool.ENVIRONMENT["PYTHONPATH"]))}
    words = ("train", dataset, "-o", run, "-p", "demo", "--settings", settings, "--training.devices", devices)
    return subprocess.Popen(
        [sys.executable, "-m", "unscanned", *map(str, (*words, *options))],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Train to the end."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def await_step(process: subprocess.Popen[str], run: Path, step: int = 1) -> None:
    """Wait until a training has taken so many steps."""
    while last_step(run) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def last_step(run: Path) -> int:
    """Return the last step in a run's log."""
    return max((event["step"] for event in read_log(run / "log.jsonl") if event["event"] == "step"), default=0)


def ranks(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """Return the processes that a launcher has started, by their rank."""
    return {int(child.environ()["RANK"]): child for child in psutil.Process(process.pid).children()}


def end(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, list[str], float]:
    """Wait for the end, and return the exit code, the lines on standard error and the seconds that it took."""
    began = time.monotonic()
    _, err = process.communicate(timeout=timeout)
    return process.returncode, [line for line in err.splitlines() if "warning" not in line], time.monotonic() - began
