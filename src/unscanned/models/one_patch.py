"""A batch of one patch: PyTorch leaves its fast convolutions for it on a CPU, and this takes them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SMALL", "keep_fast_for_one_patch"]

SMALL = 20_480
"Values of a batch of one, but for its last axis, up to which PyTorch leaves oneDNN (`use_mkldnn` in Convolution.cpp)."


def keep_fast_for_one_patch(network: nn.Module) -> None:
    """Have the small convolutions of a network go through oneDNN on a CPU for a batch of one patch too.

    PyTorch 2.13 takes its general convolution there, whatever the number of threads, where batch, channels and the
    first two edges multiply to no more than `SMALL` and the kernel is 3 or smaller. It takes oneDNN where it is handed
    oneDNN's tensors: the same function to rounding, with its gradient. That gradient cannot be differentiated again,
    so this is not for a discriminator that pays for its gradient.

    Args:
        network: Gets hooks; its weights and buffers stay what and where they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d) and module.groups == 1 and 1 < max(module.kernel_size) <= 3:
            module.register_forward_pre_hook(_onto_onednn)
            module.register_forward_hook(_back)


def _onto_onednn(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
    (x,) = inputs
    if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) != 1 or x[0, ..., 0].numel() > SMALL:
        return None
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.is_autocast_enabled("cpu"):
        return None
    mkldnn = torch.backends.mkldnn
    return (x.to_mkldnn(),) if mkldnn.is_available() and mkldnn.enabled else None


def _back(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output.to_dense() if output.is_mkldnn else output
