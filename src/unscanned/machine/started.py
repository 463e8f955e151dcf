"""How this process was started: alone, or as one of several that train together. Needs no PyTorch.

`torchrun`, or PyTorch's elastic agent in `unscanned train --training.devices N`, tells it in the environment.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time

from unscanned.errors import ResourceError, UnscannedError

__all__ = ["RankLost", "hand_over", "is_rank", "local_rank", "sizes", "tells"]

AFTER_OTHERS_S = 3.0
"That a rank waits before it says that another is lost, so that the cause is told first."

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


class RankLost(ResourceError):
    """Another process of this training has died or hangs."""


def is_rank() -> bool:
    """Whether this process was started as one of several that train together."""
    return sizes()[0] > 1 and "RANK" in os.environ


def sizes() -> tuple[int, int]:
    """Return how many processes were started to train together, and how many of them on this host."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return size, int(os.environ.get("LOCAL_WORLD_SIZE", size))


def local_rank() -> int:
    """Return the number of this process among those of its host."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def tells() -> bool:
    """Whether this process is the one that speaks to the user: rank 0, or one that is alone."""
    return not is_rank() or os.environ["RANK"] == "0"


def hand_over(message: str, error: UnscannedError | None) -> bool:
    """Hand what went wrong in a rank to the process that started it, which tells it once.

    Args:
        message: In words.
        error: What was raised.

    Returns:
        Whether it was handed over; otherwise this process has to tell it.
    """
    path = os.environ.get(_ERROR_FILE)
    if path is None or not is_rank():
        return False
    is_waiting = isinstance(error, RankLost)
    # One that waits for a lost rank may be ended without a word. One that ends of itself must not be cut off because
    # another was quicker.
    if threading.current_thread() is threading.main_thread():
        for caught in (signal.SIGINT, signal.SIGTERM):
            signal.signal(caught, signal.SIG_DFL if is_waiting else signal.SIG_IGN)
    if is_waiting:
        time.sleep(AFTER_OTHERS_S)
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump({"message": message, "timestamp": time.time_ns() // 10**9}, file)
    return True
