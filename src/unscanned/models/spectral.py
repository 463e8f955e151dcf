"""Same-padded dense convolution in the frequency domain: the function of `torch.nn.Conv3d`, with less arithmetic.

Arrays are (i, j, k, channel, batch) here. A kernel of edge K on n voxels needs a circular length of n + K // 2 only,
since the outputs that wrap are the ones that same padding cuts off. At these lengths the discrete Fourier transform is
cheapest as a matrix product along each axis, and in this layout its result is already (frequency, channel, batch): per
frequency the convolution is one complex matrix product over the channels, and nothing is transposed.

Two real signals that lie side by side in memory are one complex signal, x + i y, as they stand; a real kernel does to
it what it does to both. A signal is therefore transformed to all frequencies of i, and a kernel to half of them: at the
opposite frequency its spectrum is the conjugate. So that the two meet, the rows of i are 0, 1, ..., then -1, -2, ...,
and along j and k the negative ones are transformed with the opposite sign: what a row and its mirror hold at one place
belongs to opposite frequencies.

The work goes through the cache in three sweeps, whose pieces the threads share. `_analyse` transforms along i and j, a
block of columns at a time. `_multiply` takes a few frequencies of i and j at a time, and their mirrors, transforms them
along k, multiplies them by the kernel and transforms them back along k. `_synthesize` undoes i and j, again by blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unscanned.machine.threads import for_each

__all__ = ["LARGE_KERNEL", "Kernel", "ValidKernel", "kernel_spectrum", "spectral_convolution"]

LARGE_KERNEL = 7
"""Edge of the kernels from which this is the faster way on a CPU.

Below, it was between twice as fast and half as fast as `Conv3d` (docs/performance.md, cost against size).
"""

CACHE_BYTES = 3 * 2**20
"Working set of a piece: more than the second-level caches hold, but fewer and longer products."

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


Piece = list[tuple[slice, bool]]
"Rows of i and j, and where these are other rows, those of the opposite frequencies of i; whether they are the mirror."


@dataclass(frozen=True, eq=False)
class Transform:
    """The matrices of the discrete Fourier transform along one axis, for values at some positions; complex.

    Attributes:
        forward: (frequencies, positions).
        back: (positions, frequencies): values at those positions only.
    """

    forward: Tensor
    back: Tensor


@dataclass(frozen=True, eq=False)
class Grid:
    """The transforms of an array.

    Attributes:
        half: Frequencies of i that a real signal determines; each is a row.
        mirrored: Rows after those, of the frequencies opposite to 1, 2, ...; none for a kernel.
        first: Along i.
        second: Along j, one behind the other for all rows.
        third: Along k, for a row.
        opposite: Along k, for a mirror.
    """

    half: int
    mirrored: int
    first: Transform
    second: Transform
    third: Transform
    opposite: Transform

    @property
    def points(self) -> tuple[int, int, int]:
        """Positions along i, j and k."""
        i, j, k = (each.forward.shape[-1] for each in (self.first, self.second, self.third))
        return i, j, k

    def along_k(self, is_mirror: bool) -> Transform:
        """Return the transform along k, for a row or for a mirror."""
        return self.opposite if is_mirror else self.third

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Frequencies along i, j and k."""
        i, j, k = (each.forward.shape[-2] for each in (self.first, self.second, self.third))
        return i, j, k


def _transform(first: int, points: int, frequency: Tensor, length: int, sign: int) -> Transform:
    """Return the matrices for positions first, first + 1, ...; `sign` is the forward exponent's."""
    position = torch.arange(first, first + points, dtype=torch.float64)
    forward = torch.exp(sign * 2j * math.pi * torch.outer(frequency, position) / length)
    return Transform(forward, forward.conj().T / length)


