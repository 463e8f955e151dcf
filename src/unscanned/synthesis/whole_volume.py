"""A whole volume in one fully convolutional pass, cut so that it fits a memory cap; the result does not show the cuts.

This is another function than the average of overlapping patches: a voxel sees the volume as far as the network reaches,
and padding at the volume's border only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from unscanned.errors import ResourceError, SettingsError
from unscanned.machine.memory import is_out_of_memory, keep_freed_memory_in_process
from unscanned.machine.threads import LARGEST
from unscanned.models.base import GeneratorBase
from unscanned.models.generators import evaluating
from unscanned.models.streaming import BRICKS, Brick, Stream
from unscanned.models.wrappers import finish, inner
from unscanned.progress import Progress

__all__ = ["DEFAULT_MEMORY_MIB", "check_network", "map_volume", "plan"]

DEFAULT_MEMORY_MIB = 1440
"On a CPU, or what the smallest part of a volume takes if that is more; on a GPU, four fifths of what is free."

LIBRARIES_MIB, THREAD_MIB = 56, 12
"What the matrix libraries and the allocator take for themselves, and for each thread more than one, as measured."
LOSS = 1.03
"What lies unused between arrays, as measured."
ONEDNN_ROWS = 20480
"Channels times rows from which PyTorch gives a single sample to oneDNN; below, it lays out every neighbourhood."
COPIES = 5
"Arrays of a layer's width that `Conv3d`, batch norm and LeakyReLU hold at once, reordered input and output included."

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """How a volume is cut.

    Attributes:
        tile: Voxels of output at a time.
        brick: Of the pass through a tile; None where the network takes it whole.
    """

    tile: Shape
    brick: Brick | None


def map_volume(
    volume: np.ndarray,
    network: nn.Module,
    *,
    memory_mib: int | None = None,
    tile: Shape | None = None,
    brick: Brick | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> np.ndarray:
    """Map a volume as if the network took it whole. The process keeps freed memory from then on.

    Args:
        volume: (channels, i, j, k), z-scores.
        network: A generator whose `reach` is known; switched to evaluation while it runs.
        memory_mib: MiB that the work may take, the input and the output included; None takes the default.
        tile: Voxels of output at a time along i, j and k, instead of what the memory allows. The result depends on
            neither beyond rounding.
        brick: Of the pass through a tile on a CPU, likewise; see `Stream`.
        device: Where the network is.
        progress: Called with (voxels done, all voxels, "voxels").

    Returns:
        (i, j, k), z-scores.

    Raises:
        SettingsError: The network's output depends on where a window starts, or the memory allowed holds no tile.
        ResourceError: The machine has less memory than was allowed.
    """
    device, generator = torch.device(device), check_network(network)
    keep_freed_memory_in_process()
    try:
        with evaluating(network):
            original, source = volume.shape[1:], torch.as_tensor(_padded(volume, generator.multiple))
            shape: Shape = tuple(source.shape[1:])  # type: ignore[assignment]
            stream = generator.stream(source.new_zeros((1, source.shape[0], 2, 2, 2), device=device))
            if tile is None or (stream is not None and brick is None):
                chosen = plan(network, shape, source.shape[0], memory_mib=memory_mib, stream=stream, device=device)
                tile, brick = tile or chosen.tile, brick or chosen.brick
            if any(t % generator.multiple for t in tile):
                raise SettingsError(
                    "tiles start where the network's levels have no voxel",
                    where="tile",
                    found=tile,
                    expected=f"multiples of {generator.multiple}",
                )
            out = source.new_empty(shape)
            done = 0
            for where, values in _pieces(network, stream, source, tile, brick, device):
                out[where] = values
                done += values.numel()
                if progress:
                    progress(done, out.numel(), "voxels")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            "memory does not hold the part of the volume that was to be mapped at a time",
            where=device,
            found=f"tiles of {tile} voxels, bricks of {brick}" if brick else f"tiles of {tile} voxels",
            do="Set synthesis.memory_mib lower.",
        ) from error
    return out[tuple(slice(n) for n in original)].contiguous().numpy()


def _padded(volume: np.ndarray, multiple: int) -> np.ndarray:
    """Return a volume whose far ends were continued by its outermost voxels to multiples of a number."""
    padding = [(0, -n % multiple) for n in volume.shape[1:]]
    if any(after for _, after in padding):
        volume = np.pad(volume, [(0, 0), *padding], mode="edge")
    return np.ascontiguousarray(volume)


def check_network(network: nn.Module) -> GeneratorBase:
    """Refuse a network that has no whole-volume pass, and return the generator inside of any other.

    Raises:
        SettingsError: Its output depends on where or how large a window is, as behind norms of each patch.
    """
    generator = inner(network)
    if not isinstance(generator, GeneratorBase) or generator.reach is None:
        raise SettingsError(
            "this generator cannot map a volume in exact tiles: its layers see where a tile starts",
            where="synthesis.mode",
            found=f"volume with {type(generator).__name__}",
            expected="patches",
        )
    return generator


def plan(
    network: nn.Module,
    shape: Shape,
    channels: int,
    *,
    memory_mib: int | None = None,
    stream: Stream | None = None,
    device: torch.device | str = "cpu",
) -> Plan:
    """Return the cut with the least arithmetic among those whose working set fits the memory.

    Args:
        network: As for `map_volume`.
        shape: (i, j, k) of the volume.
        channels: Of the volume.
        memory_mib: As for `map_volume`.
        stream: The network as it passes bricks through a tile; None if it takes whole tiles.
        device: Where the network is.

    Raises:
        SettingsError: The memory does not hold the smallest tile; says what would do.
    """
    device = torch.device(device)
    if memory_mib is None and device.type == "cuda":
        allowed = int(0.8 * torch.cuda.mem_get_info(device)[0])
    else:
        allowed = 2**20 * (memory_mib or DEFAULT_MEMORY_MIB)
    threads = min(torch.get_num_threads(), LARGEST) if device.type == "cpu" else 1
    fixed = 2**20 * (LIBRARIES_MIB + THREAD_MIB * (threads - 1)) + 4 * (channels + 1) * math.prod(shape)
    generator = check_network(network)
    reach = cast(int, generator.reach)
    plans: list[tuple[int, float, Plan]] = []
    bricks: Sequence[Brick | None] = [None] if stream is None else BRICKS
    tiles = _candidates(shape, reach, generator.multiple, stream is not None)
    for tile, brick in itertools.product(tiles, bricks):
        extents: Shape = tuple(min(n, t + 2 * reach) for n, t in zip(shape, tile, strict=True))  # type: ignore[assignment]
        count = math.prod(-(-n // t) for n, t in zip(shape, tile, strict=True))
        if stream is not None and brick is not None:
            work, cost = int(LOSS * stream.bytes(extents, brick)), count * stream.cost(extents, brick)
        else:
            least_rows = math.prod(min(n, t + reach) for n, t in zip(shape[:2], tile[:2], strict=True))
            work, cost = _tile_bytes(network, extents, least_rows), float(count * math.prod(extents))
        plans.append((fixed + work, cost, Plan(tile, brick)))
    if memory_mib is None and device.type == "cpu":  # no one set a limit, so no scan is refused for it
        allowed = max(allowed, min(needed for needed, *_ in plans))
    possible = [(cost, chosen) for needed, cost, chosen in plans if needed <= allowed]
    if not possible:
        raise SettingsError(
            f"the memory does not hold the smallest part of a volume of {shape} voxels",
            where="synthesis.memory_mib",
            found=allowed // 2**20,
            expected=f"at least {-(-min(needed for needed, *_ in plans) // 2**20)}",
            do="Raise it, or use mode patches, which needs less.",
        )
    return min(possible, key=lambda each: each[0])[1]


def _candidates(shape: Shape, reach: int, multiple: int, streams: bool) -> Iterator[Shape]:
    """Yield tiles from the whole volume down to a few voxels; whole along i where bricks pass through them."""
    lengths = []
    for n in shape:
        counts = range(1, max(2, -(-n // max(8, reach // 2)) + 1))
        lengths.append(sorted({multiple * -(-n // (count * multiple)) for count in counts}))
    if streams:
        lengths[0] = [shape[0]]
    yield from itertools.product(*lengths)  # type: ignore[misc]


def _tile_bytes(network: nn.Module, extents: Shape, least_rows: int) -> int:
    """Return what the network takes for a tile of that size, the smallest of which has so many rows along k."""
    declared = check_network(network).bytes_a_voxel()
    if declared is not None:
        return declared * math.prod(extents)
    convolutions = [c for c in network.modules() if isinstance(c, nn.Conv3d)]
    width = max(c.out_channels for c in convolutions)
    if width * least_rows > ONEDNN_ROWS:
        return 4 * COPIES * width * math.prod(extents)
    return 4 * max(c.in_channels * math.prod(c.kernel_size) for c in convolutions) * math.prod(extents)


def _pieces(
    network: nn.Module,
    stream: Stream | None,
    source: Tensor,
    tile: Shape,
    brick: Brick | None,
    device: torch.device,
) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
    """Yield parts of the output and where they belong.

    A tile is computed with the voxels around it that its output depends on, but never beyond the volume: at the
    volume's border the tile ends as the volume does, so that every layer pads it alike.
    """
    reach = cast(int, check_network(network).reach)
    axes = [
        [(start, min(start + t, n)) for start in range(0, n, t)] for n, t in zip(source.shape[1:], tile, strict=True)
    ]
    for ranges in itertools.product(*axes):
        wide = [
            (max(0, min(a, n - t) - reach), min(n, b + reach))  # the last tile is not smaller than the others
            for (a, b), n, t in zip(ranges, source.shape[1:], tile, strict=True)
        ]
        i, j, k = (slice(*r) for r in wide)
        part = source[:, i, j, k].to(device)
        inside = [slice(a - w, b - w) for (a, b), (w, _) in zip(ranges, wide, strict=True)]
        i, j, k = (slice(*r) for r in ranges)
        if stream is None or brick is None:
            with torch.inference_mode():
                values = network(part[None])[0, 0][inside[0], inside[1], inside[2]]
            yield (i, j, k), values.to("cpu", source.dtype)
            continue
        for *first, values in stream(part, brick):
            m, n = first
            source_there = part[None, :, m : m + values.shape[0], n : n + values.shape[1]]
            with torch.inference_mode():
                values = finish(network, source_there, values[None, None])[0, 0]
            kept, where = [], []
            for start, size, wanted, (origin, _) in zip((*first, 0), values.shape, inside, wide, strict=True):
                low = max(start, wanted.start)
                high = max(low, min(start + size, wanted.stop))
                kept.append(slice(low - start, high - start))
                where.append(slice(origin + low, origin + high))
            yield (where[0], where[1], where[2]), values[tuple(kept)].to("cpu")
