"""The generators by name: networks that make the target patch from the source patch.

To add one, derive it from `GeneratorBase` in a module of its own, and name it in `GENERATORS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from unscanned.errors import SettingsError
from unscanned.models.base import CONVOLUTIONS, GeneratorBase, check_edge, check_name, own_options, with_margin
from unscanned.models.initialization import initialize
from unscanned.models.nie import NieGenerator, SmallGenerator
from unscanned.models.one_patch import keep_fast_for_one_patch
from unscanned.models.segresnet import SegResNetGenerator
from unscanned.models.unet import UNetGenerator
from unscanned.models.wrappers import OUTPUTS, Output, Residual, finish, inner

__all__ = ["GENERATORS", "FastGenerator", "build", "check_norms", "check_patch", "evaluating"]

GENERATORS: dict[str, type[GeneratorBase]] = {
    "nie": NieGenerator,
    "small": SmallGenerator,
    "unet": UNetGenerator,
    "segresnet": SegResNetGenerator,
}


def build(
    name: str,
    *,
    in_channels: int = 1,
    residual: bool = False,
    slope: float = 0.2,
    initialization: str = "xavier_uniform",
    output: str = "linear",
    convolution: str = "auto",
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Return the generator of that name, with fresh weights from torch's global random state.

    Args:
        name: A key of `GENERATORS`.
        in_channels: 1, or 2 in an auto-context chain.
        residual: Whether the source is added to the output.
        slope: Negative slope of LeakyReLU.
        initialization: A key of `INITIALIZATIONS`.
        output: A key of `OUTPUTS`: what follows the last convolution.
        convolution: One of `CONVOLUTIONS`; the weights and the function are the same in all.
        options: The generator's own, as its `Options` declares them.

    Raises:
        SettingsError: An unknown name, with the known ones; a way to convolve that the generator does not have; an
            option that it does not have or take.
    """
    check_name(name, GENERATORS, noun="generator", where="generator.name")
    check_name(convolution, CONVOLUTIONS, noun="way to convolve", where="generator.convolution")
    check_name(output, OUTPUTS, noun="output", where="generator.output")
    kind = GENERATORS[name]
    if convolution not in kind.ways:
        raise SettingsError(
            "this generator has no pass through the frequency domain",
            where="generator.convolution",
            found=f"{convolution} with generator.name = {name}",
            expected=" or ".join(kind.ways),
        )
    network = kind(in_channels, slope=slope, **own_options(kind, options, where="generator.options"))
    initialize(network, initialization, where="generator.initialization")
    network.convolution = convolution
    if convolution != "plain":
        keep_fast_for_one_patch(network)
    generator = network if output == "linear" else Output(network, output)
    return Residual(generator) if residual else generator


def check_patch(generator: nn.Module, *, name: str, patch: int, margin: int = 0) -> None:
    """Refuse a patch, with the margin around it, that a generator does not take as it is set to compute.

    Args:
        generator: As `build` returns it.
        name: Its name, for the message.
        patch: Edge of the patch, in voxels.
        margin: Voxels around it on each side.

    Raises:
        SettingsError: Says which edges it takes.
    """
    network = cast(GeneratorBase, inner(generator))
    check_edge(network, noun="generator", name=name, patch=patch, margin=margin)
    if network.convolution == "spectral" and patch % 2:
        raise SettingsError(
            "the frequency domain takes patches of even edges",
            where="training.patch",
            found=f"{with_margin(patch, margin)} with generator.convolution = spectral",
            expected="an even number, or generator.convolution auto or plain",
        )


def check_norms(generator: nn.Module, *, name: str, patch: int, patches: int, margin: int = 0) -> None:
    """Refuse training patches of which a norm of the generator would get a single value, which has no deviation.

    That is where the lowest level of a network is one voxel, as a U-Net's is where the edge is its `multiple`.

    Args:
        generator: As `build` returns it; statistics that a norm keeps change, so build another to train.
        name: Its name, for the message.
        patch: Edge of the patch, in voxels.
        patches: How many pass through it together.
        margin: Voxels around each on each side.

    Raises:
        SettingsError: Says how many patches of which edge there are.
    """
    edge = patch + 2 * margin
    if edge > cast(GeneratorBase, inner(generator)).multiple:
        return
    try:
        with torch.no_grad():
            inner(generator).train()(torch.zeros(min(patches, 2), 1, edge, edge, edge))
    except ValueError as error:  # of PyTorch's norms, which look at the shape
        raise SettingsError(
            "a norm of the generator would get a single value, which has no deviation",
            where="training.patch",
            found=f"{with_margin(patch, margin)} with generator.name = {name}, {patches} "
            f"patch{'es' * (patches > 1)} at a time",
            expected=f"at least {2 * edge} in all" if margin else f"at least {2 * patch}",
            do="Batch norm also takes more patches at a time: a larger training.batch, or a smaller "
            "training.accumulate. Group norm takes any.",
        ) from error


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back into its own afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class FastGenerator:
    """A generator in evaluation mode, prepared once for many patches: the same function without gradients.

    It may hold a copy: make a new one after the weights change.

    Args:
        generator: As `build` returns it, or any other network; put into evaluation mode.
    """

    def __init__(self, generator: nn.Module) -> None:
        self.generator = generator.eval()
        network = inner(generator)
        self.network = network.fast() if isinstance(network, GeneratorBase) else network

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k) to (batch, 1, i, j, k)."""
        return finish(self.generator, x, self.network(x))
