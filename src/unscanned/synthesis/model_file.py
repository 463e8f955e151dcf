"""A trained model in a folder that needs nothing else: model.safetensors, and model.json with what else it is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from unscanned.errors import CheckpointError
from unscanned.files import digest, read_json, unsealed, write_bytes, write_sealed
from unscanned.formats.model import ModelRecord
from unscanned.models import generators
from unscanned.settings import Settings, read_settings, to_dict
from unscanned.synthesis.model import Model

__all__ = ["load_model", "read_model_record", "save_model", "weights_bytes"]


def save_model(model: Model, folder: str | Path) -> Path:
    """Write a model: the weights, then the record, which names their hash and holds its own.

    Raises:
        ResourceError: The disk is full.
    """
    folder, weights = Path(folder), weights_bytes(model)
    write_bytes(folder / "model.safetensors", weights)
    record = ModelRecord(
        source=model.source,
        target=model.target,
        stages=len(model.generators),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        normalization=model.normalization,
        fingerprint=model.profile,
        settings=to_dict(model.settings),
        provenance=model.provenance,
    )
    write_sealed(folder / "model.json", record.to_json())
    return folder


def weights_bytes(model: Model) -> bytes:
    """Return the content of model.safetensors: the tensors of generator n are named n.<name>."""
    tensors = {
        f"{number}.{name}": tensor.detach().cpu().contiguous()
        for number, generator in enumerate(model.generators)
        for name, tensor in generator.state_dict().items()
    }
    return safetensors.torch.save(tensors)


def read_model_record(folder: Path) -> tuple[ModelRecord, str]:
    """Return what model.json says, and the hash of all in it that decides what the model makes.

    Raises:
        OSError: It cannot be read.
        ValueError: It was changed since it was written.
        CheckpointError: It is of another format, or a key or value in it is unknown.
    """
    content = read_json(folder / "model.json")
    if isinstance(content, dict) and content.get("format", 1) in ModelRecord.readable:
        content = unsealed(content)
    record = ModelRecord.load(content, where=folder, error=CheckpointError)
    return record, digest({name: value for name, value in content.items() if name != "provenance"})


def load_model(path: str | Path, device: torch.device | str = "cpu") -> Model:
    """Read a model from its folder, or from the run that made it.

    Args:
        path: A folder with model.json and model.safetensors, or one with such a folder `model` inside.
        device: Where to put the weights.

    Raises:
        CheckpointError: No model there, damaged weights or facts, or another format; pickles are never read.
    """
    folder = Path(path)
    try:
        if not (folder / "model.json").is_file():
            folder = folder / "model"
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
        tensors = safetensors.torch.load(content)
        model = Model(
            [_generator(settings, number, tensors) for number in range(record.stages)],
            settings,
            record.normalization,
            record.provenance,
            identity,
            folder,
            record.fingerprint,
            weights,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            "not a model",
            where=path,
            found=error,
            expected="a folder with model.json and model.safetensors",
            do="Give the folder `model` of a run that unscanned train made.",
        ) from error
    return model.to(device)


def _generator(settings: Settings, number: int, tensors: dict[str, torch.Tensor]) -> nn.Module:
    generator = generators.build(in_channels=1 if number == 0 else 2, **to_dict(settings.generator))
    prefix = f"{number}."
    generator.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return generator.eval()
