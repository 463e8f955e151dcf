"""MONAI's U-Net, the baseline."""

from __future__ import annotations

from torch import Tensor

from unscanned.models.base import GeneratorBase

__all__ = ["UNetGenerator"]


class UNetGenerator(GeneratorBase):
    """MONAI's residual 3D U-Net (Kerfoot et al., STACOM 2018): a baseline, not part of the reference.

    Its strided convolutions see where a window starts, so it has no `reach` and no exact tiling.

    Args:
        in_channels: As for `GeneratorBase`.
        slope: See there.
    """

    multiple = 8  # three halvings

    def __init__(self, in_channels: int = 1, *, slope: float = 0.2) -> None:
        super().__init__()
        from monai.networks.nets import UNet  # MONAI takes seconds to import

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
