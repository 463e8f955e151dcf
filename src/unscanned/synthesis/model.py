"""A trained model in a folder that needs nothing else: its generators, intensity constants and provenance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from unscanned.contrast.check import ContrastProfile
from unscanned.errors import CheckpointError, ResourceError, SettingsError
from unscanned.files import digest, read_json, read_sealed, sha256, write_bytes, write_sealed
from unscanned.machine import precision as precisions
from unscanned.machine.precision import autocast
from unscanned.models import generators as generator_models
from unscanned.progress import Progress
from unscanned.settings import Synthesis, is_contrast
from unscanned.synthesis.context import chain
from unscanned.synthesis.reconstruct import check_grid
from unscanned.synthesis.whole_volume import check_network
from unscanned.volumes.grid import Frame, frame
from unscanned.volumes.intensity import Contrast, Normalization, head_mask, head_scale
from unscanned.volumes.nifti import Volume

__all__ = ["Model", "load_model", "save_model", "weights_bytes"]

FORMAT = 2


@dataclass(frozen=True, eq=False)
class Model:
    """A chain of trained generators that makes one contrast from another.

    Attributes:
        generators: In evaluation mode, on one device.
        settings: The resolved settings of the training, as nested dicts.
        normalization: Intensity constants of the training set.
        provenance: Training cases, epoch, scores, software.
        sha256: Of all that decides what it makes: weights, settings, intensity constants.
        path: Folder that it was read from.
        profile: What the source contrast looked like in training; None where that is unknown.
        weights_sha256: Of the weights file.
    """

    generators: Sequence[nn.Module]
    settings: dict[str, Any]
    normalization: Normalization
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    path: Path | None = None
    profile: ContrastProfile | None = None
    weights_sha256: str = ""

    @property
    def source(self) -> str:
        """Contrast that it takes."""
        return str(self.settings["data"]["source"])

    @property
    def target(self) -> str:
        """Contrast that it makes."""
        return str(self.settings["data"]["target"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.generators[0].parameters()).device

    def to(self, device: torch.device | str) -> Model:
        """Move the weights to a device, and return the model."""
        for generator in self.generators:
            generator.to(device)
        return self

    def options(
        self,
        *,
        mode: str | None = None,
        crop: str | None = None,
        stride: int | None = None,
        batch: int | None = None,
        memory_mib: int | None = None,
        precision: str | None = None,
    ) -> dict[str, Any]:
        """Return how this model synthesizes: its own settings, and in their place what is given.

        Args:
            mode: patches, which averages overlapping patches, or volume, which maps the volume whole.
            crop: auto, always or never: whether to map the model's grid around the head alone.
            stride: Voxels between patches.
            batch: Patches at a time.
            memory_mib: MiB that mode volume may work in.
            precision: float32, tf32 or bfloat16.

        Raises:
            SettingsError: An unknown mode or crop, a mode that the generator does not have, a stride or batch that
                leaves voxels out, no memory, or a precision that the device does not have. It names what would do.
        """
        given = {
            "mode": mode,
            "crop": crop,
            "stride": stride,
            "batch": batch,
            "memory_mib": memory_mib,
            "precision": precision,
        }
        own = asdict(Synthesis()) | self.settings["synthesis"]
        options = own | {name: value for name, value in given.items() if value is not None}
        patch = self.settings["training"]["patch"]
        for name, known in {"mode": ("patches", "volume"), "crop": ("auto", "always", "never")}.items():
            if options[name] not in known:
                raise SettingsError(f"no such {name}", where=name, found=options[name], expected=" or ".join(known))
        check_grid(patch, options["stride"], options["batch"])
        if options["memory_mib"] is not None and options["memory_mib"] < 1:
            raise SettingsError("must be positive", where="memory_mib", found=options["memory_mib"])
        if options["mode"] == "volume":
            for generator in self.generators:
                check_network(generator)
        convolution = self.settings["generator"]["convolution"]
        precisions.choose(options["precision"], self.device, convolution=convolution)
        return options

    def synthesize(
        self,
        volume: Volume,
        *,
        mode: str | None = None,
        crop: str | None = None,
        stride: int | None = None,
        batch: int | None = None,
        memory_mib: int | None = None,
        precision: str | None = None,
        progress: Progress | None = None,
    ) -> Volume:
        """Make the target contrast of a scan, on the scan's own grid.

        As in training, no more than the model's grid around the head is mapped, and the rest is 0; where the head does
        not fit into it, the whole scan is mapped, so that nothing of the head is left out (`crop`). Intensities come
        out on the median scale of the training targets, since the scale of a target that was never scanned is unknown.

        Where memory is short, fewer patches are mapped at a time, and at last on the CPU: the same function, which the
        warnings of the result then tell.

        Args:
            volume: A scan of the source contrast.
            mode: As for `options`, and so are the next five; None takes the model's own.
            crop: See there.
            stride: See there.
            batch: See there.
            memory_mib: See there.
            precision: See there.
            progress: Called with (patches done, all patches, label).

        Returns:
            Float32 volume with the shape and affine of `volume`.

        Raises:
            SettingsError: As for `options`.
            VolumeError: There is no head in the scan.
            ResourceError: Memory does not hold a single patch.
        """
        options = self.options(
            mode=mode, crop=crop, stride=stride, batch=batch, memory_mib=memory_mib, precision=precision
        )
        mask = head_mask(volume.array, volume.affine)
        scale = head_scale(volume.array, mask, self.normalization.percentile, where=volume.path)
        notes: list[str] = []
        where = self._frame(volume, mask, options["crop"], notes.append)
        z = self.normalization.source.standardize(where.forward(volume.array) / np.float32(scale))
        run = partial(
            chain,
            z,
            self.generators,
            context=self.settings["context"]["input"],
            patch=self.settings["training"]["patch"],
            mode=options["mode"],
            stride=options["stride"],
            memory_mib=options["memory_mib"],
            progress=progress,
            note=notes.append,
        )
        device = self.device
        try:
            with autocast(options["precision"], device):
                synthetic = run(batch=options["batch"], device=device)
        except ResourceError:
            if device.type == "cpu":
                raise
            notes.append(f"memory of {device} did not hold a single patch; the CPU took over, in float32")
            self.to("cpu")
            try:
                synthetic = run(device="cpu")
            finally:
                self.to(device)
        target = self.normalization.target
        array = where.inverse(target.unit(synthetic) * np.float32(target.scale))
        return Volume(np.ascontiguousarray(array), volume.affine, warnings=(*volume.warnings, *notes))

    def _frame(self, volume: Volume, head: np.ndarray, crop: str, note: Callable[[str], None]) -> Frame:
        """Return the frame of what is mapped: the model's grid around the head, or the whole scan."""
        shape, spacing_mm = self.settings["prepare"]["shape"], self.settings["prepare"]["spacing_mm"]
        cropped = frame(volume, shape=tuple(shape), spacing_mm=spacing_mm, head=head, pads=False)
        fits = cropped.holds(head)
        if crop == "never" or (crop == "auto" and not fits):
            return frame(volume, spacing_mm=spacing_mm)
        if not fits:
            note(f"the head is larger than the model's grid of {shape} voxels; what lies outside is left at 0")
        return cropped


