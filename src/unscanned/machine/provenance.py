"""What a result was made with: versions, commit, device, time."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["NAME", "environment", "utc_now", "version"]

NAME = "unscanned"

DEPENDENCIES = ("torch", "numpy", "nibabel", "scipy", "safetensors")


def version() -> str:
    """Return the version of the installed package."""
    return metadata.version("unscanned")


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what a result may depend on beside settings and data: software, device, threads."""
    import torch  # takes seconds, and the command line asks this module for the version

    device = torch.device(device)
    return {
        "unscanned": version(),
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in DEPENDENCIES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


@cache
def _commit() -> str | None:
    """Return the last commit that changed the package, in the checkout that it runs from; None outside of one."""
    folder = Path(__file__).parents[1]  # of the whole package
    try:
        top = subprocess.run(
            ["git", "-C", folder, "log", "-1", "--format=%H", "--", folder], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return top.stdout.strip() or None
