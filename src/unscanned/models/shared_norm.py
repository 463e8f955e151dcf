"""Batch norm over the patches of all processes that train together.

PyTorch's `SyncBatchNorm` works on CUDA alone, and its backward pass cannot be differentiated again, which the gradient
penalty does. This one is made of operations that can be.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from unscanned.machine import ranks

__all__ = ["SharedBatchNorm", "pooled", "share_batch_norm"]

_AXES = (0, 2, 3, 4)


class SharedBatchNorm(nn.BatchNorm3d):
    """`BatchNorm3d` whose mean and variance in training are those of all ranks' patches."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channel, i, j, k) to the same shape."""
        if not self.training or ranks.count() == 1:
            return super().forward(x)
        mean, variance = _Moments.apply(x.to(torch.promote_types(x.dtype, torch.float32)))
        mean, variance, count = pooled(mean, variance, x.numel() // x.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt()
        offset = self.bias - mean * scale
        with torch.no_grad():
            cast(Tensor, self.num_batches_tracked).add_(1)
            cast(Tensor, self.running_mean).lerp_(mean, cast(float, self.momentum))
            cast(Tensor, self.running_var).lerp_(variance * (count / (count - 1)), cast(float, self.momentum))
        return torch.addcmul(_of_channels(offset), x, _of_channels(scale)).to(x.dtype)


class _Moments(torch.autograd.Function):
    """Mean and biased variance of each channel, for which nothing but the input is kept.

    `torch.var_mean` takes twenty times as long on a CPU where the channels come last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean(_AXES)
        ctx.save_for_backward(x, mean)
        return mean, (x - _of_channels(mean)).square_().mean(_AXES)

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = 2 / count * of_variance
        return torch.addcmul(_of_channels(of_mean / count - slope * mean), x, _of_channels(slope))


def _of_channels(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1, 1)


def share_batch_norm(network: nn.Module) -> None:
    """Have each batch norm of a network take its statistics over all ranks, where there are several.

    Each layer stays the object that it is, with its weights and buffers.
    """
    for module in network.modules() if ranks.count() > 1 else ():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = SharedBatchNorm


def pooled(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """Return mean, variance and number of all ranks' values from those of this one's.

    Args:
        mean: (channel,).
        variance: (channel,), biased.
        count: Values of each channel.
    """
    if ranks.count() == 1:
        return mean, variance, count
    counted = torch.full_like(mean[:1], float(count))
    row = torch.cat([mean, variance, counted])
    # A row a rank: the sum of these is all rows, and from them the variance loses no digits.
    rows = torch.stack([row if rank == ranks.number() else torch.zeros_like(row) for rank in range(ranks.count())])
    means, variances, counts = ranks.summed(rows).split([len(mean), len(mean), 1], 1)
    shares = counts.detach() / counts.detach().sum()
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), round(float(counts.detach().sum()))