def save_model(model: Model, folder: str | Path) -> Path:
    """Write a model: model.safetensors, then model.json, which names the weights' hash and holds its own.

    Raises:
        ResourceError: The disk is full.
    """
    folder = Path(folder)
    write_bytes(folder / "model.safetensors", weights_bytes(model))
    write_sealed(
        folder / "model.json",
        {
            "format": FORMAT,
            "source": model.source,
            "target": model.target,
            "stages": len(model.generators),
            "weights_sha256": sha256(folder / "model.safetensors"),
            "normalization": asdict(model.normalization),
            "fingerprint": model.profile and model.profile.to_json(),
            "settings": model.settings,
            "provenance": model.provenance,
        },
    )
    return folder


def weights_bytes(model: Model) -> bytes:
    """Return the content of model.safetensors: the tensors of generator n are named n.<name>."""
    tensors = {
        f"{number}.{name}": tensor.detach().cpu().contiguous()
        for number, generator in enumerate(model.generators)
        for name, tensor in generator.state_dict().items()
    }
    return safetensors.torch.save(tensors)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """Read a model from its folder, or from the run that made it.

    Args:
        path: A folder with model.json and model.safetensors, or one with such a folder `model` inside.
        device: Where to put the weights.

    Raises:
        CheckpointError: No model there, damaged weights or facts, or another format; pickles are never read.
    """
    folder = Path(path)
    if not (folder / "model.json").is_file():
        folder = folder / "model"
    try:
        found = read_json(folder / "model.json")["format"]
        if found != FORMAT:
            raise CheckpointError(
                "another format of model",
                where=folder,
                found=found,
                expected=FORMAT,
                do="Use the release that made it, or train it again with this one.",
            )
        facts = read_sealed(folder / "model.json")
        weights = sha256(folder / "model.safetensors")
        if weights != facts["weights_sha256"]:
            raise CheckpointError(
                "the weights are damaged",
                where=folder / "model.safetensors",
                found=f"sha256 {weights[:12]}…",
                expected=f"{facts['weights_sha256'][:12]}…",
                do="Copy the model again from where it came.",
            )
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        settings = facts["settings"]
        for contrast in ("source", "target"):
            if not is_contrast(settings["data"][contrast]):  # names of files are made of it
                raise ValueError(f"data.{contrast} is no contrast: {settings['data'][contrast]!r}")
        generators = [_generator(settings, number, tensors) for number in range(facts["stages"])]
        n = facts["normalization"]
        normalization = Normalization(n["percentile"], Contrast(**n["source"]), Contrast(**n["target"]))
        seen = ContrastProfile.from_json(facts.get("fingerprint"))
        # All that decides what a volume looks like; where the model comes from does not.
        identity = digest({name: value for name, value in facts.items() if name != "provenance"})
        model = Model(generators, settings, normalization, facts["provenance"], identity, folder, seen, weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            "not a model",
            where=path,
            found=f"{type(error).__name__}: {error}",
            expected="a folder with model.json and model.safetensors",
            do="Give the folder `model` of a run that unscanned train made.",
        ) from error
    return model.to(device)


def _generator(settings: dict[str, Any], number: int, tensors: dict[str, torch.Tensor]) -> nn.Module:
    options = settings["generator"]
    generator = generator_models.build(
        options["name"],
        in_channels=1 if number == 0 else 2,
        residual=options["residual"],
        slope=options["slope"],
        output=options.get("output", "linear"),  # as models older than this setting are
        convolution=options["convolution"],
    )
    prefix = f"{number}."
    generator.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return generator.eval()
