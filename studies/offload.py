"""What a training step keeps for its backward pass, which `training.offload` moves from a GPU to the host.

    python studies/offload.py --preset resgan

No GPU is needed: the generator runs on the CPU with the convolutions that a GPU computes, and the tensors that autograd
keeps are counted. Those that lie in the same memory count once.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from unscanned.settings import resolve
from unscanned.training.stage import build_step


def main() -> None:
    """Print MiB of the tensors that are kept, of the weights, and of the largest tensor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="resgan")
    parser.add_argument("--batch", type=int, help="patches; unset takes the preset's")
    asked = parser.parse_args()
    settings = resolve(asked.preset)
    if settings.generator.name == "nie":
        settings = settings.change(generator={"convolution": "plain"})
    batch, edge = asked.batch or settings.training.batch, settings.training.patch
    torch.manual_seed(0)
    step = build_step(settings, 1, "cpu")
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor.detach())  # so that no other tensor takes its place
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.generator(torch.randn(batch, 1, edge, edge, edge))
    weights = sum(4 * parameter.numel() for network in step.networks.values() for parameter in network.parameters())
    total, largest = sum(kept.values()) / 2**20, max(kept.values()) / 2**20
    print(f"{asked.preset}, {batch} patches of {edge}: {total:.0f} MiB kept by the generator in {len(kept)} tensors,")
    print(f"the largest {largest:.0f} MiB; weights of all networks {weights / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
