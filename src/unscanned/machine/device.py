"""The device that networks run on."""

from __future__ import annotations

import torch

from unscanned.errors import ResourceError, SettingsError

__all__ = ["choose"]


def choose(name: str = "auto", *, threads: int | None = None) -> torch.device:
    """Return the device of that name; `auto` is the first CUDA device if there is one, else the CPU.

    Args:
        name: auto, cpu, cuda or cuda:N.
        threads: CPU threads for all that follows in this process; None leaves it to PyTorch.

    Raises:
        SettingsError: Not the name of a device, or less than one thread.
        ResourceError: A CUDA device that is not there.
    """
    if threads is not None:
        if threads < 1:
            raise SettingsError("no such number of threads", where="threads", found=threads, expected="1 or more")
        torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(
            "no such device", where="device", found=name, expected="auto, cpu, cuda or cuda:N"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError("no such device", where="device", found=name, expected="auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            "the device is not there",
            where="device",
            found=f"{torch.cuda.device_count()} CUDA devices",
            expected=name,
            do="Use --training.device cpu, or install a driver and a CUDA build of PyTorch.",
        )
    return device
