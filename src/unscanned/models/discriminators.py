"""The discriminators by name: networks that tell an acquired target from a synthetic one, given the source.

To add one, derive it from `DiscriminatorBase` in a module of its own, and name it in `DISCRIMINATORS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrizations

from unscanned.models.base import DiscriminatorBase, check_name, own_options
from unscanned.models.initialization import initialize
from unscanned.models.nie_discriminator import NieDiscriminator, SmallDiscriminator

__all__ = ["DISCRIMINATORS", "build"]

DISCRIMINATORS: dict[str, type[DiscriminatorBase]] = {"nie": NieDiscriminator, "small": SmallDiscriminator}


def build(
    name: str,
    *,
    patch: int = 32,
    slope: float = 0.2,
    initialization: str = "xavier_uniform",
    spectral_norm: bool = False,
    options: Mapping[str, Any] | None = None,
) -> DiscriminatorBase:
    """Return the discriminator of that name, with fresh weights from torch's global random state.

    Args:
        name: A key of `DISCRIMINATORS`.
        patch: Edge of the patches, in voxels.
        slope: Negative slope of LeakyReLU.
        initialization: A key of `INITIALIZATIONS`.
        spectral_norm: Whether the weights of each layer are divided by their largest singular value, in the place of
            batch norm (T. Miyato et al., Spectral normalization for generative adversarial networks, ICLR 2018). One
            step of the power method at each pass in training mode follows it; its vectors are buffers.
        options: The discriminator's own, as its `Options` declares them.

    Raises:
        SettingsError: An unknown name, with the known ones; an option that the discriminator does not have or take.
    """
    check_name(name, DISCRIMINATORS, noun="discriminator", where="discriminator.name")
    kind = DISCRIMINATORS[name]
    discriminator = kind(patch, slope=slope, **own_options(kind, options, where="discriminator.options"))
    initialize(discriminator, initialization, where="discriminator.initialization")
    if spectral_norm:
        _normalize(discriminator)
    return discriminator


def _normalize(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.BatchNorm3d):
                # behind it the scale of a convolution's weights would have no effect
                setattr(parent, name, nn.Identity())
            elif isinstance(layer, (nn.Conv3d, nn.Linear)):
                parametrizations.spectral_norm(layer)
