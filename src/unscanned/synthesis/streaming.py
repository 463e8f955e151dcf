"""A volume through the nine layers a few planes at a time: every voxel of every layer is computed once.

Each layer keeps the last planes of its input that the next planes of its output need, so the working set is a few
planes of each layer instead of the volume. What lies outside the volume is zero in every layer, as same padding has it.
The volume is folded by parity (`unscanned.models.folding`), and a layer works on blocks of it in the frequency domain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unscanned.models.folding import PARITIES, absorb, fold, polyphase, unfold
from unscanned.models.generators import NieGenerator
from unscanned.models.spectral import kernel_spectrum

__all__ = ["Stream"]

BLOCK = 16
"Edge of a block in folded voxels: what one 32^3 patch has, so that it stays in cache."


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution on folded planes.

    Attributes:
        weight: (out, in, k, k, k), batch norm inside, dense.
        bias: (out,).
        slope: Of the LeakyReLU that follows; None for the last layer.
        batch: Sub-grids that are convolved alike: 8 between the first and the last layer, 1 in these.
    """

    weight: Tensor
    bias: Tensor
    slope: float | None
    batch: int

    @property
    def radius(self) -> int:
        """Folded voxels on each side that an output voxel sees."""
        return self.weight.shape[2] // 2

    @property
    def into(self) -> int:
        """Values of a folded voxel in the input."""
        return self.weight.shape[1] * self.batch

    @property
    def out(self) -> int:
        """Values of a folded voxel in the output."""
        return self.weight.shape[0] * self.batch


