"""The state of a training stage on disk: a safetensors file and a manifest with both hashes, the manifest renamed last.

The last two checkpoints are kept, so that a damaged one never costs more than the steps since the one before. Nothing
is ever unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from unscanned.errors import CheckpointError, in_words
from unscanned.files import read_sealed, sha256, write_bytes, write_sealed
from unscanned.formats.checkpoint import CheckpointRecord, comparable
from unscanned.settings import difference

__all__ = ["Checkpoint", "load_checkpoint", "restore", "save_checkpoint", "state"]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved at a step.

    Attributes:
        step: Steps taken.
        tensors: As `state` returned them.
        facts: What its manifest says.
        warnings: Newer checkpoints that were passed over, and why.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: CheckpointRecord
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
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        values: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _below(tensors, name).items():
            number, entry = key.split("/")
            values.setdefault(int(number), {})[entry] = _laid_out(tensor, weights[int(number)])
        optimizer.load_state_dict({"state": values, "param_groups": content["param_groups"]})


def _laid_out(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return what belongs to each number of a weight in the weight's order in memory, which a fused step relies on."""
    if tensor.shape != weight.shape or tensor.stride() == weight.stride():
        return tensor
    return torch.empty_strided(weight.shape, weight.stride(), dtype=tensor.dtype).copy_(tensor)


def save_checkpoint(
    folder: str | Path,
    step: int,
    tensors: dict[str, Tensor],
    facts: Mapping[str, Any],
    *,
    identity: Mapping[str, Any],
    keep: Collection[int] = (),
) -> None:
    """Write a checkpoint; then remove later ones, and all earlier ones but the previous and those to keep.

    Args:
        folder: Holds the checkpoints of one stage.
        step: Steps taken.
        tensors: As `state` returned them.
        facts: JSON values to save beside them.
        identity: Settings and data, table by table, that another run must share to go on from here.
        keep: Steps whose checkpoints stay.

    Raises:
        ResourceError: The disk is full; older checkpoints are untouched.
    """
    folder = Path(folder)
    path = folder / f"step-{step:08d}.safetensors"
    write_bytes(path, safetensors.torch.save(tensors))
    record = CheckpointRecord(step=step, sha256=sha256(path), identity=comparable(identity), **facts)
    write_sealed(path.with_suffix(".json"), record.to_json())
    manifests = {int(old.stem.removeprefix("step-")): old for old in sorted(folder.glob("step-*.json"))}
    earlier = [number for number in manifests if number < step]
    for number in {*manifests} - {step, *earlier[-1:], *keep}:
        manifests[number].unlink()
        manifests[number].with_suffix(".safetensors").unlink(missing_ok=True)


def load_checkpoint(folder: str | Path, identity: Mapping[str, Any], *, last: int | None = None) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, or None where there is none yet.

    Args:
        folder: Where `save_checkpoint` wrote.
        identity: As for `save_checkpoint`; a checkpoint with another one is refused.
        last: Checkpoints of later steps are left alone.

    Raises:
        CheckpointError: Checkpoints are there, but all are damaged, they belong to other settings or data, or they are
            pickles.
    """
    folder, wanted = Path(folder), comparable(identity)
    manifests = sorted(folder.glob("step-*.json"), reverse=True)
    warnings: list[str] = []
    for manifest in manifests:
        try:
            facts = CheckpointRecord.load(read_sealed(manifest), where=manifest, error=CheckpointError)
            if last is not None and facts.step > last:
                continue
            content = manifest.with_suffix(".safetensors").read_bytes()
            if hashlib.sha256(content).hexdigest() != facts.sha256:
                raise ValueError("its hash differs from the manifest's")
            if facts.identity != wanted:
                raise _other(manifest, facts.identity, wanted)
            return Checkpoint(facts.step, safetensors.torch.load(content), facts, tuple(warnings))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
            warnings.append(f"{manifest.stem} passed over: {in_words(error)}")
    _refuse_pickles(folder)
    if warnings:
        raise CheckpointError(
            "no checkpoint is readable",
            where=folder,
            found="; ".join(warnings),
            do="Remove the folder to start this stage again.",
        )
    return None


def _other(manifest: Path, found: dict[str, Any], wanted: dict[str, Any]) -> CheckpointError:
    return CheckpointError(
        "the checkpoint was made with other settings or data",
        where=manifest,
        found=difference(found, wanted),
        do="Train into another folder, restore the settings and data of this one, or remove this stage's folder to "
        "train it anew.",
    )


def _refuse_pickles(folder: Path) -> None:
    for suffix in ("pt", "pth", "pkl", "ckpt", "bin"):
        for path in folder.glob(f"*.{suffix}"):
            raise CheckpointError(
                "pickled checkpoints are not read: loading one can run any program",
                where=path,
                expected="step-*.safetensors with its step-*.json",
                do="Remove it, or train into another folder.",
            )


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}
