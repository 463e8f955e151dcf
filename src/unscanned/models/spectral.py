"""Same-padded dense convolution in the frequency domain: the function of `torch.nn.Conv3d`, with less arithmetic.

Arrays are (i, j, k, channel, batch) here. A kernel of edge K on n voxels needs a circular length of n + K // 2 only, since the
outputs that wrap are the ones that same padding cuts off. At these lengths the discrete Fourier transform is cheapest as a
matrix product along each axis, and in this layout its result is already (frequency, channel, batch): per frequency the
convolution is one complex matrix product over the channels, and nothing is transposed. Real input needs half of the
frequencies of the first axis; each of those planes is transformed, multiplied and transformed back while it is in cache.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Kernel", "kernel_spectrum", "spectral_convolution"]

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
    """Return the matrices for positions first_position, first_position + 1, ...; `sign` is that of the forward exponent."""
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


def _grids(shape: tuple[int, ...], kernel: int, like: Tensor, *, padded: bool = True) -> tuple[Grid, Grid]:
    """Return the transforms of a signal on that shape and of a cubic kernel for it.

    The kernel's exponent has the other sign: a convolution layer computes a cross-correlation.
    """
    radius = kernel // 2
    lengths = [n + radius if padded else max(n, kernel) for n in shape]
    with torch.inference_mode(False):
        signal = [_axis(0, n, m, -1, like.dtype, like.device) for n, m in zip(shape, lengths, strict=True)]
        taps = [_axis(-radius, kernel, m, 1, like.dtype, like.device) for m in lengths]
    return tuple(signal), tuple(taps)  # type: ignore[return-value]


class _Analysis:
    """The spectrum of a real (i, j, k, m) array, one plane of the first axis' frequencies at a time."""

    def __init__(self, x: Tensor, grid: Grid) -> None:
        a, b, c = self.grid = grid
        self.columns = x.numel() // (a.points * b.points * c.points)
        self.halves = torch.mm(a.first, x.reshape(a.points, -1)).view(a.half, 2, -1)
        kind = COMPLEX[x.dtype]
        self._complex = x.new_empty(b.points, c.points * self.columns, dtype=kind)
        self._second = x.new_empty(b.length, c.points * self.columns, dtype=kind)
        self._third = x.new_empty(b.length, c.length, self.columns, dtype=kind)

    def plane(self, frequency: int, out: Tensor | None = None) -> Tensor:
        """Return (frequencies of the other two axes, m), in a buffer that the next call overwrites, or in `out`."""
        _, b, c = self.grid
        out = self._third if out is None else out.view(self._third.shape)
        torch.complex(*self.halves[frequency], out=self._complex.view(-1))
        torch.mm(b.forward, self._complex, out=self._second)
        torch.matmul(c.forward, self._second.view(b.length, c.points, -1), out=out)
        return out.view(b.length * c.length, -1)


class _Synthesis:
    """The inverse of `_Analysis`: fill `plane`, call `add`, for each frequency of the first axis; then `finish`."""

    def __init__(self, columns: int, grid: Grid, like: Tensor) -> None:
        a, b, c = self.grid = grid
        kind = COMPLEX[like.dtype]
        self._halves = like.new_empty(a.half, 2, b.points * c.points * columns)
        self.plane = like.new_empty(b.length * c.length, columns, dtype=kind)
        self._second = like.new_empty(b.length, c.points, columns, dtype=kind)
        self._first = like.new_empty(b.points, c.points * columns, dtype=kind)

    def add(self, frequency: int) -> None:
        """Take `plane` as the spectrum at that frequency of the first axis."""
        _, b, c = self.grid
        torch.matmul(c.inverse, self.plane.view(b.length, c.length, -1), out=self._second)
        torch.mm(b.inverse, self._second.view(b.length, -1), out=self._first)
        self._halves[frequency].copy_(torch.view_as_real(self._first.view(-1)).T)

    def finish(self) -> Tensor:
        """Return the real (i, j, k, m) array."""
        a, b, c = self.grid
        return torch.mm(a.last, self._halves.view(2 * a.half, -1)).view(a.points, b.points, c.points, -1)