@functools.lru_cache(maxsize=64)
def _grid(
    first: tuple[int, int, int],
    points: tuple[int, int, int],
    lengths: tuple[int, int, int],
    is_kernel: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Grid:
    """Return the transforms for positions that begin at `first`.

    A kernel's exponent has the other sign: a convolution layer computes a cross-correlation. Its first axis has half of
    the frequencies, and the way back is to the real part, where the rows of `half` stand for their mirrors too.
    """
    sign = 1 if is_kernel else -1
    half = lengths[0] // 2 + 1
    mirrored = 0 if is_kernel else lengths[0] - half
    i, j, k = (torch.arange(n, dtype=torch.float64) for n in lengths)
    i = torch.cat([i[:half], -i[1 : mirrored + 1]])
    along_i = _transform(first[0], points[0], i, lengths[0], sign)
    rows = [_transform(first[1], points[1], f, lengths[1], sign) for f in [j] * half + [-j] * mirrored]
    along_j = Transform(torch.stack([row.forward for row in rows]), torch.stack([row.back for row in rows]))
    along_k, opposite = (_transform(first[2], points[2], f, lengths[2], sign) for f in (k, -k))

    def place(transform: Transform) -> Transform:
        forward, back = (
            matrix.resolve_conj().to(COMPLEX[dtype]).contiguous().to(device)
            for matrix in (transform.forward, transform.back)
        )
        return Transform(forward, back)

    with torch.inference_mode(False):
        return Grid(half, mirrored, *map(place, (along_i, along_j, along_k, opposite)))


def _grids(shape: tuple[int, ...], kernel: int, like: Tensor) -> tuple[Grid, Grid]:
    """Return the transforms of a same-padded signal on that shape and of a cubic kernel for it."""
    i, j, k = shape
    lengths, radius = (i + kernel // 2, j + kernel // 2, k + kernel // 2), kernel // 2
    return (
        _grid((0, 0, 0), (i, j, k), lengths, False, like.dtype, like.device),
        _grid((-radius,) * 3, (kernel,) * 3, lengths, True, like.dtype, like.device),
    )


def _blocks(grid: Grid, columns: int) -> Iterator[slice]:
    """Yield slices of the columns whose first two transforms fit the cache."""
    rows, length, _ = grid.lengths
    step = max(16, CACHE_BYTES // (8 * rows * (grid.points[1] + length)) // 16 * 16)
    for start in range(0, columns, step):
        yield slice(start, min(start + step, columns))


def _parts(grid: Grid, values: int) -> Iterator[Piece]:
    """Yield rows of i and j, and their mirrors, that fit the cache; `values` are a row's, complex."""
    length, step = grid.lengths[1], max(1, CACHE_BYTES // (8 * values))
    bounds = (0, length, length * (1 + grid.mirrored), length * grid.half)
    for (begin, end), has_mirror in zip(pairwise(bounds), (False, True, False), strict=True):
        for start in range(begin, end, step):
            part = slice(start, min(start + step, end))
            shift = length * (grid.half - 1)
            mirror = slice(part.start + shift, part.stop + shift)
            yield [(part, False)] + [(mirror, True)] * has_mirror


def _memory(out: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    """Return memory of that shape: the beginning of a flat tensor, or new."""
    return like.new_empty(shape) if out is None else out[: math.prod(shape)].view(shape)


def _analyse(x: Tensor, grid: Grid, out: Tensor | None = None) -> Tensor:
    """Transform complex (i, j, k, ...) along i and j: (frequencies of i and j, k, rest)."""
    i, j, k = grid.points
    rows, length, _ = grid.lengths
    x = x.reshape(i, j, -1)
    result = _memory(out, x, rows, length, x.shape[2])
    first = grid.first.forward.expand(j, -1, -1)

    def transform(block: slice) -> None:
        along_i = torch.bmm(first, x[:, :, block].transpose(0, 1))
        torch.bmm(grid.second.forward, along_i.transpose(0, 1), out=result[:, :, block])

    for_each(_blocks(grid, x.shape[2]), transform, x.device)
    return result.view(rows * length, k, -1)


def _synthesize(spectrum: Tensor, grid: Grid, out: Tensor | None = None) -> Tensor:
    """Undo `_analyse`: (frequencies of i and j, k, rest) to complex (i, j, k, rest)."""
    i, j, k = grid.points
    rows, length, _ = grid.lengths
    spectrum = spectrum.view(rows, length, -1)
    result = _memory(out, spectrum, i, j, spectrum.shape[2])

    def transform(block: slice) -> None:
        along_j = torch.bmm(grid.second.back, spectrum[:, :, block])
        result[:, :, block] = torch.mm(grid.first.back, along_j.view(rows, -1)).view(i, j, -1)

    for_each(_blocks(grid, spectrum.shape[2]), transform, spectrum.device)
    return result.view(i, j, k, -1)


def _along_last(matrix: Tensor, x: Tensor, out: Tensor) -> None:
    """Multiply the middle axis of (row, from, rest) by a matrix, into memory for (row, to, rest)."""
    torch.bmm(matrix.expand(x.shape[0], -1, -1), x, out=out.view(x.shape[0], matrix.shape[0], -1))


def _kernel(weight: Tensor, taps: Grid) -> Tensor:
    """Return the spectrum of a kernel (a, b, K, K, K): (frequencies of i and j, frequencies of k, b, a).

    The channels change places: a product with the transpose, or with the transpose's conjugate for the opposite
    frequency, is one that matrix libraries know.
    """
    analysed = _analyse(weight.permute(2, 3, 4, 1, 0).to(COMPLEX[weight.dtype]), taps)
    spectrum = analysed.new_empty(analysed.shape[0], taps.lengths[2], weight.shape[1], weight.shape[0])
    _along_last(taps.third.forward, analysed, spectrum)
    return spectrum


def _pairs(x: Tensor) -> Tensor:
    """View real (i, j, k, channel, batch) as complex (i, j, k, channel, batch / 2); an odd batch gets a zero first."""
    if x.shape[-1] % 2:
        x = F.pad(x, (0, 1))
    return torch.view_as_complex(x.contiguous().view(*x.shape[:-1], -1, 2))


def _unpaired(z: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Undo `_pairs`."""
    *channels, batch = shape
    x = torch.view_as_real(z).reshape(*channels, -1)
    return x if x.shape[-1] == batch else x[..., :batch].contiguous()


def _multiply(x: Tensor, spectrum: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
    """Convolve what `_analyse` returns for (i, j, k, in, pair) with a kernel's spectrum: what `_synthesize` takes."""
    _, depth, into, out = spectrum.shape
    pairs = x.shape[2] // into
    result = x.new_empty(x.shape[0], x.shape[1], out * pairs)

    def multiply(piece: Piece) -> None:
        kernel = spectrum[piece[0][0]].view(-1, into, out)
        f, y = (x.new_empty(len(kernel), channels, pairs) for channels in (into, out))
        for rows, is_mirror in piece:
            along_k = grid.along_k(is_mirror)
            _along_last(along_k.forward, x[rows], f)
            torch.bmm(kernel.mH if is_mirror else kernel.mT, f, out=y)
            if rows.start == 0 and bias is not None:
                y[0] += _constant(bias, grid)[:, None]
            _along_last(along_k.back, y.view(-1, depth, out * pairs), result[rows])

    for_each(_parts(grid, depth * (out * pairs + into * pairs + out * into)), multiply, x.device)
    return result


def _constant(bias: Tensor, grid: Grid) -> Tensor:
    """Return what a constant in both signals of a pair is at the frequency zero; it is zero at all others."""
    return bias * math.prod(grid.lengths) * (1 + 1j)


class _SpectralConvolution(torch.autograd.Function):
    """Forward and the gradients, which are a convolution and a correlation with the same spectra."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        signal, taps = _grids(tuple(x.shape[:3]), weight.shape[2], x)
        spectrum, analysed = _kernel(weight, taps), _analyse(_pairs(x), signal)
        ctx.save_for_backward(analysed, spectrum)
        ctx.grids, ctx.shape = (signal, taps), x.shape
        y = _synthesize(_multiply(analysed, spectrum, bias, signal), signal)
        return _unpaired(y, (*x.shape[:3], weight.shape[0], x.shape[4]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, spectrum = ctx.saved_tensors
        signal, taps = ctx.grids
        rows, depth, into, out = spectrum.shape
        need_x, need_weight, need_bias = ctx.needs_input_grad
        paired = _pairs(gradient)
        pairs, k = paired.shape[4], taps.points[2]
        analysed = _analyse(paired, signal)
        to_x = torch.empty_like(x) if need_x else None
        to_weight = x.new_empty(rows, k, into * out) if need_weight else None
        of_bias = gradient.new_empty(out) if need_bias else None

        def multiply(piece: Piece) -> None:
            part = piece[0][0]
            kernel = spectrum[part].view(-1, into, out)
            g, f = (x.new_empty(len(kernel), channels, pairs) for channels in (out, into))
            w = x.new_empty(len(kernel), into, out)
            for rows, is_mirror in piece:
                along_k = signal.along_k(is_mirror)
                _along_last(along_k.forward, analysed[rows], g)
                if of_bias is not None and rows.start == 0:
                    torch.sum(torch.view_as_real(g[0]), (1, 2), out=of_bias)
                if to_x is not None:
                    torch.bmm(kernel if is_mirror else kernel.conj_physical(), g, out=f)
                    _along_last(along_k.back, f.view(-1, depth, into * pairs), to_x[rows])
                if to_weight is not None:
                    _along_last(along_k.forward, x[rows], f)
                    w.baddbmm_(f, g.mH) if is_mirror else torch.bmm(f.conj_physical_(), g.mT, out=w)
            if to_weight is not None:
                _along_last(taps.third.back, w.view(-1, depth, into * out), to_weight[part])

        for_each(_parts(signal, depth * (out * pairs + into * pairs + out * into)), multiply, x.device)
        of_x = _unpaired(_synthesize(to_x, signal), ctx.shape) if to_x is not None else None
        of_weight = None
        if to_weight is not None:
            of_weight = _synthesize(to_weight, taps).real.view(k, k, k, into, out).permute(4, 3, 0, 1, 2).contiguous()
        return of_x, of_weight, of_bias


def spectral_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve as `torch.nn.functional.conv3d` does with same padding, stride 1 and dilation 1.

    Differentiable once in all three arguments. An even batch goes without a copy.

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
        y = _multiply(_analyse(_pairs(x), self.signal), self.spectrum, self.bias, self.signal)
        return _unpaired(_synthesize(y, self.signal), (*x.shape[:3], self.spectrum.shape[3], x.shape[4]))


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
        batch: The largest batch, even.
    """

    def __init__(self, weight: Tensor, bias: Tensor, shape: tuple[int, int, int], batch: int) -> None:
        self.out, self.into, taps = weight.shape[:3]
        i, j, k = shape
        lengths, radius = (i + taps - 1, j + taps - 1, k + taps - 1), taps // 2
        self.signal = _grid((0, 0, 0), lengths, lengths, False, weight.dtype, weight.device)
        self.result = _grid((radius,) * 3, shape, lengths, False, weight.dtype, weight.device)
        kernel = _grid((-radius,) * 3, (taps,) * 3, lengths, True, weight.dtype, weight.device)
        self.spectrum = _kernel(weight.transpose(0, 1), kernel)
        self.constant = _constant(bias, self.signal)
        values = math.prod(lengths) * batch // 2 * self.into
        self.block, self.work = (self.spectrum.new_empty(values) for _ in range(2))

    @staticmethod
    def bytes(into: int, out: int, taps: int, shape: tuple[int, int, int], batch: int) -> int:
        """Return what such a kernel keeps, in bytes of float32."""
        i, j, k = (n + taps - 1 for n in shape)
        return 8 * ((i // 2 + 1) * j * k * into * out + i * j * k * batch * into)

    def input(self, batch: int) -> Tensor:
        """Return memory to put a block into: complex (i + K - 1, j + K - 1, k + K - 1, batch / 2, in), batch even."""
        return _memory(self.block, self.block, *self.signal.points, batch // 2, self.into)

    def __call__(self, batch: int) -> Tensor:
        """Convolve what was put into `input` to (i, j, k, batch / 2, 2, out), which holds until the next call."""
        y = self._multiply(_analyse(self.input(batch), self.signal, self.work), batch // 2)
        y = _synthesize(y, self.result, self.block)
        return torch.view_as_real(y.view(*y.shape[:3], batch // 2, self.out)).transpose(4, 5)

    def _multiply(self, x: Tensor, pairs: int) -> Tensor:
        """Do as the function of that name. The product of a row is not longer than the row, and takes its place."""
        _, depth, out, into = self.spectrum.shape
        result = x.flatten(1)[:, : self.result.points[2] * pairs * out].unflatten(1, (-1, pairs * out))

        def multiply(piece: Piece) -> None:
            kernel = self.spectrum[piece[0][0]].view(-1, out, into)
            f, y = (x.new_empty(len(kernel), pairs, channels) for channels in (into, out))
            for rows, is_mirror in piece:
                _along_last(self.signal.along_k(is_mirror).forward, x[rows], f)
                torch.bmm(f, kernel.mH if is_mirror else kernel.mT, out=y)
                if rows.start == 0:
                    y[0] += self.constant
                back = self.result.along_k(is_mirror).back.expand(rows.stop - rows.start, -1, -1)
                result[rows] = torch.bmm(back, y.view(-1, depth, pairs * out))

        for_each(_parts(self.signal, depth * (out * pairs + into * pairs + out * into)), multiply, x.device)
        return result
