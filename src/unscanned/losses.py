"""The losses of the report, section IV, and of Nie et al. (IEEE TBME 2018, eq. 1-6), each a function of tensors.

Tensors are (batch, 1, i, j, k); logits are (batch, 1). Sums run over voxels and means over the batch, unless
`reduction` is "mean", which divides by the number of voxels too.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["discriminator_loss", "generator_adversarial_loss", "gradient_difference_loss", "l1_loss"]

Reduction = Literal["sum", "mean"]


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """BCE(D(X, Y), 1) + BCE(D(X, G(X)), 0), the mean over the batch.

    Example:
        >>> round(discriminator_loss(torch.zeros(1, 1), torch.zeros(1, 1)).item(), 4)
        1.3863
    """
    real = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits))
    fake = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits))
    return real + fake


def generator_adversarial_loss(fake_logits: Tensor) -> Tensor:
    """BCE(D(X, G(X)), 1), the mean over the batch: the generator wants to be taken for acquired."""
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits))


def l1_loss(synthetic: Tensor, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """||Y - G(X)||_1, the mean over the batch.

    Example:
        >>> l1_loss(torch.zeros(2, 1, 2, 2, 2), torch.ones(2, 1, 2, 2, 2)).item()
        8.0
    """
    return _reduce((synthetic - target).abs(), target, reduction)


def gradient_difference_loss(synthetic: Tensor, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """Sum over the axes of || |grad_a Y| - |grad_a G(X)| ||^2, forward differences, the mean over the batch.

    The squared difference of the magnitudes of the gradients (Mathieu et al., ICLR 2016; Nie et al., eq. 5). A
    synthetic image with all its edges reversed costs nothing, so this term only makes sense beside L1.

    Example:
        >>> ramp = torch.arange(3.0).view(1, 1, 3, 1, 1)
        >>> gradient_difference_loss(torch.zeros_like(ramp), ramp).item()
        2.0
    """
    total = synthetic.new_zeros(())
    for axis in (2, 3, 4):
        difference = synthetic.diff(dim=axis).abs() - target.diff(dim=axis).abs()
        total = total + _reduce(difference.square(), target, reduction)
    return total


def _reduce(values: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    total = values.sum() / target.shape[0]
    return total / target[0].numel() if reduction == "mean" else total
