"""A residual-encoder U-Net without a checkerboard: MONAI's SegResNet."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from unscanned.models.base import GeneratorBase
from unscanned.schema import Schema

__all__ = ["SegResNetGenerator"]

Numbers = Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1, max_length=7)]

GROUPS = 8

COPIES = 7
"Arrays of the first level's width that a pass holds at once."

NORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch": ("BATCH", {}),
    "instance": ("INSTANCE", {"affine": True}),
    "group": ("GROUP", {"num_groups": GROUPS}),
}
"Norms by name, as MONAI calls them."


class Doubling(nn.Module):
    """Trilinear interpolation to twice the edges: `interpolate` of factor 2 without aligned corners.

    It is put together from slices, because the gradient of `interpolate` on CUDA differs from call to call.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channel, i, j, k) to (batch, channel, 2i, 2j, 2k)."""
        for axis in (2, 3, 4):
            n = x.shape[axis]
            before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], axis)
            after = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], axis)
            x = torch.stack([before.lerp(x, 0.75), after.lerp(x, 0.75)], axis + 1).flatten(axis, axis + 1)
        return x.contiguous(memory_format=torch.channels_last_3d)


class SegResNetGenerator(GeneratorBase):
    """The encoder and decoder of Myronenko (BrainLes 2018), with residual blocks at every level.

    The decoder interpolates trilinearly instead of by transposed convolutions, whose kernels overlap unevenly and leave
    a grid (Odena et al., Distill 2016). With batch norm a volume can be mapped whole, or in tiles that start where the
    lowest level has a voxel, which gives the same.

    Args:
        in_channels: As for `GeneratorBase`.
        slope: See there.
        **options: Those of `Options`.
    """

    class Options(Schema):
        """The levels."""

        filters: PositiveInt = 16
        "Channels of the first level; every further one has twice as many."
        blocks_down: Numbers = (1, 2, 2, 4)
        "Residual blocks of each level on the way down; each level but the first halves the edges."
        blocks_up: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = (1, 1, 1)
        "Residual blocks of each level on the way up."
        norm: Literal["batch", "instance", "group"] = "batch"
        "What is normalized: each channel over the batch, each channel of each patch, or groups of eight channels."

        @model_validator(mode="after")
        def _fit(self) -> SegResNetGenerator.Options:
            if len(self.blocks_up) != len(self.blocks_down) - 1:
                raise ValueError("blocks_down must be one more than blocks_up")
            if self.norm == "group" and self.filters % GROUPS:
                raise ValueError(f"group norm takes filters that are a multiple of {GROUPS}")
            return self

    layout = torch.channels_last_3d

    def __init__(self, in_channels: int = 1, *, slope: float = 0.2, **options: Any) -> None:
        super().__init__()
        own = self.Options(**options)
        from monai.networks.nets import SegResNet  # MONAI takes seconds to import

        self.options, self.multiple = own, 2 ** len(own.blocks_up)
        self.network = SegResNet(
            init_filters=own.filters,
            in_channels=in_channels,
            out_channels=1,
            act=("LeakyReLU", {"negative_slope": slope, "inplace": True}),
            norm=NORMS[own.norm],
            blocks_down=own.blocks_down,
            blocks_up=own.blocks_up,
        )
        for level in self.network.up_samples:
            level[1] = Doubling()

    @property
    def reach(self) -> int | None:
        """Voxels on each side that can change an output voxel, to the next multiple; None with another norm.

        A convolution of a level sees one of the level's voxels on each side, and so does interpolation.
        """
        own = self.options
        if own.norm != "batch":
            return None
        lowest = len(own.blocks_up)
        total = 1 + 2 * own.blocks_down[0]
        for level in range(1, lowest + 1):
            total += 2 ** (level - 1) + 2 * own.blocks_down[level] * 2**level
        for level, blocks in zip(reversed(range(lowest)), own.blocks_up, strict=True):
            total += 2 ** (level + 1) + 2 * blocks * 2**level
        # A voxel lies anywhere within one of the lowest level's.
        return self.multiple * -(-(total + self.multiple - 1) // self.multiple)

    def bytes_a_voxel(self) -> int:
        """Return what a pass holds at once: arrays of the first level, as measured."""
        return 4 * COPIES * self.options.filters

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, in_channels, i, j, k), edges multiples of `multiple`, to (batch, 1, i, j, k)."""
        # in this layout a training step takes a fifth less time on a CPU
        return self.network(x.contiguous(memory_format=torch.channels_last_3d)).contiguous()
