"""A trained model in a folder that needs nothing else: model.safetensors, and model.json with what else it is."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from unscanned.errors import CheckpointError, SettingsError
from unscanned.files import write_bytes, write_sealed
from unscanned.formats.model import ModelRecord, read_model_record
from unscanned.machine.device import choose_device
from unscanned.models import generators
from unscanned.settings import Settings, read_settings, to_dict
from unscanned.synthesis.model import Model
from unscanned.synthesis.shelf import ShelvedModel, place_of

__all__ = ["StoredModel", "load_model", "load_stored", "read_generators", "save_model", "stored", "weights_bytes"]


@dataclass(frozen=True)
class StoredModel:
    """Where a model is and which it is, for another process to load.

    Attributes:
        folder: With model.json, as an absolute path.
        name: That it was loaded by.
        sha256: Of all that decides what it makes.
    """

    folder: str
    name: str
    sha256: str


def stored(model: Model) -> StoredModel:
    """Return where a model is.

    Raises:
        SettingsError: It was not read from a folder.
    """
    if model.path is None:
        raise SettingsError(
            "workers load the model themselves, and it has no folder",
            where="model",
            do="Write it with save_model, and load it from there.",
        )
    return StoredModel(str(model.path.resolve()), model.name, model.sha256)


@lru_cache(maxsize=1)
def load_stored(place: StoredModel, device: str) -> Model:
    """Load a model, once in this process.

    Args:
        place: Where it is.
        device: As for `choose_device`.

    Raises:
        CheckpointError: As for `load_model`, or another model is there.
        ResourceError: The device is not there.
    """
    model = load_model(place.folder, choose_device(device))
    if model.sha256 != place.sha256:
        raise CheckpointError(
            "another model is in the folder",
            where=place.folder,
            found=f"sha256 {model.sha256[:12]}…",
            expected=f"{place.sha256[:12]}…",
            do="Let all machines see the same folder of the model.",
        )
    return replace(model, name=place.name)


def save_model(model: Model, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a model: the weights, then the record, which names their hash and holds its own.

    Args:
        model: What to write.
        folder: Gets model.safetensors and model.json.
        dtype: As for `weights_bytes`; `pack` says what a smaller one costs.

    Raises:
        ResourceError: The disk is full.
    """
    folder, weights = Path(folder), weights_bytes(model, dtype)
    write_bytes(folder / "model.safetensors", weights)
    record = ModelRecord(
        source=model.source,
        target=model.target,
        stages=len(model.generators),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        normalization=model.normalization,
        fingerprint=model.profile,
        familiarity=model.familiarity,
        settings=to_dict(model.settings),
        provenance=model.provenance,
    )
    write_sealed(folder / "model.json", record.to_json())
    return folder


def weights_bytes(model: Model, dtype: torch.dtype | None = None) -> bytes:
    """Return the content of model.safetensors: the tensors of generator n are named n.<name>.

    Args:
        model: Whose weights.
        dtype: What to store numbers with a fraction in, such as `torch.float16`; None leaves them as they are.
    """
    tensors = {
        f"{number}.{name}": (tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor).cpu().contiguous()
        for number, generator in enumerate(model.generators)
        for name, tensor in generator.state_dict().items()
    }
    return safetensors.torch.save(tensors)


def read_generators(settings: Settings, stages: int, content: bytes) -> list[nn.Module]:
    """Return the generators of a chain, in evaluation mode, from the content of model.safetensors.

    Weights are float32, whatever they are stored in.

    Raises:
        ValueError, KeyError, RuntimeError, SafetensorError: It does not hold the weights of these networks.
    """
    tensors = safetensors.torch.load(content)
    return [_generator(settings, number, tensors) for number in range(stages)]


def load_model(
    path: str | Path | ShelvedModel, device: torch.device | str = "cpu", *, models_in: str | Path | None = None
) -> Model:
    """Read a model by its name, from its folder, or from the run that made it.

    Args:
        path: A folder with model.json and model.safetensors, or one with such a folder `model` inside; or the name of a
            model that comes with the package or was fetched, such as t1w-t2w. The folder goes first. Or what
            `list_models` or `pick_model` found.
        device: Where to put the weights.
        models_in: Folder of models to look for the name in, in place of the package's and the fetched ones.

    Raises:
        CheckpointError: No model there or of that name, damaged weights or facts, another hash than the list of models
            has, or another format; pickles are never read.
    """
    try:
        place = place_of(path, models_in)
        folder, name = (place.folder, place.name) if isinstance(place, ShelvedModel) else (place, "")
        record, identity = read_model_record(folder)
        settings = read_settings(record.settings, where=str(folder / "model.json"), error=CheckpointError)
        content = (folder / "model.safetensors").read_bytes()  # once: what is hashed is what is loaded
        weights = hashlib.sha256(content).hexdigest()
        if weights != record.weights_sha256:
            raise CheckpointError(
                "the weights are damaged",
                where=folder / "model.safetensors",
                found=f"sha256 {weights[:12]}…",
                expected=f"{record.weights_sha256[:12]}…",
                do="Copy the model again from where it came.",
            )
        model = Model(
            read_generators(settings, record.stages, content),
            settings,
            record.normalization,
            record.provenance,
            identity,
            folder,
            record.fingerprint,
            weights,
            name,
            record.familiarity,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            "not a model",
            where=path.folder if isinstance(path, ShelvedModel) else path,
            found=error,
            expected="a folder with model.json and model.safetensors, or the name of a model",
            do="Give the folder `model` of a run that unscanned train made, or a name that unscanned models lists.",
        ) from error
    return model.to(device)


def _generator(settings: Settings, number: int, tensors: dict[str, torch.Tensor]) -> nn.Module:
    generator = generators.build(in_channels=1 if number == 0 else 2, **to_dict(settings.generator))
    prefix = f"{number}."
    generator.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return generator.eval()