def _planes(weight: Tensor, taps: Grid) -> Tensor:
    """Return a kernel's spectrum, (planes, frequencies of a plane, out, in), complex."""
    out, into = weight.shape[:2]
    a, b, c = taps
    analysis = _Analysis(weight.permute(2, 3, 4, 0, 1), taps)
    spectrum = weight.new_empty(a.half, b.length * c.length, out, into, dtype=COMPLEX[weight.dtype])
    for frequency in range(a.half):
        analysis.plane(frequency, spectrum[frequency])
    return spectrum


def _apply(x: Tensor, spectrum: Tensor, bias: Tensor | None, signal: Grid) -> Tensor:
    """Convolve (i, j, k, in, batch) with the kernel of that spectrum: (i, j, k, out, batch)."""
    into, batch = x.shape[3:]
    out = spectrum.shape[2]
    analysis, synthesis = _Analysis(x, signal), _Synthesis(out * batch, signal, x)
    product = synthesis.plane.view(-1, out, batch)
    for frequency in range(signal[0].half):
        torch.bmm(spectrum[frequency], analysis.plane(frequency).view(-1, into, batch), out=product)
        if frequency == 0 and bias is not None:  # a constant lives in the frequency zero
            product[0] += (bias * math.prod(axis.length for axis in signal))[:, None]
        synthesis.add(frequency)
    return synthesis.finish().view(*x.shape[:3], out, batch)


class _SpectralConvolution(torch.autograd.Function):
    """Forward and both gradients; the input's spectrum is computed again in the backward pass, which costs less than keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        signal, taps = _grids(tuple(x.shape[:3]), weight.shape[2], x)
        spectrum = _planes(weight, taps)
        ctx.save_for_backward(x, spectrum)
        ctx.grids = signal, taps
        return _apply(x, spectrum, bias, signal)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, spectrum = ctx.saved_tensors
        signal, taps = ctx.grids
        into, batch = x.shape[3:]
        out = spectrum.shape[2]
        need_x, need_weight, need_bias = ctx.needs_input_grad
        of_bias = None
        outer = _Analysis(gradient.contiguous(), signal)
        to_x = _Synthesis(into * batch, signal, x) if need_x else None
        inner = _Analysis(x, signal) if need_weight else None
        to_weight = _Synthesis(out * into, taps, x) if need_weight else None
        for frequency in range(signal[0].half):
            g = outer.plane(frequency).view(-1, out, batch)
            if need_bias and frequency == 0:
                of_bias = g[0].real.sum(1)
            if to_x is not None:
                torch.bmm(spectrum[frequency].mH, g, out=to_x.plane.view(-1, into, batch))
                to_x.add(frequency)
            if inner is not None and to_weight is not None:
                f = inner.plane(frequency).view(-1, into, batch)
                torch.bmm(g, f.mH, out=to_weight.plane.view(-1, out, into))
                to_weight.add(frequency)
        of_x = to_x.finish().view(x.shape) if to_x is not None else None
        of_weight = None
        if to_weight is not None:
            k = taps[0].points
            of_weight = to_weight.finish().view(k, k, k, out, into).permute(3, 4, 0, 1, 2).contiguous()
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
        return _apply(x, self.spectrum, self.bias, self.signal)


def kernel_spectrum(
    weight: Tensor, bias: Tensor | None, shape: tuple[int, int, int], *, padded: bool = True
) -> Kernel:
    """Transform a kernel once for inputs of one shape.

    Args:
        weight: (out, in, K, K, K), K odd.
        bias: (out,) or None.
        shape: Spatial shape of the inputs.
        padded: Whether the convolution is same-padded. Without it the transform is shorter by K // 2, and outputs nearer
            than that to a face have no meaning.
    """
    signal, taps = _grids(shape, weight.shape[2], weight, padded=padded)
    return Kernel(_planes(weight, taps), bias, signal)