class Stream:
    """A generator in evaluation mode, for volumes of any size.

    Args:
        generator: Its weights and running statistics are read once.
    """

    def __init__(self, generator: NieGenerator) -> None:
        self.layers: list[Layer] = []
        last = len(generator.convolutions) - 1
        for number, convolution in enumerate(generator.convolutions):
            weight, bias = convolution.weight.detach(), convolution.bias.detach()  # type: ignore[union-attr,operator]
            if number < last:
                weight, bias = absorb(weight, bias, generator.norms[number])  # type: ignore[arg-type]
            mixes = number in (0, last)
            if mixes:
                weight, bias = polyphase(weight), bias.repeat_interleave(PARITIES)
            slope = None if number == last else float(generator.activation.negative_slope)
            self.layers.append(Layer(weight, bias, slope, 1 if mixes else PARITIES))

    @torch.inference_mode()
    def __call__(self, source: Tensor, planes: int) -> Iterator[tuple[int, Tensor]]:
        """Map a volume, and yield what is finished.

        Args:
            source: (channels, i, j, k).
            planes: Planes along i at a time, a multiple of 2.

        Yields:
            The first plane and the next planes of the output, (planes, j, k); the last ones may be fewer.
        """
        shape = tuple(source.shape[1:])
        blocks = _Blocks.of(shape[1:])
        step = planes // 2
        tails = [source.new_zeros(0)] * len(self.layers)
        delay = sum(layer.radius for layer in self.layers)
        for start in range(0, (shape[0] + 1) // 2 + delay, step):
            first = start
            h = _folded_planes(source, start, step, blocks, self.layers[0].radius)
            for number, layer in enumerate(self.layers):
                self._remember(tails, number, h, step)
                first -= layer.radius
                margin = self.layers[number + 1].radius if number + 1 < len(self.layers) else 0
                h = _convolve(layer, h, step, blocks, margin)
                _clear_outside(h, first, margin, shape)
            if first + step > 0:
                yield from _finished(h, first, shape)

    @property
    def radius(self) -> int:
        """The largest radius of a layer, in folded voxels: with few planes at a time, most of the work is for it."""
        return max(layer.radius for layer in self.layers)

    def bytes(self, shape: tuple[int, int, int], planes: int) -> int:
        """Return what the pass works in, beside the volume and its output.

        That is the planes kept by all layers, and for the layer with the largest sum: its input, its output, its
        kernel's spectrum and the work on one block.
        """
        blocks, step = _Blocks.of(shape[1:]), planes // 2
        kept = largest = 0
        for number, layer in enumerate(self.layers):
            r = layer.radius
            margin = self.layers[number + 1].radius if number + 1 < len(self.layers) else 0
            edges = (step + 2 * r, blocks.edge[0] + 2 * r, blocks.edge[1] + 2 * r)
            spectrum = (edges[0] // 2 + 1) * edges[1] * edges[2] * 2 * layer.into * layer.out // layer.batch**2
            block = math.prod(edges) * (4 * layer.into + 5 * layer.out)
            held = (step + 2 * r) * blocks.area(r) * layer.into
            made = (step + 2 * margin) * blocks.area(margin) * layer.out
            kept += 2 * r * blocks.area(r) * layer.into
            largest = max(largest, held + made + spectrum + block)
        return self.layers[0].weight.element_size() * (kept + largest)

    def _remember(self, tails: list[Tensor], number: int, h: Tensor, step: int) -> None:
        """Put the planes kept from before in front of the new ones, and keep the last ones for the next time."""
        kept = 2 * self.layers[number].radius
        if tails[number].numel():
            h[:kept] = tails[number]
        tails[number] = h[step:].clone()


@dataclass(frozen=True)
class _Blocks:
    """How a folded plane is cut: `count` blocks of `edge` voxels along j and k."""

    count: tuple[int, int]
    edge: tuple[int, int]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> _Blocks:
        folded = [(n + 1) // 2 for n in shape]
        j, k = (-(-n // BLOCK) for n in folded)
        return cls((j, k), (-(-folded[0] // j), -(-folded[1] // k)))

    @property
    def size(self) -> tuple[int, int]:
        """Folded voxels of a plane, whole blocks."""
        return self.count[0] * self.edge[0], self.count[1] * self.edge[1]

    def area(self, margin: int) -> int:
        """Return the folded voxels of a plane with a margin around it."""
        return (self.size[0] + 2 * margin) * (self.size[1] + 2 * margin)


def _empty(like: Tensor, planes: int, margin: int, blocks: _Blocks, values: int) -> Tensor:
    """Return zeros for planes with a margin all around; those kept from before come first."""
    j, k = blocks.size
    return like.new_zeros(planes + 2 * margin, j + 2 * margin, k + 2 * margin, values)


def _inside(h: Tensor, margin: int) -> Tensor:
    """Return the planes that are new, without margins, as a view."""
    return h[2 * margin :, margin : h.shape[1] - margin, margin : h.shape[2] - margin]


def _folded_planes(source: Tensor, start: int, step: int, blocks: _Blocks, margin: int) -> Tensor:
    """Return folded planes start ... start + step - 1 of the volume, zero where it ends."""
    h = _empty(source, step, margin, blocks, PARITIES * source.shape[0])
    part = source[:, 2 * start : 2 * (start + step)]
    j, k = blocks.size
    if part.shape[1]:
        padding = [2 * k - part.shape[3], 2 * j - part.shape[2], 2 * step - part.shape[1]]
        part = F.pad(part[None], [value for n in padding for value in (0, n)])
        _inside(h, margin).copy_(fold(part)[..., 0])
    return h


def _convolve(layer: Layer, h: Tensor, step: int, blocks: _Blocks, margin: int) -> Tensor:
    """Return the layer's output, block by block, with room for the margin that the next layer needs."""
    r = layer.radius
    out = _empty(h, step, margin, blocks, layer.out)
    inside = _inside(out, margin)
    ej, ek = blocks.edge
    kernel = kernel_spectrum(layer.weight, layer.bias, (step + 2 * r, ej + 2 * r, ek + 2 * r), padded=False)
    for j in range(0, blocks.size[0], ej):
        for k in range(0, blocks.size[1], ek):
            x = h[:, j : j + ej + 2 * r, k : k + ek + 2 * r].contiguous()
            y = kernel(x.view(*x.shape[:3], -1, layer.batch))[r : r + step, r : r + ej, r : r + ek]
            if layer.slope is not None:
                y = F.leaky_relu(y, layer.slope)
            inside[:, j : j + ej, k : k + ek] = y.flatten(3)
    return out


def _clear_outside(h: Tensor, first: int, margin: int, shape: tuple[int, ...]) -> None:
    """Zero what the layer made outside the volume: there the next layer has to see padding."""
    inside = _inside(h, margin)
    parts = inside.view(*inside.shape[:3], -1, 2, 2, 2)
    for axis, n in enumerate(shape):
        start = first if axis == 0 else 0
        for parity in (0, 1):
            part = parts.select(4 + axis, parity).movedim(axis, 0)
            part[: max(0, -start)] = 0
            part[max(0, (n - parity + 1) // 2 - start) :] = 0


def _finished(h: Tensor, first: int, shape: tuple[int, ...]) -> Iterator[tuple[int, Tensor]]:
    """Yield the planes that lie in the volume."""
    planes = unfold(h[..., None])[0, 0, max(0, -2 * first) :, : shape[1], : shape[2]]
    start = max(0, 2 * first)
    planes = planes[: shape[0] - start]
    if len(planes):
        yield start, planes
