"""A trained model in a folder that needs nothing else: model.safetensors, and model.json with what else it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from unscanned.errors import CheckpointError
from unscanned.files import write_bytes, write_sealed
from unscanned.formats.model import ModelRecord, read_model_record
from unscanned.models import generators
from unscanned.settings import Settings, read_settings, to_dict
from unscanned.synthesis.model import Model
from unscanned.synthesis.shelf import ShelvedModel, place_of

__all__ = ["load_model", "read_generators", "save_model", "weights_bytes"]


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
