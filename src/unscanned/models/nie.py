"""The fully convolutional generator of Nie et al., and how it goes through the frequency domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from unscanned.machine.memory import machine_bytes
from unscanned.models.base import CONVOLUTIONS, GeneratorBase
from unscanned.models.folding import FrozenLayers, Layers, folded_forward, spectra_bytes
from unscanned.models.spectral import LARGE_KERNEL
from unscanned.models.streaming import Stream
from unscanned.schema import Schema

__all__ = ["FrozenGenerator", "NieGenerator", "SmallGenerator"]

LARGE_PATCH = 16
"Edges of patches from which `auto` takes the frequency domain, where a kernel is large too."

SHARE_OF_MEMORY = 1 / 3
"Of the machine's, that `auto` gives to the kernels' spectra; they grow with the volume of a patch."

Numbers = Annotated[tuple[PositiveInt, ...], Field(strict=False)]


class NieGenerator(GeneratorBase):
    """The nine-layer fully convolutional generator of Nie et al. (IEEE TBME 2018, fig. 2) as the reference has it.

    Kernels 9, 3, 3, 3, 9, 3, 3, 7, 3; dilation 1 in the first and last layer, 2 in the seven between; same padding;
    batch norm and LeakyReLU after each but the last, which is linear. No pooling. The receptive field is 59 voxels a
    side.

    Args:
        in_channels: As for `GeneratorBase`.
        slope: See there.
        **options: Those of `Options`.

    Example:
        >>> NieGenerator(filters=(4,) * 8)(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 1, 8, 8, 8])
    """

    ways = CONVOLUTIONS

    class Options(Schema):
        """The layers."""

        filters: Numbers = (32, 32, 32, 64, 64, 64, 32, 32)
        "Output channels of each layer but the last."
        kernels: Numbers = (9, 3, 3, 3, 9, 3, 3, 7, 3)
        "Edge of each layer's cubic kernel, odd."

        @model_validator(mode="after")
        def _fit(self) -> NieGenerator.Options:
            if len(self.kernels) != len(self.filters) + 1 or not all(kernel % 2 for kernel in self.kernels):
                raise ValueError("kernels must be odd, and one more than filters")
            return self

    def __init__(self, in_channels: int = 1, *, slope: float = 0.2, **options: Any) -> None:
        super().__init__()
        own = self.Options(**options)
        widths = [in_channels, *own.filters, 1]
        last = len(own.kernels) - 1
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for layer, kernel in enumerate(own.kernels):
            dilation = 1 if layer in (0, last) else 2
            convolution = nn.Conv3d(
                widths[layer], widths[layer + 1], kernel, padding=dilation * (kernel // 2), dilation=dilation
            )
            self.convolutions.append(convolution)
            if layer < last:
                self.norms.append(nn.BatchNorm3d(widths[layer + 1]))
        self.activation = nn.LeakyReLU(slope)

    @property
    def layers(self) -> Layers:
        """The convolutions, the norms after all but the last, and the slope of LeakyReLU."""
        return Layers(list(self.convolutions), list(self.norms), self.activation.negative_slope)  # type: ignore[arg-type]

    @property
    def reach(self) -> int:
        """Voxels on each side that can change an output voxel: half the receptive field."""
        return sum(c.dilation[0] * (c.kernel_size[0] // 2) for c in self.layers[0])

    def admits_spectral(self, x: Tensor) -> bool:
        """Return whether an input like this may go through the frequency domain: not forbidden, and possible."""
        if self.convolution == "plain" or x.dtype not in (torch.float32, torch.float64):
            return False
        if any(n % 2 for n in x.shape[2:]) or not all(isinstance(norm, nn.BatchNorm3d) for norm in self.norms):
            return False
        if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.is_autocast_enabled(x.device.type):
            return False
        return self.convolution == "spectral" or x.device.type == "cpu"

    def takes_spectral(self, x: Tensor) -> bool:
        """Return whether an input like this does go through the frequency domain: admitted, and asked for or faster."""
        if not self.admits_spectral(x) or self.convolution == "spectral":
            return self.admits_spectral(x)
        convolutions, memory = self.layers[0], machine_bytes()
        is_large = max(c.kernel_size[0] for c in convolutions) >= LARGE_KERNEL and min(x.shape[2:]) >= LARGE_PATCH
        fits = memory is None or spectra_bytes(convolutions, x.shape[2:]) <= SHARE_OF_MEMORY * memory
        return is_large and fits

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k) to (batch, 1, i, j, k)."""
        if self.takes_spectral(x):
            return folded_forward(x, self.layers)
        convolutions, norms, _ = self.layers
        for convolution, norm in zip(convolutions, norms, strict=False):
            x = self.activation(norm(convolution(x)))
        return convolutions[-1](x)

    def fast(self) -> Callable[[Tensor], Tensor]:
        """Return the function with batch norm inside the kernels, whose spectra are kept."""
        return FrozenGenerator(self)

    def stream(self, x: Tensor) -> Stream | None:
        """Return the pass through a whole volume, where an input like this may go through the frequency domain."""
        return Stream(self.layers) if self.admits_spectral(x) else None


class SmallGenerator(NieGenerator):
    """The same with four layers, 8 or 16 filters and a receptive field of 15 voxels a side, for the demo."""

    class Options(NieGenerator.Options):
        """The layers."""

        filters: Numbers = (8, 16, 16)
        "Output channels of each layer but the last."
        kernels: Numbers = (5, 3, 3, 3)
        "Edge of each layer's cubic kernel, odd."


class FrozenGenerator:
    """A generator in evaluation mode with its layers prepared once for each shape of patch that comes.

    What the frequency domain does not take goes through the generator itself.
    """

    def __init__(self, generator: NieGenerator) -> None:
        self.generator = generator
        self.layers: dict[tuple[object, ...], FrozenLayers] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k) to (batch, 1, i, j, k)."""
        if not self.generator.takes_spectral(x):
            return self.generator(x)
        i, j, k = x.shape[2:]
        key = (i, j, k, x.dtype, x.device)
        if key not in self.layers:
            self.layers[key] = FrozenLayers(self.generator.layers, (i, j, k))
        return self.layers[key](x)
