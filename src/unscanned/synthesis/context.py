"""The auto-context chain: each generator after the first also sees what the one before made.

The reference, section VIII.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from unscanned.models.generators import FastGenerator
from unscanned.progress import Progress, within
from unscanned.settings import Synthesis
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.synthesis.whole_volume import map_volume

__all__ = ["PatchChain", "chain"]


class PatchChain(nn.Module):
    """The chain as one network of a patch: the context is the previous output on the same patch.

    In evaluation mode and without gradients its generators are prepared once, as `FastGenerator` does it: their weights
    are not to change any more.

    Args:
        generators: The first with one input channel, the others with two.
    """

    def __init__(self, generators: Sequence[nn.Module]) -> None:
        super().__init__()
        self.generators = nn.ModuleList(generators)
        self._prepared: list[FastGenerator] = []

    def forward(self, source: Tensor) -> Tensor:
        """Map (batch, 1, i, j, k) to (batch, 1, i, j, k)."""
        first, *others = self._stages()
        synthetic = first(source)
        for generator in others:
            synthetic = generator(torch.cat([source, synthetic], 1))
        return synthetic

    def _stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        if self.training or torch.is_grad_enabled():
            return list(self.generators)
        if not self._prepared:
            self._prepared = [FastGenerator(generator) for generator in self.generators]
        return self._prepared


def chain(
    source: np.ndarray,
    generators: Sequence[nn.Module],
    how: Synthesis = Synthesis(),  # noqa: B008 - frozen
    *,
    context: Literal["volume", "patch"] = "volume",
    patch: int = 32,
    earlier: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Map a source volume through a chain of generators.

    Args:
        source: (i, j, k) float32, z-scores.
        generators: One or more; a chain of one is plain reconstruction.
        how: Whether a stage averages overlapping patches or maps the volume whole, with its options.
        context: Whether a generator sees the previous one's reconstructed volume, or its output on the same patch; in
            mode volume the whole volume is that patch, and both are the same.
        patch: Edge of a patch, in voxels.
        earlier: What a stage before these made of the source, same shape; then the first generator has two channels.
        device: Where the generators are.
        progress: Called with (done, total, label), stage after stage.
        note: As for `reconstruct`.

    Returns:
        (i, j, k) float32, z-scores.
    """
    is_one = context == "patch" and how.mode == "patches" and len(generators) > 1
    stages = [PatchChain(generators)] if is_one else list(generators)
    count = len(stages)
    for number, stage in enumerate(stages):
        volume = source[None] if earlier is None else np.stack([source, earlier])
        label = str if count == 1 else f"stage {number + 1} of {count}, {{}}".format
        report = within(progress, number, count, label)
        if how.mode == "volume":
            earlier = map_volume(volume, stage, memory_mib=how.memory_mib, device=device, progress=report)
        else:
            earlier = reconstruct(
                volume,
                stage,
                patch=patch,
                stride=how.stride,
                blend=how.blend,
                batch=how.batch,
                device=device,
                progress=report,
                note=note,
            )
    assert earlier is not None, "a chain has at least one generator"
    return earlier
