"""Same-padded dense convolution in the frequency domain: the function of `torch.nn.Conv3d`, with less arithmetic.

Arrays are (i, j, k, channel, batch) here. A kernel of edge K on n voxels needs a circular length of n + K // 2 only,
since the outputs that wrap are the ones that same padding cuts off. At these lengths the discrete Fourier transform is
cheapest as a matrix product along each axis, and in this layout its result is already (frequency, channel, batch): per
frequency the convolution is one complex matrix product over the channels, and nothing is transposed. Real input needs
half of the frequencies of i. The whole-volume pass has the last two axes the other way round, as `Conv3d` likes them.

The work goes through the cache in three sweeps. `_analyse` transforms along i and j, a block of columns at a time.
`_multiply` takes a few frequencies of i and j at a time, transforms them along k, multiplies them by the kernel and
transforms them back along k. `_synthesize` undoes i and j, again by blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Kernel", "ValidKernel", "kernel_spectrum", "spectral_convolution"]

CACHE_BYTES = 3 * 2**20
"Working set of one step: more than the second-level caches hold, but fewer and longer products."

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


@dataclass(frozen=True, eq=False)
class Axis:
    """The matrices of the discrete Fourier transform along one axis, for values at the given positions.

    Attributes:
        points: How many positions.
        length: Circular length, so many frequencies.
        half: Frequencies that a real signal determines.
        forward: (length, points), complex.
        inverse: (points, length), complex: values at the positions only.
        first: (2 half, points), real and imaginary rows in turn: forward for a real signal.
        last: (points, 2 half): inverse to a real signal.
    """

    points: int
    length: int
    half: int
    forward: Tensor
    inverse: Tensor
    first: Tensor
    last: Tensor


@functools.lru_cache(maxsize=128)
def _axis(first_position: int, points: int, length: int, sign: int, dtype: torch.dtype, device: torch.device) -> Axis:
    """Return the matrices for positions first_position, first_position + 1, ...; `sign` is the forward exponent's."""
    position = torch.arange(first_position, first_position + points, dtype=torch.float64)
    frequency = torch.arange(length, dtype=torch.float64)
    forward = torch.exp(sign * 2j * math.pi * torch.outer(frequency, position) / length)
    inverse = forward.conj().T / length
    half = length // 2 + 1
    mirrored = torch.full((half,), 2.0, dtype=torch.float64)
    mirrored[0] = 1.0
    if length % 2 == 0:
        mirrored[-1] = 1.0
    folded = inverse[:, :half] * mirrored
    first = torch.stack([forward[:half].real, forward[:half].imag], 1).reshape(2 * half, points)
    last = torch.stack([folded.real, -folded.imag], 2).reshape(points, 2 * half)

    def place(matrix: Tensor) -> Tensor:
        kind = COMPLEX[dtype] if matrix.is_complex() else dtype
        return matrix.resolve_conj().to(kind).contiguous().to(device)

    return Axis(points, length, half, place(forward), place(inverse), place(first), place(last))


Grid = tuple[Axis, Axis, Axis]


