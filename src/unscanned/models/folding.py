"""The generator on parity sub-grids: a convolution of dilation 2 is eight dense ones that never meet.

A patch of even edges splits by the parity of each index into eight sub-grids. All layers but the first and the last
have dilation 2 and work on each sub-grid alone. The first and the last, of dilation 1, mix them: they are dense
convolutions from sub-grids to sub-grids, with the kernel's taps sorted by parity. So the whole network runs on
(i, j, k, channel, parity, batch), where parity belongs to the batch in between and to the channels at both ends, and
nothing is rearranged.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from unscanned.machine import ranks
from unscanned.models.shared_norm import pooled
from unscanned.models.spectral import Kernel, kernel_spectrum, spectral_convolution

__all__ = ["FrozenLayers", "Layers", "absorbed", "fold", "folded_forward", "polyphase", "spectra_bytes", "unfold"]

PARITIES = 8

BLOCK_POSITIONS = 64
"Positions of a block: with the widest layer and seven patches, about a megabyte."


class Layers(NamedTuple):
    """The layers of the plain generator: same-padded, of dilation 1 in the first and last, 2 between."""

    convolutions: Sequence[nn.Conv3d]
    norms: Sequence[nn.BatchNorm3d]
    "One after each convolution but the last."
    slope: float
    "Negative slope of LeakyReLU."


def fold(x: Tensor) -> Tensor:
    """Split (batch, channel, 2i, 2j, 2k) by parity: (i, j, k, 8 channel, batch), parities of a channel side by side."""
    b, c, i, j, k = x.shape
    x = x.reshape(b, c, i // 2, 2, j // 2, 2, k // 2, 2).permute(2, 4, 6, 1, 3, 5, 7, 0)
    return x.reshape(i // 2, j // 2, k // 2, PARITIES * c, b)


def unfold(x: Tensor) -> Tensor:
    """Undo `fold`: (i, j, k, 8 channel, batch) to (batch, channel, 2i, 2j, 2k)."""
    i, j, k, c, b = x.shape
    c //= PARITIES
    return x.reshape(i, j, k, c, 2, 2, 2, b).permute(7, 3, 0, 4, 1, 5, 2, 6).reshape(b, c, 2 * i, 2 * j, 2 * k)


def polyphase(weight: Tensor) -> Tensor:
    """Rewrite a kernel of dilation 1 as one from sub-grids to sub-grids.

    From input parity q to output parity p, a step d between sub-grid indices is the full grid's step 2 d + q - p.

    Args:
        weight: (out, in, K, K, K), K odd.

    Returns:
        (8 out, 8 in, k, k, k) with k = 2 ((K // 2 + 1) // 2) + 1, in the order of channels of `fold`.
    """
    out, into, taps = weight.shape[:3]
    radius = (taps // 2 + 1) // 2
    parity = torch.arange(2, device=weight.device)
    step = torch.arange(-radius, radius + 1, device=weight.device)
    tap = 2 * step + parity[None, :, None] - parity[:, None, None] + taps // 2  # (p, q, step)
    tap = torch.where((tap < 0) | (tap >= taps), taps, tap).flatten()
    weight = F.pad(weight, (0, 1) * 3)  # one tap of zeros, for steps outside the kernel
    for axis in (2, 3, 4):
        weight = weight.index_select(axis, tap)
    k = len(step)
    weight = weight.view(out, into, 2, 2, k, 2, 2, k, 2, 2, k).permute(0, 2, 5, 8, 1, 3, 6, 9, 4, 7, 10)
    return weight.reshape(PARITIES * out, PARITIES * into, k, k, k)


def spectra_bytes(convolutions: Sequence[nn.Conv3d], shape: Sequence[int]) -> int:
    """Return what the spectra of all kernels take for patches of that spatial shape, in float32."""
    total = 0
    for layer, convolution in enumerate(convolutions):
        out, into, taps = convolution.weight.shape[:3]
        if layer in (0, len(convolutions) - 1):
            out, into, taps = PARITIES * out, PARITIES * into, 2 * ((taps // 2 + 1) // 2) + 1
        i, j, k = (n // 2 + taps // 2 for n in shape)
        total += 8 * (i // 2 + 1) * j * k * into * out
    return total


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of equal length along the first axis into views that stay in cache."""
    return zip(*(tensor.split(BLOCK_POSITIONS) for tensor in tensors), strict=True)


class _NormActivation(torch.autograd.Function):
    """Batch norm with the batch's own statistics, then LeakyReLU, of (position, channel, batch).

    The statistics are those of all ranks' patches. The mean and the biased variance of each channel come out too, and
    the number of values that they are of. All is done by blocks: the arrays are larger than the cache, and a pass over
    memory costs more than the arithmetic.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        means = x.mean(0)
        mean = means.mean(1)
        squares = torch.zeros_like(means)
        for (block,) in _blocks(x):
            difference = block - mean[:, None]
            squares += difference.mul_(difference).sum(0)
        variance = squares.mean(1) / x.shape[0]
        mean, variance, count = pooled(mean, variance, x.shape[0] * x.shape[2])
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        offset = bias - mean * scale
        y = torch.empty_like(x)
        for block, out in _blocks(x, y):
            F.leaky_relu_(torch.addcmul(offset[:, None], block, scale[:, None], out=out), slope)
        ctx.save_for_backward(x, y, weight, mean, inverse)
        ctx.slope, ctx.count = slope, count
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, mean, inverse = ctx.saved_tensors
        of_x = torch.empty_like(x)
        sums = torch.zeros_like(x[0])
        products = torch.zeros_like(x[0])
        for g_block, x_block, y_block, out in _blocks(gradient, x, y, of_x):
            torch.ops.aten.leaky_relu_backward.grad_input(g_block, y_block, ctx.slope, True, grad_input=out)
            sums += out.sum(0)
            products += (x_block - mean[:, None]).mul_(out).sum(0)
        of_bias = sums.sum(1)
        of_weight = products.sum(1) * inverse
        scale = weight * inverse
        # The gradient of each weight stays that of this rank's patches; x sees the statistics of all.
        all_weight, all_bias = ranks.summed(torch.stack([of_weight, of_bias]))
        slope = -scale * inverse * all_weight / ctx.count
        offset = -scale * all_bias / ctx.count - slope * mean
        for x_block, out in _blocks(x, of_x):
            out.mul_(scale[:, None]).addcmul_(x_block, slope[:, None]).add_(offset[:, None])
        return of_x, of_weight, of_bias, None, None


def _norm_activation(x: Tensor, norm: nn.BatchNorm3d, slope: float) -> Tensor:
    """Apply the norm in its own mode, moving its running statistics in training, then LeakyReLU.

    Args:
        x: (i, j, k, channel, batch).
        norm: With affine weights and running statistics.
        slope: Negative slope of LeakyReLU.
    """
    running_mean, running_var = _running(norm)
    if not norm.training:
        scale = norm.weight * (running_var + norm.eps).rsqrt()
        return F.leaky_relu(torch.addcmul((norm.bias - running_mean * scale)[:, None], x, scale[:, None]), slope)
    flat = x.reshape(-1, *x.shape[3:])
    y, mean, variance, count = _NormActivation.apply(flat, norm.weight, norm.bias, norm.eps, slope)
    with torch.no_grad():
        cast(Tensor, norm.num_batches_tracked).add_(1)
        running_mean.lerp_(mean, cast(float, norm.momentum))
        running_var.lerp_(variance * (count / (count - 1)), cast(float, norm.momentum))
    return y.view(x.shape)


def _running(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Return a norm's running mean and variance."""
    return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)


def folded_forward(x: Tensor, layers: Layers) -> Tensor:
    """Run the plain generator's function on sub-grids, in training or evaluation mode, with gradients.

    Args:
        x: (batch, in_channels, i, j, k), i, j and k even.
        layers: The generator's.

    Returns:
        (batch, 1, i, j, k).
    """
    (convolutions, norms, slope), batch = layers, x.shape[0]
    h = fold(x)
    last = len(convolutions) - 1
    for layer, convolution in enumerate(convolutions):
        weight, bias = convolution.weight, cast(Tensor, convolution.bias)
        if layer in (0, last):
            h = h.view(*h.shape[:3], -1, batch)
            h = spectral_convolution(h, polyphase(weight), bias.repeat_interleave(PARITIES))
        else:
            h = spectral_convolution(h, weight, bias)
        if layer < last:
            h = _norm_activation(h.view(*h.shape[:3], -1, PARITIES * batch), norms[layer], slope)
    return unfold(h)


def absorbed(layers: Layers) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield kernel and bias of each layer with the norm behind it, in evaluation mode, inside."""
    for convolution, norm in itertools.zip_longest(layers.convolutions, layers.norms):
        weight, bias = convolution.weight.detach(), cast(Tensor, convolution.bias).detach()
        if norm is not None:
            running_mean, running_var = _running(norm)
            scale = norm.weight.detach().double() * (running_var.double() + norm.eps).rsqrt()
            shifted = norm.bias.detach().double() + (bias.double() - running_mean.double()) * scale
            scaled = weight.double() * scale[:, None, None, None, None]
            weight, bias = scaled.to(weight.dtype), shifted.to(bias.dtype)
        yield weight, bias


class FrozenLayers:
    """The generator in evaluation mode for one patch shape: batch norm inside the kernels, their spectra computed once.

    Args:
        layers: The generator's; the norms' running statistics are used.
        shape: Spatial shape of the patches, even.
    """

    def __init__(self, layers: Layers, shape: tuple[int, int, int]) -> None:
        self.slope = layers.slope
        self.kernels: list[Kernel] = []
        i, j, k = (n // 2 for n in shape)
        for layer, (weight, bias) in enumerate(absorbed(layers)):
            if layer in (0, len(layers.norms)):
                weight, bias = polyphase(weight), bias.repeat_interleave(PARITIES)
            self.kernels.append(kernel_spectrum(weight, bias, (i, j, k)))

    def __call__(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k) to (batch, 1, i, j, k)."""
        batch = x.shape[0]
        first, *middle, last = self.kernels
        h = F.leaky_relu_(first(fold(x)), self.slope)
        h = h.view(*h.shape[:3], -1, PARITIES * batch)
        for kernel in middle:
            h = F.leaky_relu_(kernel(h), self.slope)
        return unfold(last(h.view(*h.shape[:3], -1, batch)))
