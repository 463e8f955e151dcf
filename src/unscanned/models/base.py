"""What a network declares of itself: options of its own, the patches that it takes, how far it sees, its fast mappings.

No other module asks which architecture it has before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from unscanned.errors import SettingsError
from unscanned.schema import Schema, near, read

if TYPE_CHECKING:
    from unscanned.models.streaming import Stream

__all__ = [
    "CONVOLUTIONS",
    "DiscriminatorBase",
    "GeneratorBase",
    "NetworkBase",
    "check_edge",
    "check_name",
    "own_options",
]

CONVOLUTIONS = ("auto", "plain", "spectral")
"Ways to compute the same function: `plain` is `Conv3d`, `spectral` the frequency domain, `auto` the faster one."


class NetworkBase(nn.Module):
    """What every network declares; a subclass overrides what differs."""

    Options: ClassVar[type[Schema]] = Schema
    "Options of its own, each with type, bounds, default and meaning; the constructor takes them as keywords."

    multiple = 1
    "The edges of its patches are multiples of this."

    refusal = "does not take patches of this size"
    "What is said of patches with other edges."


class GeneratorBase(NetworkBase):
    """Maps (batch, in_channels, i, j, k) to (batch, 1, i, j, k), in z-scores; channel 0 is the source.

    Args:
        in_channels: 1, or 2 in an auto-context chain (source, previous synthetic target).
        slope: Negative slope of LeakyReLU.
        **options: Those of `Options`.
    """

    ways: ClassVar[tuple[str, ...]] = ("auto", "plain")
    "Which of `CONVOLUTIONS` it has."

    convolution = "auto"
    "The way that it takes; `build` sets it."

    layout: ClassVar[torch.memory_format] = torch.contiguous_format
    "How its weights lie in memory while it trains on a CPU; files hold them in their own order."

    def __init__(self, in_channels: int = 1, *, slope: float = 0.2, **options: Any) -> None:
        super().__init__()

    @property
    def reach(self) -> int | None:
        """Voxels on each side that can change an output voxel, where a window starts at a multiple of `multiple`.

        None: the output depends on where else a window starts, or on all of it, as behind a norm of each patch.
        """
        return None

    def bytes_a_voxel(self) -> int | None:
        """Return what a pass holds at once for each voxel, in float32; None: it is estimated from the layers."""
        return None

    def fast(self) -> Callable[[Tensor], Tensor]:
        """Return the same function for many patches in evaluation mode; the weights must not change any more."""
        return self

    def stream(self, x: Tensor) -> Stream | None:
        """Return the pass through a whole volume that takes inputs like x brick by brick; None: there is none."""
        return None


class DiscriminatorBase(NetworkBase):
    """Maps source and target, each (batch, 1, i, j, k), to logits (batch, 1): the loss has the sigmoid.

    Args:
        patch: Edge of the cubic patches.
        slope: Negative slope of LeakyReLU.
        **options: Those of `Options`.
    """

    def __init__(self, patch: int = 32, *, slope: float = 0.2, **options: Any) -> None:
        super().__init__()


def check_name(name: str, known: Collection[str], *, noun: str, where: str) -> None:
    """Refuse a name that is not known.

    Raises:
        SettingsError: Lists the known names, and asks whether the near one was meant.
    """
    if name not in known:
        raise SettingsError(
            f"no such {noun}",
            where=where,
            found=name,
            expected=f"one of {', '.join(known)}",
            do=near(name, known),
        )


def own_options(kind: type[NetworkBase], options: Mapping[str, Any] | None, *, where: str) -> dict[str, Any]:
    """Return all options of an architecture's own by name: those given, and the defaults of the others.

    Raises:
        SettingsError: One that it does not have, of the wrong type or out of bounds.
    """
    if options and not kind.Options.model_fields:
        raise SettingsError("this architecture has no options of its own", where=where, found=", ".join(options))
    return dict(read(kind.Options, options or {}, where=where, noun="option"))


def check_edge(network: NetworkBase, *, noun: str, name: str, patch: int, margin: int = 0) -> None:
    """Refuse a patch with a margin around it whose edge the network does not take.

    Raises:
        SettingsError: Says which edges it takes.
    """
    if (patch + 2 * margin) % network.multiple:
        raise SettingsError(
            f"the {noun} {network.refusal}",
            where="training.patch",
            found=f"{with_margin(patch, margin)} with {noun}.name = {name}",
            expected=f"a multiple of {network.multiple}" + (" in all" if margin else ""),
        )


def with_margin(patch: int, margin: int) -> str:
    """Return the edge of a patch in words."""
    return f"{patch} and {margin} around it" if margin else str(patch)
