"""A volume through the nine layers a brick at a time: every voxel of every layer is computed once.

A brick is a few planes along i by a few rows along j, whole along k. Each layer keeps the last planes and the last rows
of its input that the next bricks of its output need, so the working set is a brick of one layer and these margins
instead of the volume. What lies outside the volume is zero in every layer, as same padding has it.

Arrays are (i, j, k, channel). The layers with large kernels take blocks of a brick, folded by parity
(`unscanned.models.folding`), to the frequency domain; for the others `Conv3d` itself is as fast as the processor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unscanned.models.folding import PARITIES, Layers, absorbed
from unscanned.models.spectral import LARGE_KERNEL, ValidKernel

__all__ = ["BRICKS", "Brick", "Stream"]

BLOCK = 16
"Edge of a block in folded voxels, as in a 32^3 patch: it stays in cache, and its kernel's spectrum in memory."

BRICKS = [(i, j) for i in (2, 4, 8, 12, 16, 24, 32, 64) for j in (2, 4, 8, 12, 16, 24, 32, 64)]
"Bricks to choose from."

GROUP = 2
"Blocks at a time: their matrix products are twice as wide."

OUTPUT_BYTES = 2**23
"Output of one call of `Conv3d`: larger ones are mapped anew by the C library each time."

Brick = tuple[int, int]
"Planes along i and rows along j: even, and whole blocks where they are more than one."


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution without padding along i and j.

    Attributes:
        weight: (out, in, K, K, K), batch norm inside.
        bias: (out,).
        slope: Of the LeakyReLU that follows; None for the last layer.
        dilation: 1 or 2.
    """

    weight: Tensor
    bias: Tensor
    slope: float | None
    dilation: int

    @property
    def reach(self) -> int:
        """Voxels on each side that an output voxel sees."""
        return self.dilation * (self.weight.shape[2] // 2)

    @property
    def into(self) -> int:
        """Channels of the input."""
        return self.weight.shape[1]

    @property
    def out(self) -> int:
        """Channels of the output."""
        return self.weight.shape[0]

    @property
    def is_spectral(self) -> bool:
        """Whether it goes through the frequency domain."""
        return self.dilation == 2 and self.weight.shape[2] >= LARGE_KERNEL and self.out <= self.into

    def block(self, brick: Brick, depth: int) -> tuple[int, int, int]:
        """Return the folded shape of the blocks of its output."""
        folded = -(-depth // 2)
        return min(BLOCK, brick[0] // 2), min(BLOCK, brick[1] // 2), -(-folded // -(-folded // BLOCK))

    def shape(self, brick: Brick, depth: int) -> tuple[int, int, int, int]:
        """Return the shape of its input for a brick of output: with margins, along k for whole blocks."""
        if self.is_spectral:
            edge = 2 * self.block(brick, depth)[2]
            depth = -(-depth // edge) * edge
        r = self.reach
        return brick[0] + 2 * r, brick[1] + 2 * r, depth + 2 * r, self.into


class Stream:
    """The nine layers in evaluation mode, for volumes of any size.

    Args:
        layers: The generator's; their weights and the norms' running statistics are read once.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = [
            Layer(weight, bias, layers.slope if number < len(layers.norms) else None, convolution.dilation[0])
            for number, (convolution, (weight, bias)) in enumerate(
                zip(layers.convolutions, absorbed(layers), strict=True)
            )
        ]

    @property
    def reach(self) -> int:
        """Voxels on each side that an output voxel of the last layer sees."""
        return sum(layer.reach for layer in self.layers)

    def offset(self, edge: int) -> int:
        """Return how far before the volume the first brick starts.

        Each layer is behind the one before it by its reach. So the layer with the largest kernel, which does most of
        the work, has bricks that start where the volume does, and no other.
        """
        largest = max(range(len(self.layers)), key=lambda number: self.layers[number].reach)
        return -sum(layer.reach for layer in self.layers[: largest + 1]) % edge

    def bricks(self, shape: tuple[int, ...], brick: Brick) -> tuple[int, int]:
        """Return how many bricks along i and j each layer takes, until the last layer has seen the volume's end."""
        i, j = (-(-(n + self.reach + self.offset(edge)) // edge) for n, edge in zip(shape, brick, strict=False))
        return i, j

    def cost(self, shape: tuple[int, int, int], brick: Brick) -> float:
        """Return the arithmetic, relative to other bricks: what the layer with the largest kernel transforms."""
        reach = max(layer.reach for layer in self.layers)
        cost = 1.0
        for n, edge in zip(shape, brick, strict=False):
            block = min(2 * BLOCK, edge)
            cost *= -(-n // block) * (block + 2 * reach)
        return cost

    def bytes(self, shape: tuple[int, int, int], brick: Brick) -> int:
        """Return what the pass keeps in memory, beside the volume and its output, in float32."""
        depth = shape[2]
        values = 2 * self._largest(brick, depth) + sum(layer.weight.numel() for layer in self.layers)
        rows = self.bricks(shape, brick)[1] * brick[1]
        kernels = 0
        for layer in self.layers:
            r, inner = layer.reach, depth * layer.into
            values += 2 * r * inner * (rows + brick[0] + 2 * r)
            if layer.is_spectral:
                taps, block = layer.weight.shape[2], layer.block(brick, depth)
                kernels += ValidKernel.bytes(layer.into, layer.out, taps, block, GROUP * PARITIES)
        return 4 * values + kernels + 4 * OUTPUT_BYTES

    def _largest(self, brick: Brick, depth: int) -> int:
        """Return the values of the largest array that a layer reads or the last one writes."""
        return max(math.prod(layer.shape(brick, depth)) for layer in self.layers)

    @torch.inference_mode()
    def __call__(self, source: Tensor, brick: Brick) -> Iterator[tuple[int, int, Tensor]]:
        """Map a volume, and yield what is finished.

        Args:
            source: (channels, i, j, k).
            brick: Its edges may be more than the volume's.

        Yields:
            The first plane, the first row, and the output from there on, (planes, rows, k). It holds until the next.
        """
        shape = tuple(source.shape[1:])
        depth, count = shape[2], self.bricks(shape, brick)
        kernels = [
            ValidKernel(layer.weight, layer.bias, layer.block(brick, depth), GROUP * PARITIES)
            if layer.is_spectral
            else None
            for layer in self.layers
        ]
        planes, rows = [], []  # for each layer those that it keeps for each brick along j, and for the next one
        for layer in self.layers:
            planes.append(source.new_zeros(count[1], 2 * layer.reach, brick[1], depth, layer.into))
            rows.append(source.new_zeros(brick[0] + 2 * layer.reach, 2 * layer.reach, depth, layer.into))
        memory = [source.new_empty(self._largest(brick, depth)) for _ in range(2)]
        for i, j in itertools.product(*(range(n) for n in count)):
            start = [number * edge - self.offset(edge) for number, edge in zip((i, j), brick, strict=True)]
            h = _array(memory[0], self.layers[0].shape(brick, depth))
            _read(source, start, _new(h, self.layers[0].reach, depth))
            for number, layer in enumerate(self.layers):
                _remember(h, layer.reach, depth, planes[number][j], rows[number], is_first=j == 0)
                start = [first - layer.reach for first in start]
                valid = [_clip(first, n, edge) for first, n, edge in zip(start, shape, brick, strict=False)]
                if number + 1 < len(self.layers):
                    following = self.layers[number + 1]
                    next_h = _array(memory[(number + 1) % 2], following.shape(brick, depth))
                    out = _new(next_h, following.reach, depth)
                else:
                    next_h = out = _array(memory[(number + 1) % 2], (*brick, depth, 1))
                _clear(out, valid)
                if all(part.stop > part.start for part in valid):
                    kernel = kernels[number]
                    if kernel is None:
                        _direct(layer, h, out, valid)
                    else:
                        _spectral(layer, kernel, h, out, valid)
                h = next_h
            finished = h[valid[0], valid[1], :, 0]
            if finished.numel():
                yield start[0] + valid[0].start, start[1] + valid[1].start, finished


def _array(memory: Tensor, shape: tuple[int, ...]) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _new(h: Tensor, reach: int, depth: int) -> Tensor:
    """Return the voxels of a layer's input that are new in this brick, as a view."""
    return h[2 * reach :, 2 * reach :, reach : reach + depth]


def _clip(first: int, n: int, edge: int) -> slice:
    """Return the part of positions first, first + 1, ... (`edge` of them) that lies within 0 and n."""
    start = min(max(0, -first), edge)
    return slice(start, max(start, min(edge, n - first)))


def _read(source: Tensor, start: list[int], out: Tensor) -> None:
    """Put a brick of the volume into (i, j, k, channel), zero where the volume ends."""
    valid = [_clip(first, n, edge) for first, n, edge in zip(start, source.shape[1:], out.shape, strict=False)]
    _clear(out, valid)
    i, j = (slice(first + part.start, first + part.stop) for first, part in zip(start, valid, strict=True))
    out[valid[0], valid[1]] = source[:, i, j].permute(1, 2, 3, 0)


def _clear(out: Tensor, valid: list[slice]) -> None:
    """Zero what lies outside the volume."""
    i, j = valid
    out[: i.start] = 0
    out[i.stop :] = 0
    out[:, : j.start] = 0
    out[:, j.stop :] = 0


def _remember(h: Tensor, reach: int, depth: int, planes: Tensor, rows: Tensor, *, is_first: bool) -> None:
    """Put in front of the new voxels what was kept from before, and keep the last for the next bricks."""
    r = reach
    h[:, :, :r] = 0
    h[:, :, r + depth :] = 0
    inner = h[:, :, r : r + depth]
    inner[: 2 * r, 2 * r :] = planes
    inner[:, : 2 * r] = 0 if is_first else rows
    rows.copy_(inner[:, inner.shape[1] - 2 * r :])
    planes.copy_(inner[inner.shape[0] - 2 * r :, 2 * r :])


def _direct(layer: Layer, h: Tensor, out: Tensor, valid: list[slice]) -> None:
    """Convolve the voxels that lie in the volume, a few planes at a time.

    They go as a batch of two: PyTorch leaves oneDNN, and is ten times slower, for a single sample of few rows.
    """
    i, j = valid
    r = layer.reach
    half = max(1, OUTPUT_BYTES // (2 * h.element_size() * math.prod(out.shape[1:])))
    weight = layer.weight.contiguous(memory_format=torch.channels_last_3d)
    begin, end = i.start // 2 * 2, -(-i.stop // 2) * 2  # a brick is even
    for first in range(begin, end, 2 * half):
        planes = min(half, (end - first) // 2)
        last = first + 2 * planes
        pair = h[first : last + 2 * r, j.start : j.stop + 2 * r].unfold(0, planes + 2 * r, planes)
        y = F.conv3d(pair.permute(0, 3, 4, 1, 2), weight, layer.bias, dilation=layer.dilation)
        if layer.slope is not None:
            F.leaky_relu_(y, layer.slope)
        out[first:last, j].unflatten(0, (2, planes)).copy_(y.permute(0, 2, 3, 4, 1))
    _clear(out, valid)


def _spectral(layer: Layer, kernel: ValidKernel, h: Tensor, out: Tensor, valid: list[slice]) -> None:
    """Convolve the blocks that meet the volume, in the frequency domain, parity by parity."""
    edge = [2 * n for n in kernel.result.points]
    blocks = [range(part.start // e * e, part.stop, e) for part, e in zip(valid, edge, strict=False)]
    depths = list(range(0, out.shape[2], edge[2]))
    for i, j in itertools.product(*blocks):
        for first in range(0, len(depths), GROUP):
            group = depths[first : first + GROUP]
            x = kernel.input(len(group) * PARITIES)
            for number, k in enumerate(group):
                part = h[tuple(slice(a, a + e + 2 * layer.reach) for a, e in zip((i, j, k), edge, strict=True))]
                views = _parities(part)
                for p in range(number * PARITIES // 2, (number + 1) * PARITIES // 2):
                    torch.complex(next(views), next(views), out=x[:, :, :, p])
            y = kernel(len(group) * PARITIES)
            if layer.slope is not None:
                F.leaky_relu_(y, layer.slope)
            for number, k in enumerate(group):
                part = out[i : min(i + edge[0], valid[0].stop), j : min(j + edge[1], valid[1].stop), k : k + edge[2]]
                for p, view in enumerate(_parities(part), number * PARITIES):
                    a, b, c = view.shape[:3]
                    view.copy_(y[:a, :b, :c, p // 2, p % 2])
    _clear(out, valid)


def _parities(x: Tensor) -> Iterator[Tensor]:
    """Yield the eight parity sub-grids of (i, j, k, channel), as views."""
    for i, j, k in itertools.product(range(2), repeat=3):
        yield x[i::2, j::2, k::2]
