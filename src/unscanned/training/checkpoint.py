"""The state of a training stage on disk: a safetensors file and a manifest with its hash, the manifest renamed last.

The last two checkpoints are kept, so that a damaged one never costs more than the steps since the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from unscanned.errors import CheckpointError
from unscanned.files import read_json, sha256, write_bytes, write_json

__all__ = ["Checkpoint", "load_checkpoint", "restore", "save_checkpoint", "state"]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at a step.

    Attributes:
        step: Steps taken.
        tensors: As `state` returned them.
        facts: Best epoch and score so far, fingerprint, software.
        warnings: Newer checkpoints that were passed over, and why.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()


def state(modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the weights, buffers and optimizer state of named modules and optimizers as one flat dict of tensors."""
    tensors = {f"{name}/{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for number, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{number}/{key}": value for key, value in values.items()}
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def restore(
    tensors: dict[str, Tensor], modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]
) -> None:
    """Put what `state` returned back, in place.

    Raises:
        CheckpointError: The tensors do not fit the modules.
    """
    for name, module in modules.items():
        try:
            module.load_state_dict(_below(tensors, name))
        except RuntimeError as error:
            raise CheckpointError("the checkpoint does not fit the network", where=name, found=error) from error
    for name, optimizer in optimizers.items():
        content = optimizer.state_dict()
        values: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _below(tensors, name).items():
            number, entry = key.split("/")
            values.setdefault(int(number), {})[entry] = tensor
        optimizer.load_state_dict({"state": values, "param_groups": content["param_groups"]})


def save_checkpoint(folder: str | Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a checkpoint, and remove all but the last two.

    Raises:
        ResourceError: The disk is full; older checkpoints are untouched.
    """
    folder = Path(folder)
    path = folder / f"step-{step:08d}.safetensors"
    write_bytes(path, safetensors.torch.save(tensors))
    write_json(path.with_suffix(".json"), {"step": step, "sha256": sha256(path), **facts})
    for old in sorted(folder.glob("step-*.json"))[:-2]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: str | Path, fingerprint: str) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None where there is none yet.

    Args:
        folder: Where `save_checkpoint` wrote.
        fingerprint: Of the settings and data; a checkpoint of another one is refused.

    Raises:
        CheckpointError: Checkpoints are there, but all are damaged, or they belong to other settings or data.
    """
    manifests = sorted(Path(folder).glob("step-*.json"), reverse=True)
    warnings: list[str] = []
    for manifest in manifests:
        try:
            facts = read_json(manifest)
            weights = manifest.with_suffix(".safetensors")
            if sha256(weights) != facts["sha256"]:
                raise ValueError("its hash differs from the manifest's")
            if facts["fingerprint"] != fingerprint:
                raise CheckpointError(
                    "the checkpoint was made with other settings or data",
                    where=manifest,
                    found=f"fingerprint {facts['fingerprint']}",
                    expected=fingerprint,
                    do="Train into another folder, or restore the settings and data of this one.",
                )
            tensors = safetensors.torch.load_file(weights)
            return Checkpoint(int(facts["step"]), tensors, facts, tuple(warnings))
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            warnings.append(f"{manifest.stem} passed over: {error}")
    if manifests:
        raise CheckpointError(
            "no checkpoint is readable",
            where=folder,
            found="; ".join(warnings),
            do="Remove the folder to start this stage again.",
        )
    return None


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
