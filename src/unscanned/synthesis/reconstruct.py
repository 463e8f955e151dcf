"""A volume from overlapping patches: each is mapped, and overlaps are averaged.

The reference, section V, averages with equal weights. A network that pads is worst at the border of a patch; with
Gaussian weights the border hardly counts where another patch covers it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from unscanned.errors import ResourceError, SettingsError
from unscanned.machine.memory import is_out_of_memory, keep_freed_memory_in_process
from unscanned.models.generators import FastGenerator, evaluating
from unscanned.progress import Progress
from unscanned.volumes.patches import axis_starts, cut, starts

__all__ = ["check_grid", "default_batch", "reconstruct"]


def default_batch(device: torch.device, patch: int = 32) -> int:
    """Return how many patches to map at a time: the voxels of sixteen of 32³ on a CPU, of 64 on a GPU.

    Sixteen is what was fastest on a CPU (docs/performance.md); 64 was not measured.
    """
    return max(1, min(64, (16 if device.type == "cpu" else 64) * 32**3 // patch**3))


def check_grid(patch: int, stride: int, batch: int | None = None) -> None:
    """Refuse a stride or a number of patches at a time that would leave voxels out.

    Raises:
        SettingsError: It is not within 1 and `patch`, or 1 and more.
    """
    if not 0 < stride <= patch:
        what = "the stride must be positive" if stride < 1 else "a stride larger than the patch leaves voxels out"
        raise SettingsError(what, where="stride", found=stride, expected=f"1 to {patch}")
    if batch is not None and batch < 1:
        raise SettingsError("the number of patches at a time must be positive", where="batch", found=batch)


def reconstruct(
    volume: np.ndarray,
    network: nn.Module,
    *,
    patch: int = 32,
    stride: int = 8,
    blend: Literal["equal", "gaussian"] = "equal",
    batch: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Map a volume through a network patch by patch, and average the overlaps.

    With equal weights it equals MONAI's `sliding_window_inference` (constant mode, the same patch and overlap) to
    rounding. A volume that is
    smaller than the patch along an axis is padded with its edge and cropped back. The memory does not depend on the
    number of patches: sums are running, and how often a voxel is covered follows from the positions alone. A patch in
    which every channel is constant is mapped once for each constant: equal patches have equal outputs. The process
    keeps freed memory from then on.

    Args:
        volume: (channels, i, j, k) float32, z-scores.
        network: Maps (batch, channels, patch, patch, patch) to (batch, 1, ...); switched to evaluation while it runs.
        patch: Edge of a patch, in voxels.
        stride: Voxels between neighbouring patches, at most `patch`.
        blend: Weights of the voxels of a patch where patches overlap: equal, or a Gaussian whose standard deviation is
            an eighth of the edge along each axis, as in MONAI, and along each at least a thousandth of its middle
            (MONAI has that bound on the product).
        batch: Patches at a time.
        device: Where the network is.
        progress: Called with (patches done, all patches, "patches").
        note: Told when memory did not hold the patches that were to be mapped at a time, and fewer were taken.

    Returns:
        (i, j, k) float32, z-scores.

    Raises:
        SettingsError: The stride or the batch would leave voxels out.
        ResourceError: Memory does not hold a single patch.
    """
    check_grid(patch, stride, batch)
    keep_freed_memory_in_process()
    device = torch.device(device)
    shape = volume.shape[1:]
    padding = [(0, max(0, patch - n)) for n in shape]
    source = torch.from_numpy(np.pad(np.asarray(volume, np.float32), [(0, 0), *padding], mode="edge"))
    positions = starts(source.shape[1:], patch, stride)
    size = batch or default_batch(device, patch)
    total, window = torch.zeros(source.shape[1:]), _window(patch, blend)
    weights = None if blend == "equal" else window[:, None, None] * window[:, None] * window
    constants: dict[tuple[float, ...], Tensor] = {}
    with evaluating(network), torch.inference_mode():
        mapped = FastGenerator(network)
        done = 0
        while done < len(positions):
            group = positions[done : done + size]
            outputs = None
            try:
                outputs = _map([cut(source, start, patch) for start in group], mapped, device, constants)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            if outputs is None:  # not earlier: by now the error has let go of what it held
                size = _halve(size, patch, device, note)
                continue
            for start, output in zip(group, outputs, strict=True):
                cut(total, start, patch).add_(output if weights is None else output * weights)
            done += len(group)
            if progress:
                progress(done, len(positions), "patches")
    for axis, n in enumerate(total.shape):
        count = torch.zeros(n)
        for first in axis_starts(n, patch, stride):
            count[first : first + patch] += window
        total /= count.view([-1 if a == axis else 1 for a in range(3)])
    return total[tuple(slice(n) for n in shape)].contiguous().numpy()


def _window(patch: int, blend: str) -> Tensor:
    """Return the weights of a patch along one axis, at most 1."""
    if blend == "equal":
        return torch.ones(patch)
    steps = torch.arange(patch) - (patch - 1) / 2
    return torch.exp(-0.5 * (steps / (patch / 8)) ** 2).clamp(min=1e-3)


def _halve(size: int, patch: int, device: torch.device, note: Callable[[str], None] | None) -> int:
    if size == 1:
        raise ResourceError(
            "memory does not hold a single patch",
            where=device,
            found=f"patches of {patch} voxels a side",
            do="End other programs, or use a machine with more memory.",
        )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if note:
        note(f"memory did not hold {size} patches at a time on {device}; {size // 2} were taken")
    return size // 2


def _map(
    tiles: list[Tensor],
    network: Callable[[Tensor], Tensor],
    device: torch.device,
    constants: dict[tuple[float, ...], Tensor],
) -> list[Tensor]:
    """Return the outputs (patch, patch, patch) of some patches, using and filling those of constant patches."""
    keys = [_constant(tile) or number for number, tile in enumerate(tiles)]
    wanted = {key: tile for key, tile in zip(keys, tiles, strict=True) if key not in constants}
    outputs: dict[tuple[float, ...] | int, Tensor] = {}
    if wanted:
        mapped = network(torch.stack(list(wanted.values())).to(device))
        outputs = dict(zip(wanted, mapped[:, 0].to("cpu", torch.float32), strict=True))
    constants.update({key: output for key, output in outputs.items() if isinstance(key, tuple)})
    return [outputs[key] if key in outputs else constants[key] for key in keys]  # type: ignore[index]


def _constant(tile: Tensor) -> tuple[float, ...] | None:
    first = tile[:, :1, :1, :1]
    return tuple(first.flatten().tolist()) if bool((tile == first).all()) else None
