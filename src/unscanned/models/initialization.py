"""How a network's weights begin: which the reference leaves open."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from unscanned.models.base import check_name

__all__ = ["INITIALIZATIONS", "initialize"]

INITIALIZATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "xavier_uniform": nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_normal": partial(nn.init.kaiming_normal_, a=0.2),
    "normal": partial(nn.init.normal_, std=0.02),
    "pytorch": None,
}
"""Fillers of the weights: Glorot and Bengio 2010 (the authors' code has the uniform one), He et al. 2015 for a
LeakyReLU of slope 0.2, Radford et al. 2016 (DCGAN), or as PyTorch makes its layers."""


def initialize(network: nn.Module, name: str, *, where: str) -> None:
    """Fill the weights of all convolutions and linear layers from torch's global random state, and clear their biases.

    Args:
        network: Changed in place.
        name: A key of `INITIALIZATIONS`; `pytorch` leaves the network as it is.
        where: The setting, for the message.

    Raises:
        SettingsError: Unknown name; lists the known ones.
    """
    check_name(name, INITIALIZATIONS, noun="initialization", where=where)
    fill = INITIALIZATIONS[name]
    if fill is not None:
        for module in network.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)):
                fill(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
