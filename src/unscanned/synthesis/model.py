"""A trained model: volume in, volume out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unscanned.contrast.check import ContrastProfile
from unscanned.contrast.familiarity import FamiliarityProfile
from unscanned.display import AUTOMATIC, draws_progress, html_table, in_a_line
from unscanned.errors import ResourceError
from unscanned.machine.precision import autocast, check_precision
from unscanned.progress import Progress, begin, shares
from unscanned.schema import read
from unscanned.settings import Settings, Synthesis
from unscanned.synthesis.card import card
from unscanned.synthesis.context import chain
from unscanned.synthesis.detail import restore_detail
from unscanned.synthesis.reconstruct import check_grid
from unscanned.synthesis.whole_volume import check_network
from unscanned.volumes.grid import Frame, frame
from unscanned.volumes.intensity import Normalization, head_mask, head_scale
from unscanned.volumes.nifti import Volume

__all__ = ["Model"]

_COSTS = (5, 75, 20)
"Of the way to the model's grid, the network and the way back: between a fast network at 1.5 mm and a slow one."


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A chain of trained generators that makes one contrast from another. A notebook shows its card.

    Attributes:
        generators: In evaluation mode, on one device.
        settings: Of the training.
        normalization: Intensity constants of the training set.
        provenance: Training cases, epoch, scores, software.
        sha256: Of all that decides what it makes: weights, settings, intensity constants.
        path: Folder that it was read from.
        profile: What the source contrast looked like in training; None where that is unknown.
        weights_sha256: Of the weights file.
        name: That it was loaded by; empty where that was a folder.
        familiarity: What the training scans were like beyond their contrast; None where that is unknown.
    """

    generators: Sequence[nn.Module]
    settings: Settings
    normalization: Normalization
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    path: Path | None = None
    profile: ContrastProfile | None = None
    weights_sha256: str = ""
    name: str = ""
    familiarity: FamiliarityProfile | None = None

    def __repr__(self) -> str:
        stages = f" x {len(self.generators)}" if len(self.generators) > 1 else ""
        place = f", {in_a_line(str(self.path))}" if self.path else ""
        return f"Model({self.source} -> {self.target}, {self.settings.generator.name}{stages}, {self.device}{place})"

    def _repr_html_(self) -> str:
        """Return the card that a notebook shows."""
        return html_table(card(self), caption=f"Model {self.source} -> {self.target}")

    @property
    def source(self) -> str:
        """Contrast that it takes."""
        return self.settings.data.source

    @property
    def target(self) -> str:
        """Contrast that it makes."""
        return self.settings.data.target

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.generators[0].parameters()).device

    def to(self, device: torch.device | str) -> Model:
        """Move the weights to a device, and return the model."""
        for generator in self.generators:
            generator.to(device)
        return self

    def how(self, **changes: Any) -> Synthesis:
        """Return how this model synthesizes: its own settings, and in their place what is given.

        Args:
            **changes: Fields of `Synthesis`, such as `stride=4`; None takes the model's own.

        Raises:
            SettingsError: No such field or value, a mode that the generator does not have, a stride that leaves voxels
                out, or a precision that the device does not have. It names what would do.
        """
        own = self.settings.synthesis.model_dump()
        how = read(Synthesis, own | {name: value for name, value in changes.items() if value is not None})
        check_grid(self.settings.training.patch, how.stride, how.batch)
        if how.mode == "volume":
            for generator in self.generators:
                check_network(generator)
        check_precision(how.precision, self.device, convolution=self.settings.generator.convolution)
        return how

    @draws_progress
    def synthesize(
        self,
        volume: Volume,
        how: Synthesis | None = None,
        *,
        progress: Progress | None = AUTOMATIC,
        **changes: Any,
    ) -> Volume:
        """Make the target contrast of a scan, on the scan's own grid.

        As in training, no more than the model's grid around the head is mapped, and the rest is 0; where the head does
        not fit into it, the whole scan is mapped, so that nothing of the head is left out (`crop`). Intensities come
        out on the median scale of the training targets, since the scale of a target that was never scanned is unknown.
        A network may go below what a scanner measures: `clip` says whether such voxels become the smallest value of the
        training targets, which is 0 in magnitude images. With `mirror` the mirror image is mapped too, and the mean of
        both, each the right way round, is taken (as nnU-Net does: Isensee et al., Nature Methods 2021).

        Where memory is short, fewer patches are mapped at a time, and at last on the CPU: the same function, which the
        warnings of the result then tell.

        Args:
            volume: A scan of the source contrast.
            how: As `how` returned it; None takes the model's own settings with the changes.
            progress: Called with (done, total, label) of the whole work. Without it a bar, in a terminal and in
                Jupyter; None draws none.
            **changes: As for `how`, such as `stride=4`.

        Returns:
            Float32 volume with the shape and affine of `volume`.

        Raises:
            SettingsError: As for `how`.
            VolumeError: There is no head in the scan.
            ResourceError: Memory does not hold a single patch.
        """
        how = how or self.how(**changes)
        on_the_way, mapping, back = shares(progress, _COSTS)
        begin(on_the_way, "to the model's grid")
        mask = head_mask(volume.array, volume.affine)
        scale = head_scale(volume.array, mask, self.normalization.percentile, where=volume.path)
        notes: list[str] = []
        where = self._frame(volume, mask, how.crop, notes.append)
        source = where.forward(volume.array) / np.float32(scale)
        run = partial(self._map, self.normalization.source.standardize(source), progress=mapping, note=notes.append)
        device = self.device
        try:
            with autocast(how.precision, device):
                synthetic = run(how, device=device)
        except ResourceError:
            if device.type == "cpu":
                raise
            notes.append(f"memory of {device} did not hold a single patch; the CPU took over, in float32")
            self.to("cpu")
            try:
                synthetic = run(how.model_copy(update={"batch": None}), device="cpu")
            finally:
                self.to(device)
        begin(back, "back to the scan's grid")
        target = self.normalization.target
        if how.detail == "source" and where.resampled:
            unit = restore_detail(where, volume.array / np.float32(scale), source, target.unit(synthetic))
            array = unit * np.float32(target.scale)
        else:
            array = where.inverse(target.unit(synthetic) * np.float32(target.scale))
        if how.clip == "minimum":
            array = np.maximum(array, np.float32((target.minimum or 0.0) * target.scale))
        return Volume(np.ascontiguousarray(array), volume.affine, warnings=(*volume.warnings, *notes), synthetic=True)

    def _map(
        self,
        source: np.ndarray,
        how: Synthesis,
        *,
        device: torch.device | str,
        progress: Progress | None,
        note: Callable[[str], None],
    ) -> np.ndarray:
        """Return the chain's z-scores of the target from those of the source, both on the model's grid (RAS+)."""
        run = partial(
            chain,
            generators=self.generators,
            how=how,
            context=self.settings.context.input,
            patch=self.settings.training.patch,
            device=device,
            note=note,
        )
        if not how.mirror:
            return run(source, progress=progress)
        first, second = shares(progress, (1, 1))
        synthetic = run(source, progress=first)
        mirrored = run(np.ascontiguousarray(source[::-1]), progress=second)[::-1]
        return (synthetic + mirrored) / 2

    def _frame(self, volume: Volume, head: np.ndarray, crop: str, note: Callable[[str], None]) -> Frame:
        """Return the frame of what is mapped: the model's grid around the head, or the whole scan."""
        prepare = self.settings.prepare
        onto = partial(frame, volume, spacing_mm=prepare.spacing_mm, averages=prepare.averages)
        cropped = onto(shape=prepare.shape, head=head, pads=False)
        fits = cropped.holds(head)
        if crop == "never" or (crop == "auto" and not fits):
            return onto()
        if not fits:
            shape = list(prepare.shape)
            note(f"the head is larger than the model's grid of {shape} voxels; what lies outside is left at 0")
        return cropped
