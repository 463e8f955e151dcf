"""Generators: networks that make the target patch from the source patch.

A generator maps (batch, in_channels, i, j, k) to (batch, 1, i, j, k), in z-scores; channel 0 is the source. To add one,
write a module with that contract and name it in `GENERATORS`.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from unscanned.errors import ResourceError, SettingsError
from unscanned.machine.memory import machine_bytes
from unscanned.models.folding import FrozenLayers, folded_forward, spectra_bytes
from unscanned.models.initialization import initialize

__all__ = [
    "CONVOLUTIONS",
    "GENERATORS",
    "OUTPUTS",
    "FastGenerator",
    "NieGenerator",
    "Output",
    "Residual",
    "UNetGenerator",
    "build",
    "evaluating",
    "finish",
    "inner",
]

CONVOLUTIONS = ("auto", "plain", "spectral")
"Ways to compute the same function: `plain` is `Conv3d`, `spectral` the frequency domain, `auto` the faster one."

LARGE_KERNEL, LARGE_PATCH = 7, 16
"""Where `auto` takes the frequency domain on a CPU: a kernel and all patch edges at least that large, in voxels.

Below, it was between twice as fast and half as fast as `Conv3d` (docs/performance.md, cost against size).
"""

SHARE_OF_MEMORY = 1 / 3
"Of the machine's, that `auto` gives to the kernels' spectra; they grow with the volume of a patch."


class NieGenerator(nn.Module):
    """The nine-layer fully convolutional generator of Nie et al. (IEEE TBME 2018, fig. 2) as the report has it.

    Kernels 9, 3, 3, 3, 9, 3, 3, 7, 3; dilation 1 in the first and last layer, 2 in the seven between; same padding;
    batch norm and LeakyReLU after each but the last, which is linear. No pooling. The receptive field is 59 voxels a
    side.

    Args:
        in_channels: 1, or 2 in an auto-context chain (source, previous synthetic target).
        filters: Output channels of the layers but the last.
        kernels: Edge of each layer's cubic kernel, odd.
        slope: Negative slope of LeakyReLU.

    Example:
        >>> NieGenerator(filters=(4,) * 8)(torch.zeros(1, 1, 8, 8, 8)).shape
        torch.Size([1, 1, 8, 8, 8])
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        filters: Sequence[int] = (32, 32, 32, 64, 64, 64, 32, 32),
        kernels: Sequence[int] = (9, 3, 3, 3, 9, 3, 3, 7, 3),
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        widths = [in_channels, *filters, 1]
        last = len(kernels) - 1
        self.convolutions = nn.ModuleList()
        self.norms = nn.ModuleList()
        for layer, kernel in enumerate(kernels):
            dilation = 1 if layer in (0, last) else 2
            convolution = nn.Conv3d(
                widths[layer], widths[layer + 1], kernel, padding=dilation * (kernel // 2), dilation=dilation
            )
            self.convolutions.append(convolution)
            if layer < last:
                self.norms.append(nn.BatchNorm3d(widths[layer + 1]))
        self.activation = nn.LeakyReLU(slope)
        self.convolution = "auto"

    @property
    def layers(self) -> tuple[list[nn.Conv3d], list[nn.BatchNorm3d], float]:
        """The convolutions, the norms after all but the last, and the slope of LeakyReLU."""
        convolutions, norms = list(self.convolutions), list(self.norms)
        return cast(list[nn.Conv3d], convolutions), cast(list[nn.BatchNorm3d], norms), self.activation.negative_slope

    @property
    def reach(self) -> int:
        """Voxels on each side that can change an output voxel: half the receptive field."""
        convolutions, _, _ = self.layers
        return sum(c.dilation[0] * (c.kernel_size[0] // 2) for c in convolutions)

    def admits_spectral(self, x: Tensor) -> bool:
        """Return whether an input like this may go through the frequency domain: not forbidden, and possible."""
        if self.convolution == "plain" or x.dtype not in (torch.float32, torch.float64):
            return False
        if any(n % 2 for n in x.shape[2:]) or any(type(norm) is not nn.BatchNorm3d for norm in self.norms):
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
            return folded_forward(x, *self.layers)
        convolutions, norms, _ = self.layers
        for convolution, norm in zip(convolutions, norms, strict=False):
            x = self.activation(norm(convolution(x)))
        return convolutions[-1](x)


class UNetGenerator(nn.Module):
    """MONAI's residual 3D U-Net (Kerfoot et al., STACOM 2018): the strong baseline, not part of the report's method.

    Args:
        in_channels: As for `NieGenerator`.
        slope: Negative slope of LeakyReLU.
    """

    reach: int | None = None
    "Strided convolutions: the output depends on where the window starts, so no exact tiling exists."

    multiple = 8
    "Edges of a patch are multiples of this: they are halved three times."

    def __init__(self, in_channels: int = 1, *, slope: float = 0.2) -> None:
        super().__init__()
        try:
            from monai.networks.nets import UNet  # MONAI takes seconds to import
        except ImportError as error:
            raise ResourceError(
                "the U-Net needs MONAI, which is not installed",
                where="generator.name",
                do="Run: pip install monai",
            ) from error

        self.network = UNet(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=1,
            channels=(32, 64, 128, 256),
            strides=(2, 2, 2),
            num_res_units=2,
            act=("LeakyReLU", {"negative_slope": slope}),
            norm="BATCH",
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k), edges multiples of 8, to (batch, 1, i, j, k)."""
        return self.network(x)


class Wrapper(nn.Module):
    """A generator with something done to its output, voxel by voxel.

    Args:
        generator: A generator; channel 0 of its input is the source.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    @property
    def reach(self) -> int | None:
        """That of the generator inside."""
        return self.generator.reach  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k) to (batch, 1, i, j, k)."""
        return self.apply_to(x, self.generator(x))

    def apply_to(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what becomes of the output y for the input x."""
        raise TypeError(f"{type(self).__name__} does nothing to an output")


class Residual(Wrapper):
    """ResGAN: the source is added voxel by voxel to the output of the last convolution (report, section VII)."""

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
"""Layers after the last convolution. The report has none that it tells of."""


def inner(network: nn.Module) -> nn.Module:
    """Return the generator inside its wrappers."""
    while isinstance(network, Wrapper):
        network = network.generator
    return network


def finish(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return what the wrappers of a network make of the output y of the generator inside, for the input x."""
    return network.apply_to(x, finish(network.generator, x, y)) if isinstance(network, Wrapper) else y


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

    Batch norm is absorbed by the kernels and their spectra are kept, for each shape of patch that comes. It holds a
    copy: make a new one after the weights change. What the frequency domain cannot take goes through the generator
    itself.

    Args:
        generator: As `build` returns it; put into evaluation mode.
    """

    def __init__(self, generator: nn.Module) -> None:
        self.generator = generator.eval()
        self._layers: dict[tuple[object, ...], FrozenLayers] = {}

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k) to (batch, 1, i, j, k)."""
        network = inner(self.generator)
        if not isinstance(network, NieGenerator) or not network.takes_spectral(x):
            return self.generator(x)
        key = (*x.shape[2:], x.dtype, x.device)
        if key not in self._layers:
            i, j, k = x.shape[2:]
            self._layers[key] = FrozenLayers(*network.layers, (i, j, k))
        return finish(self.generator, x, self._layers[key](x))


def small(in_channels: int = 1, *, slope: float = 0.2) -> NieGenerator:
    """Return a generator of the same shape for the demo: four layers, 8 or 16 filters, a receptive field of 15."""
    return NieGenerator(in_channels, filters=(8, 16, 16), kernels=(5, 3, 3, 3), slope=slope)


GENERATORS: dict[str, Callable[..., nn.Module]] = {"nie": NieGenerator, "small": small, "unet": UNetGenerator}


def build(
    name: str,
    *,
    in_channels: int = 1,
    residual: bool = False,
    slope: float = 0.2,
    initialization: str = "xavier_uniform",
    output: str = "linear",
    convolution: str = "auto",
    options: object = None,
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

    Raises:
        SettingsError: An unknown name; lists the known ones.
    """
    if name not in GENERATORS:
        near = difflib.get_close_matches(name, GENERATORS, n=1)
        raise SettingsError(
            "no such generator",
            where="generator.name",
            found=name,
            expected=f"one of {', '.join(GENERATORS)}",
            do=f"Did you mean {near[0]}?" if near else None,
        )
    if convolution not in CONVOLUTIONS:
        raise SettingsError(
            "no such way to convolve",
            where="generator.convolution",
            found=convolution,
            expected=f"one of {', '.join(CONVOLUTIONS)}",
        )
    if output not in OUTPUTS:
        raise SettingsError(
            "no such output", where="generator.output", found=output, expected=f"one of {', '.join(OUTPUTS)}"
        )
    generator = GENERATORS[name](in_channels, slope=slope)
    initialize(generator, initialization, where="generator.initialization")
    if isinstance(generator, NieGenerator):
        generator.convolution = convolution
    if output != "linear":
        generator = Output(generator, output)
    return Residual(generator) if residual else generator
