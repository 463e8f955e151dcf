"""The device that networks run on."""

from __future__ import annotations

import torch

from unscanned.errors import ResourceError, SettingsError

__all__ = ["choose_device"]


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; `auto` is the first CUDA device if there is one, else the CPU.

    Args:
        name: auto, cpu, cuda or cuda:N.

    Raises:
        SettingsError: Not the name of a device.
        ResourceError: A CUDA device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"no networks run on {device}")
    except RuntimeError as error:
        raise SettingsError(
            "no such device", where="device", found=name, expected="auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            "the device is not there",
            where="device",
            found=f"{torch.cuda.device_count()} CUDA devices",
            expected=name,
            do="Choose the device cpu, or install a driver and a CUDA build of PyTorch.",
        )
    return device
