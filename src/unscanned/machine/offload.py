"""What a backward pass needs, kept in the host's memory until then."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

__all__ = ["keep_on_host"]


def keep_on_host() -> contextlib.AbstractContextManager[None]:
    """Have forward passes meanwhile leave what their backward passes need in the host's memory.

    Each tensor comes back with the values and strides that it had, so that the kernels that take it, and the bits that
    they make, are the same. `torch.autograd.graph.save_on_cpu` makes all tensors contiguous. What autograd
    differentiates again, as for a gradient penalty, is kept there too. Weights stay where they are.
    """
    hooks: contextlib.AbstractContextManager[None] = torch.autograd.graph.saved_tensors_hooks(_to_host, _back)
    return hooks


_Kept = tuple[torch.device, Tensor]


def _to_host(tensor: Tensor) -> _Kept:
    kept = tensor.detach()  # with its history it would hold the graph that holds it
    if isinstance(tensor, nn.Parameter) or tensor.layout != torch.strided:  # oneDNN's own are on the host already
        return tensor.device, kept
    there = torch.empty_like(kept, device="cpu", pin_memory=tensor.device.type == "cuda")
    if there.stride() != kept.stride():  # an expanded tensor, which takes no memory of its own
        return tensor.device, kept
    return tensor.device, there.copy_(kept)


def _back(kept: _Kept) -> Tensor:
    device, tensor = kept
    return tensor.to(device)