def _grids(shape: tuple[int, ...], kernel: int, like: Tensor) -> tuple[Grid, Grid]:
    """Return the transforms of a same-padded signal on that shape and of a cubic kernel for it.

    The kernel's exponent has the other sign: a convolution layer computes a cross-correlation.
    """
    lengths = [n + kernel // 2 for n in shape]
    return _grid(0, shape, lengths, -1, like), _grid(-(kernel // 2), (kernel,) * 3, lengths, 1, like)


def _grid(first: int, shape: tuple[int, ...], lengths: Sequence[int], sign: int, like: Tensor) -> Grid:
    with torch.inference_mode(False):
        axes = [_axis(first, n, m, sign, like.dtype, like.device) for n, m in zip(shape, lengths, strict=True)]
    return tuple(axes)  # type: ignore[return-value]


def _blocks(grid: Grid, columns: int) -> Iterator[slice]:
    """Yield slices of the columns whose first two transforms fit the cache."""
    a, b, _ = grid
    step = max(16, CACHE_BYTES // (4 * a.half * (3 * b.points + b.length)) // 16 * 16)
    for start in range(0, columns, step):
        yield slice(start, min(start + step, columns))


def _parts(rows: int, values: int) -> Iterator[slice]:
    """Yield slices of rows that fit the cache, given the complex values of a row."""
    step = max(1, CACHE_BYTES // (8 * values))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _memory(out: Tensor | None, like: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    """Return memory of that shape: the beginning of a flat tensor, or new."""
    if out is None:
        return like.new_empty(shape, dtype=dtype)
    return out[: math.prod(shape)].view(shape)


def _analyse(x: Tensor, grid: Grid, out: Tensor | None = None) -> Tensor:
    """Transform real (i, j, k, ...) along i and j: (frequencies of i and j, k, rest), complex."""
    a, b, c = grid
    x = x.reshape(a.points, b.points, -1)
    columns = x.shape[2]
    result = _memory(out, x, COMPLEX[x.dtype], a.half, b.length, columns)
    second = b.forward.expand(a.half, -1, -1)
    for block in _blocks(grid, columns):
        halves = torch.mm(a.first, x[:, :, block].reshape(a.points, -1)).view(a.half, 2, b.points, -1)
        result[:, :, block] = torch.bmm(second, torch.complex(halves[:, 0], halves[:, 1]))
    return result.view(a.half * b.length, c.points, -1)


def _synthesize(spectrum: Tensor, grid: Grid, out: Tensor | None = None) -> Tensor:
    """Undo `_analyse`: (frequencies of i and j, k, rest), complex, to real (i, j, k, rest)."""
    a, b, c = grid
    spectrum = spectrum.view(a.half, b.length, -1)
    columns = spectrum.shape[2]
    result = _memory(out, a.last, a.last.dtype, a.points, b.points, columns)
    second = b.inverse.expand(a.half, -1, -1)
    for block in _blocks(grid, columns):
        pairs = torch.view_as_real(torch.bmm(second, spectrum[:, :, block]))
        halves = result.new_empty(a.half, 2, *pairs.shape[1:3])
        halves[:, 0].copy_(pairs[..., 0])  # two strided copies are four times as fast as one transposition
        halves[:, 1].copy_(pairs[..., 1])
        result[:, :, block] = torch.mm(a.last, halves.view(2 * a.half, -1)).view(a.points, b.points, -1)
    return result.view(a.points, b.points, c.points, -1)


def _along_last(matrix: Tensor, x: Tensor, out: Tensor) -> None:
    """Multiply the middle axis of (row, from, rest) by a matrix, into memory for (row, to, rest)."""
    torch.bmm(matrix.expand(x.shape[0], -1, -1), x, out=out.view(x.shape[0], matrix.shape[0], -1))


def _kernel(weight: Tensor, taps: Grid) -> Tensor:
    """Return a kernel's spectrum, (frequencies of i and j, frequencies of k, out, in), complex."""
    out, into = weight.shape[:2]
    analysed = _analyse(weight.permute(2, 3, 4, 0, 1), taps)
    spectrum = weight.new_empty(analysed.shape[0], taps[2].length, out, into, dtype=analysed.dtype)
    _along_last(taps[2].forward, analysed, spectrum)
    return spectrum


def _multiply(x: Tensor, spectrum: Tensor, bias: Tensor | None, signal: Grid) -> Tensor:
    """Convolve what `_analyse` returns for (i, j, k, in, batch) with a kernel's spectrum: what `_synthesize` takes."""
    rows, depth, out, into = spectrum.shape
    batch = x.shape[2] // into
    result = x.new_empty(rows, x.shape[1], out * batch)
    for part in _parts(rows, depth * (out * batch + into * batch + out * into)):
        size = part.stop - part.start
        f = x.new_empty(size * depth, into, batch)
        _along_last(signal[2].forward, x[part], f)
        y = torch.bmm(spectrum[part].view(-1, out, into), f)
        if part.start == 0 and bias is not None:  # a constant lives in the frequency zero
            y[0] += (bias * math.prod(axis.length for axis in signal))[:, None]
        _along_last(signal[2].inverse, y.view(size, depth, -1), result[part])
    return result


class _SpectralConvolution(torch.autograd.Function):
    """Forward and the gradients, which are a convolution and a correlation with the same spectra."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        signal, taps = _grids(tuple(x.shape[:3]), weight.shape[2], x)
        spectrum, analysed = _kernel(weight, taps), _analyse(x, signal)
        ctx.save_for_backward(analysed, spectrum)
        ctx.grids, ctx.shape = (signal, taps), x.shape
        return _synthesize(_multiply(analysed, spectrum, bias, signal), signal).view(*x.shape[:3], -1, x.shape[4])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, spectrum = ctx.saved_tensors
        signal, taps = ctx.grids
        rows, depth, out, into = spectrum.shape
        batch, k = ctx.shape[4], taps[2].points
        need_x, need_weight, need_bias = ctx.needs_input_grad
        analysed = _analyse(gradient, signal)
        to_x = torch.empty_like(x) if need_x else None
        to_weight = x.new_empty(rows, k, out * into) if need_weight else None
        of_bias = None
        for part in _parts(rows, depth * (out * batch + into * batch + out * into)):
            size = part.stop - part.start
            g = x.new_empty(size * depth, out, batch)
            _along_last(signal[2].forward, analysed[part], g)
            if need_bias and part.start == 0:
                of_bias = g[0].real.sum(1)
            f = x.new_empty(size * depth, into, batch)
            if to_x is not None:
                torch.bmm(spectrum[part].view(-1, out, into).mH, g, out=f)
                _along_last(signal[2].inverse, f.view(size, depth, -1), to_x[part])
            if to_weight is not None:
                _along_last(signal[2].forward, x[part], f)
                _along_last(taps[2].inverse, torch.bmm(g, f.mH).view(size, depth, -1), to_weight[part])
        of_x = _synthesize(to_x, signal).view(ctx.shape) if to_x is not None else None
        of_weight = None
        if to_weight is not None:
            of_weight = _synthesize(to_weight, taps).view(k, k, k, out, into).permute(3, 4, 0, 1, 2).contiguous()
        return of_x, of_weight, of_bias


def spectral_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve as `torch.nn.functional.conv3d` does with same padding, stride 1 and dilation 1.

    Differentiable once in all three arguments.

    Args:
        x: (i, j, k, in, batch), float32 or float64, contiguous.
        weight: (out, in, K, K, K), K odd.
        bias: (out,) or None.

    Returns:
        (i, j, k, out, batch).

    Example:
        >>> spectral_convolution(torch.ones(4, 4, 4, 2, 1), torch.zeros(3, 2, 3, 3, 3)).shape
        torch.Size([4, 4, 4, 3, 1])
    """
    return _SpectralConvolution.apply(x, weight, bias)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A kernel's spectrum for one spatial shape, to be used many times without gradients."""

    spectrum: Tensor
    bias: Tensor | None
    signal: Grid

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve (i, j, k, in, batch) to (i, j, k, out, batch)."""
        y = _multiply(_analyse(x, self.signal), self.spectrum, self.bias, self.signal)
        return _synthesize(y, self.signal).view(*x.shape[:3], -1, x.shape[4])


def kernel_spectrum(weight: Tensor, bias: Tensor | None, shape: tuple[int, int, int]) -> Kernel:
    """Transform a kernel once for inputs of one shape.

    Args:
        weight: (out, in, K, K, K), K odd.
        bias: (out,) or None.
        shape: Spatial shape of the inputs.
    """
    signal, taps = _grids(shape, weight.shape[2], weight)
    return Kernel(_kernel(weight, taps), bias, signal)


class ValidKernel:
    """A kernel's spectrum for blocks of one spatial shape, convolved without padding and without gradients.

    Channels come last here, after the batch: blocks are cut from arrays that `Conv3d` made channels-last. The circular
    length is that of the block, since the outputs that wrap are the ones that have no full neighbourhood. The memory
    that a block needs is taken once: to take it anew for each costs more than the arithmetic.

    Args:
        weight: (out, in, K, K, K), K odd, out at most in.
        bias: (out,).
        shape: Spatial shape of the outputs, (i, j, k).
        batch: The largest batch.
    """

    def __init__(self, weight: Tensor, bias: Tensor, shape: tuple[int, int, int], batch: int) -> None:
        out, into, taps = weight.shape[:3]
        lengths = tuple(n + taps - 1 for n in shape)
        self.signal = _grid(0, lengths, lengths, -1, weight)
        self.result = _grid(taps // 2, shape, lengths, -1, weight)
        self.spectrum = _kernel(weight.transpose(0, 1), _grid(-(taps // 2), (taps,) * 3, lengths, 1, weight))
        self.bias = bias * math.prod(lengths)
        self.into, self.out = into, out
        self.block = weight.new_empty(math.prod(lengths) * batch * into)
        frequencies = self.signal[0].half * lengths[1] * lengths[2]
        self.work = weight.new_empty(frequencies * batch * into, dtype=COMPLEX[weight.dtype])

    @staticmethod
    def bytes(into: int, out: int, taps: int, shape: tuple[int, int, int], batch: int) -> int:
        """Return what such a kernel keeps, in bytes of float32."""
        i, j, k = (n + taps - 1 for n in shape)
        return 4 * (2 * (i // 2 + 1) * j * k * (into * out + batch * into) + i * j * k * batch * into)

    def input(self, batch: int) -> Tensor:
        """Return memory to put a block into, (i + K - 1, j + K - 1, k + K - 1, batch, in)."""
        shape = [axis.points for axis in self.signal]
        return self.block[: math.prod(shape) * batch * self.into].view(*shape, batch, self.into)

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve what `input` returned to (i, j, k, batch, out), which holds until the next call."""
        batch = x.shape[3]
        y = self._multiply(_analyse(x, self.signal, self.work), batch)
        shape = [axis.points for axis in self.result]
        return _synthesize(y, self.result, self.block).view(*shape, batch, self.out)

    def _multiply(self, x: Tensor, batch: int) -> Tensor:
        """Do as the function of that name. The product of a row is not longer than the row, and takes its place."""
        rows, depth, into, out = self.spectrum.shape
        result = self.work[: rows * self.result[2].points * batch * out].view(rows, -1, batch * out)
        for part in _parts(rows, depth * (out * batch + into * batch + out * into)):
            size = part.stop - part.start
            f = x.new_empty(size * depth, batch, into)
            _along_last(self.signal[2].forward, x[part], f)
            y = torch.bmm(f, self.spectrum[part].view(-1, into, out))
            if part.start == 0:
                y[0] += self.bias
            _along_last(self.result[2].inverse, y.view(size, depth, -1), result[part])
        return result
