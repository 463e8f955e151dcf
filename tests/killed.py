"""Work that is killed between two changes of a folder, in a process of its own."""

import itertools
import os
import signal
import sys

import torch


def killed_at(number, work):
    """Do work in a child that kills itself before it renames or removes its number-th file; return its exit code."""
    child = os.fork()
    if child == 0:
        counted = itertools.count(1)

        def kill(event, arguments):
            if event in ("os.rename", "os.remove") and next(counted) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.set_num_threads(1)  # the threads of the process before are not in this one
        sys.addaudithook(kill)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
