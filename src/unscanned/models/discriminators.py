"""Discriminators: networks that tell an acquired target from a synthetic one, given the source.

A discriminator maps source and target, each (batch, 1, i, j, k), to logits (batch, 1). To add one, write a module with
that contract and name it in `DISCRIMINATORS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unscanned.errors import SettingsError
from unscanned.models.initialization import initialize

__all__ = ["DISCRIMINATORS", "NieDiscriminator", "build"]


class NieDiscriminator(nn.Module):
    """The conditional discriminator of the report, section III, after Nie et al. (IEEE TBME 2018).

    Three stages of convolution, batch norm, LeakyReLU and max-pooling, a convolution, three fully connected layers. The
    last sigmoid is left to the loss, which takes logits.

    Args:
        patch: Edge of the cubic patch, a multiple of 8: the first fully connected layer is made for it.
        filters: Output channels of the four convolutions.
        slope: Negative slope of LeakyReLU.
    """

    def __init__(
        self, patch: int = 32, *, filters: tuple[int, int, int, int] = (32, 64, 128, 256), slope: float = 0.2
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 2
        for width in filters[:3]:
            layers += [
                nn.Conv3d(channels, width, 3, padding=1),
                nn.BatchNorm3d(width),
                nn.LeakyReLU(slope, inplace=True),
                nn.MaxPool3d(2),
            ]
            channels = width
        layers.append(nn.Conv3d(channels, filters[3], 3, padding=1))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(filters[3] * (patch // 8) ** 3, 512),
            nn.LeakyReLU(slope, inplace=True),
            nn.Linear(512, 128),
            nn.LeakyReLU(slope, inplace=True),
            nn.Linear(128, 1),
        )

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Map source and target, each (batch, 1, patch, patch, patch), to logits (batch, 1)."""
        pair = torch.cat([source, target], 1)
        # in this layout the 3^3 convolutions, the norms and the pooling take a fifth less time on a CPU
        return self.head(self.features(pair.contiguous(memory_format=torch.channels_last_3d)))


def small(patch: int = 32, *, slope: float = 0.2) -> NieDiscriminator:
    """Return a quarter-width discriminator for the demo."""
    return NieDiscriminator(patch, filters=(8, 16, 32, 32), slope=slope)


DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {"nie": NieDiscriminator, "small": small}


def build(
    name: str, *, patch: int = 32, slope: float = 0.2, initialization: str = "xavier_uniform", options: object = None
) -> nn.Module:
    """Return the discriminator of that name, with fresh weights from torch's global random state.

    Raises:
        SettingsError: Unknown name or initialization; lists the known ones.
    """
    if name not in DISCRIMINATORS:
        raise SettingsError(
            "no such discriminator",
            where="discriminator.name",
            found=name,
            expected=f"one of {', '.join(DISCRIMINATORS)}",
        )
    discriminator = DISCRIMINATORS[name](patch, slope=slope)
    return initialize(discriminator, initialization, where="discriminator.initialization")
