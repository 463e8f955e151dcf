"""The auto-context chain: a generator after the first also sees what the previous one made (report, section VIII)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from unscanned.models.generators import FastGenerator
from unscanned.progress import Progress
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
    *,
    mode: Literal["patches", "volume"] = "patches",
    context: Literal["volume", "patch"] = "volume",
    patch: int = 32,
    stride: int = 8,
    batch: int | None = None,
    memory_mib: int | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Map a source volume through a chain of generators.

    Args:
        source: (i, j, k) float32, z-scores.
        generators: One or more; a chain of one is plain reconstruction.
        mode: Whether a stage averages overlapping patches or maps the volume whole.
        context: Whether a generator sees the previous one's reconstructed volume, or its output on the same patch; in
            mode volume the whole volume is that patch, and both are the same.
        patch: As for `reconstruct`, and so are the next three.
        stride: See there.
        batch: See there.
        memory_mib: As for `map_volume`.
        device: See there.
        progress: Called with (done, total, label), stage after stage.
        note: As for `reconstruct`.

    Returns:
        (i, j, k) float32, z-scores.
    """
    stages = [PatchChain(generators)] if context == "patch" and mode == "patches" else list(generators)
    synthetic: np.ndarray | None = None
    for number, stage in enumerate(stages, 1):
        volume = source[None] if synthetic is None else np.stack([source, synthetic])
        report = _staged(progress, number, len(stages))
        if mode == "volume":
            synthetic = map_volume(volume, stage, memory_mib=memory_mib, device=device, progress=report)
            continue
        synthetic = reconstruct(
            volume,
            stage,
            patch=patch,
            stride=stride,
            batch=batch,
            device=device,
            progress=report,
            note=note,
        )
    assert synthetic is not None, "a chain has at least one generator"
    return synthetic


def _staged(progress: Progress | None, number: int, stages: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, label: progress(
        (number - 1) * total + done, stages * total, label if stages == 1 else f"{label}, stage {number}/{stages}"
    )
