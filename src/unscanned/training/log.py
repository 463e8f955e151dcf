"""What a training stage says while it runs: JSON lines for programs, TensorBoard for people. Logs are never fatal."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

from unscanned.errors import ResourceError
from unscanned.files import write_text

__all__ = ["RunLog", "read_log"]


class RunLog:
    """Appends events to `folder/log.jsonl` and their numbers to `folder/tensorboard`.

    Args:
        folder: The stage's folder.
        step: Steps already taken.
        validated: Steps taken at the last validation that was saved. What an interrupted run logged beyond either is
            dropped.
        writes: False for a log of which nothing is kept, as that of a rank that is not the first.
    """

    def __init__(self, folder: str | Path, step: int = 0, validated: int = 0, *, writes: bool = True) -> None:
        self.path, self.writes = Path(folder) / "log.jsonl", writes
        if not writes:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        kept = list(
            itertools.takewhile(
                lambda event: event["step"] <= (validated if event["event"] == "validation" else step),
                read_log(self.path),
            )
        )
        self._board = None
        # A folder may have a name that is no text, of which TensorBoard can make no file.
        with contextlib.suppress(OSError, ResourceError, UnicodeError):
            write_text(self.path, "".join(json.dumps(event) + "\n" for event in kept))
            self._board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)

    def write(self, event: str, *, step: int, **values: Any) -> None:
        """Append one event; numbers also go to TensorBoard under `event/name`."""
        if not self.writes:
            return
        with contextlib.suppress(OSError):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
            for name, value in values.items():
                if isinstance(value, float) and self._board is not None:
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """Flush both."""
        with contextlib.suppress(OSError):
            if self.writes and self._board is not None:
                self._board.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the events of a log.jsonl; lines that are damaged or cut off are left out. No file, no events."""
    events = []
    with contextlib.suppress(OSError):
        for line in Path(path).read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("event"), str) and type(event.get("step")) is int:
                    events.append(event)
    return events
