"""Cost against size: the number of patches, their edge, the volume, and a single layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from unscanned.benchmark.inference import PATCH, Network, noise
from unscanned.benchmark.rounds import rounds, timed
from unscanned.models import generators
from unscanned.models.spectral import kernel_spectrum, spectral_convolution
from unscanned.synthesis.reconstruct import default_batch
from unscanned.synthesis.whole_volume import map_volume

__all__ = ["EDGES", "LAYERS", "size"]

EDGES = (8, 16, 24, 32, 48)
"Edges of a patch, in voxels."

LAYERS = (
    *((kernel, 32, 16, 1) for kernel in (3, 5, 7, 9)),
    *((9, channels, 16, 1) for channels in (8, 16, 64)),
    *((9, 16, grid, 1) for grid in (4, 8, 24)),
    *((3, 32, 16, patches) for patches in (7, 16)),
)
"Kernel, channels, grid and patches of layers: each varies while the others stay."


def size(
    network: Network,
    repeats: int,
    patches: Sequence[int],
    volumes: Sequence[int],
    edges: Sequence[int],
    layers: Sequence[tuple[int, int, int, int]],
) -> dict[str, Any]:
    """Time against the number of patches, the volume, a patch's edge, and what makes a layer.

    Args:
        network: The generator.
        repeats: Rounds of edges and layers; patches and volumes are mapped once.
        patches: Numbers of patches.
        volumes: Edges of cubic volumes, in voxels.
        edges: Of single patches, in voxels.
        layers: Kernel, channels, grid and patches of each.
    """
    fast, counted = generators.FastGenerator(network.build("auto")), []
    size = default_batch(torch.device(network.device))
    x = torch.from_numpy(noise(network.seed, size, 1, PATCH, PATCH, PATCH)).to(network.device)
    fast(x)  # its spectra are at hand after it
    for count in patches:
        row = timed(lambda count=count: [fast(x[: count - done]) for done in range(0, count, size)])  # type: ignore[misc]
        counted.append({"patches": count, **row})
    whole = []
    for edge in volumes:
        volume = noise(network.seed, 1, edge, edge, edge)
        row = timed(partial(map_volume, volume, network.build("auto"), device=network.device))
        whole.append({"edge": edge, **row})
    return {
        "patches": counted,
        "volumes": whole,
        "edges": [_edge(network, repeats, edge) for edge in edges],
        "layers": [_layer(torch.device(network.device), repeats, *layer) for layer in layers],
    }


def _edge(network: Network, repeats: int, edge: int) -> dict[str, Any]:
    """Time the network on a single patch of that edge in evaluation, and forward and backward, both ways."""
    x = torch.from_numpy(noise(network.seed, 1, 1, edge, edge, edge)).to(network.device)
    plain, spectral = network.build("plain"), network.build("spectral")
    kept = generators.FastGenerator(spectral)
    kept(x)  # its spectra are at hand after it
    forward = _compared(repeats, partial(generators.FastGenerator(plain), x), partial(kept, x))
    plain.train(), spectral.train()
    both = _compared(repeats, lambda: plain(x).sum().backward(), lambda: spectral(x).sum().backward())
    return {"edge": edge, "forward": forward, "forward_backward": both}


def _layer(device: torch.device, repeats: int, kernel: int, channels: int, grid: int, patches: int) -> dict[str, Any]:
    """Time one dense layer on the eight sub-grids of each patch, forward, and forward and backward, both ways."""
    weight = torch.randn(channels, channels, kernel, kernel, kernel, device=device, requires_grad=True)
    direct = torch.randn(8 * patches, channels, grid, grid, grid, device=device, requires_grad=True)
    folded = direct.detach().permute(2, 3, 4, 1, 0).contiguous().requires_grad_()
    kept = kernel_spectrum(weight.detach(), None, (grid, grid, grid))
    plain = partial(F.conv3d, direct, weight, padding=kernel // 2)
    with torch.inference_mode():
        forward = _compared(repeats, plain, partial(kept, folded))
    both = _compared(
        repeats,
        lambda: plain().sum().backward(),
        lambda: spectral_convolution(folded, weight).sum().backward(),
    )
    sizes = {"kernel": kernel, "channels": channels, "grid": grid, "patches": patches}
    return {**sizes, "forward": forward, "forward_backward": both}


def _compared(repeats: int, plain: Callable[[], Any], spectral: Callable[[], Any]) -> dict[str, Any]:
    """Return the row of the second of two ways to compute the same."""
    return rounds({"plain": partial(timed, plain), "spectral": partial(timed, spectral)}, repeats)["spectral"]
