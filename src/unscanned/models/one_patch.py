"""A batch of one patch: PyTorch leaves its fast convolutions for it on a CPU, and this takes them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["SMALL", "FastForOne", "keep_fast_for_one_patch"]

SMALL = 20_480
"Values of a batch of one, but for its last axis, up to which PyTorch leaves oneDNN (`use_mkldnn` in Convolution.cpp)."


class FastForOne(nn.Conv3d):
    """`Conv3d` that goes through oneDNN on a CPU for a small batch of one patch too.

    PyTorch 2.13 takes its general convolution there, whatever the number of threads, where batch, channels and the
    first two edges multiply to no more than `SMALL` and the kernel is 3 or smaller. It takes oneDNN where it is handed
    oneDNN's tensors: the same function to rounding, with its gradient. That gradient cannot be differentiated again,
    so this is not for a discriminator that pays for its gradient.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _is_left(input):
            return super()._conv_forward(input, weight, bias)
        return super()._conv_forward(input.to_mkldnn(), weight, bias).to_dense()


def keep_fast_for_one_patch(network: nn.Module) -> None:
    """Have the convolutions of a network that PyTorch is slow at go through oneDNN.

    Each layer stays the object that it is, with its weights.
    """
    for module in network.modules():
        if type(module) is not nn.Conv3d or module.groups > 1 or module.padding_mode != "zeros":
            continue
        if 1 < max(cast(nn.Conv3d, module).kernel_size) <= 3:  # 1 is as fast without, and above 3 oneDNN is taken
            module.__class__ = FastForOne


def _is_left(x: Tensor) -> bool:
    """Whether PyTorch would not take oneDNN, although it could."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) != 1 or x[0, ..., 0].numel() > SMALL:
        return False
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu"):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
