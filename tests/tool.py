"""The command line as a process of its own, which is how its users meet it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import unscanned

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(unscanned.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "200",
}


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start `unscanned` with these arguments, its output piped."""
    return subprocess.Popen(
        [sys.executable, "-m", "unscanned", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `unscanned` to its end."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
