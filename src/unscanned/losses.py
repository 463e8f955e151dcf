"""The losses of Nie et al. (IEEE TBME 2018, eq. 1-6) as the reference has them, section IV: functions of tensors.

Tensors are (batch, 1, i, j, k); logits are (batch, 1). Sums run over voxels and means over the batch, unless
`reduction` is "mean", which divides by the number of voxels too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CRITERIA",
    "TERMS",
    "Criterion",
    "GeneratorLoss",
    "discriminator_loss",
    "generator_adversarial_loss",
    "gradient_difference_loss",
    "gradient_penalty",
    "l1_loss",
]

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


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the squared norm of the gradient of the logits with respect to images, the mean over the batch.

    At acquired images alone it is R1 (Mescheder et al., Which training methods for GANs do actually converge?, ICML
    2018, eq. 9): a discriminator that is right everywhere no longer grows steeper there, so the generator keeps a
    gradient.

    Args:
        logits: (batch, 1), computed from the images.
        images: (batch, 1, i, j, k), which require gradients.

    Example:
        >>> images = torch.ones(2, 1, 2, 2, 2, requires_grad=True)
        >>> gradient_penalty(3 * images.sum((1, 2, 3, 4))[:, None], images).item()
        36.0
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum() / 2 / images.shape[0]


def _reduce(values: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
    total = values.sum() / target.shape[0]
    return total / target[0].numel() if reduction == "mean" else total


@dataclass(frozen=True)
class GeneratorLoss:
    """The generator's loss but for its adversary: the sum of the `TERMS` by their weights.

    Attributes:
        weights: By the name of the term; a term without a weight is computed to be logged alone.
        reduction: Of every term over the voxels.
    """

    weights: Mapping[str, float]
    reduction: Reduction = "sum"

    def __call__(self, synthetic: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum, and the value of each term per voxel."""
        total, values = synthetic.new_zeros(()), {}
        voxels = target[0].numel() if self.reduction == "sum" else 1
        for name, term in TERMS.items():
            weight = self.weights.get(name, 0.0)
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                value = term(synthetic, target, self.reduction)
            if weight > 0:
                total = total + weight * value
            values[name] = float(value.detach()) / voxels
        return total, values


TERMS: dict[str, Callable[[Tensor, Tensor, Reduction], Tensor]] = {"l1": l1_loss, "gdl": gradient_difference_loss}
"Terms of the generator's loss; each has a weight of its name in the settings' table `loss`."


@dataclass(frozen=True)
class Criterion:
    """What the adversary's two losses are.

    Attributes:
        discriminator: Of the logits of acquired and of synthetic patches.
        generator: Of the logits of synthetic patches, which are to be taken for acquired.
        boundary: Logit above which a patch is judged to be acquired.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    boundary: float = 0.0


CRITERIA = {
    "cross_entropy": Criterion(discriminator_loss, generator_adversarial_loss),
    "least_squares": Criterion(
        lambda real, fake: (real - 1).square().mean() + fake.square().mean(),
        lambda fake: (fake - 1).square().mean(),
        0.5,
    ),
    "hinge": Criterion(lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(), lambda fake: -fake.mean()),
}
"""Cross entropy as in the reference; least squares (LSGAN, Mao et al., ICCV 2017, eq. 9); hinge (Lim and Ye 2017)."""
