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
    "UNIT_TERMS",
    "discriminator_loss",
    "generator_adversarial_loss",
    "gradient_difference_loss",
    "gradient_penalty",
    "l1_loss",
    "ssim_loss",
]

Reduction = Literal["sum", "mean"]

_SSIM_SIGMA, _SSIM_RADIUS = 1.5, 5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2


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


def ssim_loss(synthetic: Tensor, target: Tensor, reduction: Reduction = "sum") -> Tensor:
    """1 - SSIM at every voxel whose window lies inside the patch, for a data range of 1; the mean over the batch.

    The window is a Gaussian of sigma 1.5 voxels cut off at 5, as in the metric of this name (Wang et al., IEEE TIP
    13(4), 2004; as a loss, Zhao et al., IEEE TCI 3(1), 2017). With "sum" the mean over these voxels is multiplied by
    the voxels of the patch, so that the term weighs the same beside the others in both reductions.

    Args:
        synthetic: (batch, 1, i, j, k), at least 11 voxels along each axis, in unit scale.
        target: Same shape.
        reduction: Over voxels.

    Example:
        >>> image = torch.rand(1, 1, 12, 12, 12)
        >>> round(ssim_loss(image, image, "mean").item(), 6)
        0.0
    """
    images = torch.cat([synthetic, target, synthetic**2, target**2, synthetic * target], 1)
    x, y, xx, yy, xy = _windowed(images).unbind(1)
    variances, covariance = (xx - x**2) + (yy - y**2), xy - x * y
    map_ = (2 * x * y + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    map_ = map_ / ((x**2 + y**2 + _SSIM_C1) * (variances + _SSIM_C2))
    mean = (1 - map_).mean()
    return mean if reduction == "mean" else mean * target[0].numel()


def _windowed(images: Tensor) -> Tensor:
    """Return the Gaussian-weighted means in windows that lie inside (batch, channel, i, j, k) images."""
    steps = torch.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-(steps**2) / (2 * _SSIM_SIGMA**2))
    window = window / window.sum()
    channels = images.shape[1]
    for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)):
        images = F.conv3d(images.flatten(0, 1)[:, None], window.view(1, 1, *shape)).unflatten(0, (-1, channels))[
            :, :, 0
        ]
    return images


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
    """The generator's loss but for its adversary: the sum of the `TERMS` and `UNIT_TERMS` by their weights.

    Attributes:
        weights: By the name of the term; one of the `TERMS` without a weight is computed to be logged alone.
        reduction: Of every term over the voxels.
        mean: Of the target in unit scale, which z-scores have at 0.
        std: Likewise, its standard deviation.
    """

    weights: Mapping[str, float]
    reduction: Reduction = "sum"
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, synthetic: Tensor, target: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum for z-scores, and the value of each term per voxel."""
        total, values = synthetic.new_zeros(()), {}
        voxels = target[0].numel() if self.reduction == "sum" else 1
        for name, term in TERMS.items():
            weight = self.weights.get(name, 0.0)
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                value = term(synthetic, target, self.reduction)
            if weight > 0:
                total = total + weight * value
            values[name] = float(value.detach()) / voxels
        for name, term in UNIT_TERMS.items():
            weight = self.weights.get(name, 0.0)
            if weight > 0:
                value = term(synthetic * self.std + self.mean, target * self.std + self.mean, self.reduction)
                total = total + weight * value
                values[name] = float(value.detach()) / voxels
        return total, values


Term = Callable[[Tensor, Tensor, Reduction], Tensor]

TERMS: dict[str, Term] = {"l1": l1_loss, "gdl": gradient_difference_loss}
"Terms of the generator's loss, of z-scores; each has a weight of its name in the settings' table `loss`."

UNIT_TERMS: dict[str, Term] = {"ssim": ssim_loss}
"Likewise, of intensities in unit scale, for formulas that have a data range; without a weight they are not computed."


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
"""Cross entropy as in the reference; least squares (LSGAN, twice eq. 9 of Mao et al., ICCV 2017, which has halves);
hinge (Lim and Ye 2017)."""
