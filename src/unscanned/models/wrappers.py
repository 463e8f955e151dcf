"""What is done to the output of a generator, voxel by voxel: a layer after its last convolution, the source added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["OUTPUTS", "Output", "Residual", "Wrapper", "finish", "inner"]


class Wrapper(nn.Module, ABC):
    """A generator with something done to its output.

    Args:
        generator: A generator; channel 0 of its input is the source.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k) to (batch, 1, i, j, k)."""
        return self.apply_to(x, self.generator(x))

    @abstractmethod
    def apply_to(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what becomes of the output y for the input x."""


class Residual(Wrapper):
    """ResGAN: the source is added voxel by voxel to the output of the last convolution (the reference, section VII)."""

    def apply_to(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the source."""
        return x[:, :1] + y


class Output(Wrapper):
    """A layer after the last convolution.

    Args:
        generator: As for `Wrapper`.
        name: A key of `OUTPUTS`.
    """

    def __init__(self, generator: nn.Module, name: str) -> None:
        super().__init__(generator)
        self.layer = OUTPUTS[name]()

    def apply_to(self, x: Tensor, y: Tensor) -> Tensor:
        """Apply the layer."""
        return self.layer(y)


OUTPUTS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "tanh": nn.Tanh,
    "batch_norm": lambda: nn.BatchNorm3d(1),
}
"Layers after the last convolution. The reference names none."


def inner(network: nn.Module) -> nn.Module:
    """Return the generator inside its wrappers."""
    while isinstance(network, Wrapper):
        network = network.generator
    return network


def finish(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return what the wrappers of a network make of the output y of the generator inside, for the input x."""
    return network.apply_to(x, finish(network.generator, x, y)) if isinstance(network, Wrapper) else y
