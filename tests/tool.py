"""The command line as a process of its own, which is how its users meet it."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.utils.tensorboard  # an ordinary user may not read where it is

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


def torchrun(*arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run `unscanned` in several processes that PyTorch's torchrun starts."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "unscanned"]
    command = [sys.executable, *words, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)


def as_ordinary_user(action: Callable[[], object]) -> int:
    """Run an action in a child process that has no right to ignore permissions; return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        torch.set_num_threads(1)  # the threads of the process before are not in this one
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
