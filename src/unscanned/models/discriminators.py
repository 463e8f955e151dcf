"""The discriminators by name: networks that tell an acquired target from a synthetic one, given the source.

To add one, derive it from `DiscriminatorBase` in a module of its own, and name it in `DISCRIMINATORS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    options: Mapping[str, Any] | None = None,
) -> DiscriminatorBase:
    """Return the discriminator of that name, with fresh weights from torch's global random state.

    Args:
        name: A key of `DISCRIMINATORS`.
        patch: Edge of the patches, in voxels.
        slope: Negative slope of LeakyReLU.
        initialization: A key of `INITIALIZATIONS`.
        options: The discriminator's own, as its `Options` declares them.

    Raises:
        SettingsError: An unknown name, with the known ones; an option that the discriminator does not have or take.
    """
    check_name(name, DISCRIMINATORS, noun="discriminator", where="discriminator.name")
    kind = DISCRIMINATORS[name]
    discriminator = kind(patch, slope=slope, **own_options(kind, options, where="discriminator.options"))
    initialize(discriminator, initialization, where="discriminator.initialization")
    return discriminator
