"""What a patch costs at least in the frequency domain: operations and bytes, counted, against the machine's peaks."""

from __future__ import annotations

from typing import Any

from unscanned.models.folding import PARITIES, polyphase
from unscanned.models.nie import NieGenerator

__all__ = ["direct_operations", "floor", "spectral_cost"]


def spectral_cost(grid: int, kernel: int, into: int, out: int, batch: int) -> tuple[int, int]:
    """Return operations and bytes of one same-padded layer of `unscanned.models.spectral`, the kernel's spectrum kept.

    A complex product counts eight operations a pair. Bytes are those of arrays that do not stay in cache between two
    sweeps: input, both transforms along i and j, the kernel's spectrum and output, each read and written in float32.

    Args:
        grid: Voxels a side.
        kernel: Edge of the kernel.
        into: Input channels.
        out: Output channels.
        batch: Real signals that are convolved alike; two are one complex signal.
    """
    pairs = -(-batch // 2)
    length = grid + kernel // 2
    transforms = 8 * length * grid * (grid**2 + length * grid + length**2)
    operations = transforms * (into + out) * pairs + 8 * length**3 * into * out * pairs
    spectrum = 2 * (length // 2 + 1) * length**2 * into * out
    values = (grid**3 * batch + 2 * 2 * length**2 * grid * pairs) * (into + out) + spectrum
    return operations, 4 * values


def direct_operations(network: NieGenerator, edge: int) -> int:
    """Return the operations of the plain convolutions on a patch, padding included."""
    return sum(2 * edge**3 * convolution.weight.numel() for convolution in network.layers[0])


def floor(network: NieGenerator, edge: int, patches: int, machine: dict[str, Any]) -> dict[str, float]:
    """Return what one patch costs at least.

    Args:
        network: The generator.
        edge: Of the patch, even.
        patches: At a time: they share the reading of the kernels' spectra.
        machine: As `benchmark.machine` returns it.

    Returns:
        Operations of both paths in GFLOP, bytes in GB, and the seconds that each takes at the machine's peak; a patch
        takes at least the larger of `seconds_operations` and `seconds_bytes`.
    """
    operations = moved = 0
    convolutions = network.layers[0]
    for number, convolution in enumerate(convolutions):
        weight, batch = convolution.weight.detach(), PARITIES * patches
        if number in (0, len(convolutions) - 1):
            weight, batch = polyphase(weight), patches
        cost = spectral_cost(edge // 2, weight.shape[2], weight.shape[1], weight.shape[0], batch)
        operations, moved = operations + cost[0], moved + cost[1]
    gigaflop, gigabyte = operations / patches / 1e9, moved / patches / 1e9
    return {
        "patches": patches,
        "plain_gigaflop": direct_operations(network, edge) / 1e9,
        "gigaflop": gigaflop,
        "gigabyte": gigabyte,
        "seconds_operations": gigaflop / machine["gigaflop_per_second"],
        "seconds_bytes": gigabyte / machine["copied_gigabyte_per_second"],
    }
