"""What a generator makes of its input on the way to its output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unscanned.models.base import GeneratorBase
from unscanned.models.generators import evaluating
from unscanned.models.wrappers import inner

__all__ = ["hidden"]


@torch.inference_mode()
def hidden(generator: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the inputs of a generator's widest and of its last convolution, in evaluation mode.

    The widest is the first of those that take the most channels: the lowest level of a U-Net. Convolutions of a single
    channel do not count. Where both are one, there is one.

    Args:
        generator: As `build` returns it, or any other network of convolutions.
        x: (batch, in_channels, i, j, k).

    Returns:
        Tensors (batch, channel, i, j, k), each on the grid of its layer; none without such convolutions.
    """
    network = inner(generator)
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
        for module in network.modules()
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)) and module.in_channels > 1
    ]
    way = network.convolution if isinstance(network, GeneratorBase) else ""
    try:
        if isinstance(network, GeneratorBase):
            network.convolution = "plain"  # the pass through the frequency domain calls no module
        with evaluating(network):
            network(x)
    finally:
        if isinstance(network, GeneratorBase):
            network.convolution = way
        for hook in hooks:
            hook.remove()
    if not seen:
        return []
    widest = max(seen, key=lambda tensor: tensor.shape[1])
    return [widest] if widest is seen[-1] else [widest, seen[-1]]
