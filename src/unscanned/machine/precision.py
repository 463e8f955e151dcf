"""The arithmetic of the networks: float32, TF32 or bfloat16, checked against the device before any work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from unscanned.errors import SettingsError

__all__ = ["PRECISIONS", "autocast", "available", "check_precision", "set_process_precision"]

PRECISIONS = ("float32", "tf32", "bfloat16")
"Weights, losses and sums are float32 in all of them; `tf32` and `bfloat16` shorten the factors of products."


def check_precision(name: str, device: torch.device, *, convolution: str = "auto", where: str = "precision") -> None:
    """Refuse a precision that a device does not have.

    Args:
        name: One of `PRECISIONS`.
        device: That the networks run on.
        convolution: The generator's: the frequency domain takes float32 alone.
        where: Setting that named the precision, for messages.

    Raises:
        SettingsError: Unknown, or not possible on the device; names what would do.
    """
    possible = available(device)
    if name not in possible:
        raise SettingsError(
            "the device has no arithmetic of this precision" if name in PRECISIONS else "no such precision",
            where=where,
            found=f"{name} on {device}",
            expected=f"one of {', '.join(possible)}",
        )
    if name != "float32" and convolution == "spectral":
        raise SettingsError(
            "the frequency domain is computed in float32",
            where=where,
            found=f"{name} with generator.convolution = spectral",
            expected="float32, or generator.convolution auto or plain",
        )


def set_process_precision(name: str, device: torch.device | str) -> None:
    """Set the precision for all that follows in this process, backward passes included, which `autocast` leaves alone.

    On CUDA, PyTorch shortens the factors of convolutions to TF32 unless told otherwise: `float32` here means float32.
    """
    if torch.device(device).type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"


def available(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that a device computes in hardware."""
    if device.type == "cuda":
        return PRECISIONS if torch.cuda.get_device_capability(device) >= (8, 0) else PRECISIONS[:1]
    instructions = torch.cpu.get_capabilities()
    has_bfloat16 = any(instructions.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))
    return ("float32", "bfloat16") if has_bfloat16 else ("float32",)


@contextlib.contextmanager
def autocast(name: str, device: torch.device | str) -> Iterator[None]:
    """Have networks compute in that precision meanwhile; what was set up for the process holds again afterwards."""
    kind = torch.device(device).type
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn] if kind == "cuda" else []
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = name == "tf32"
        with torch.autocast(kind, torch.bfloat16) if name == "bfloat16" else contextlib.nullcontext():
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
