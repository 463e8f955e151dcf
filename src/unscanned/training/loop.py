"""The training of one generator against its discriminator, to be read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unscanned.data.patches import PatchBatches
from unscanned.errors import Interrupted
from unscanned.losses import Reduction, gradient_difference_loss, l1_loss
from unscanned.precision import autocast
from unscanned.progress import Progress
from unscanned.training.adversary import Adversary
from unscanned.training.checkpoint import load_checkpoint, restore, save_checkpoint, state
from unscanned.training.health import check_finite
from unscanned.training.log import RunLog

__all__ = ["train_stage"]


def train_stage(
    folder: Path,
    generator: nn.Module,
    discriminator: nn.Module | None,
    batches: PatchBatches,
    validate: Callable[[nn.Module], dict[str, float]],
    *,
    epochs: int,
    steps_per_epoch: int | None = None,
    adversarial: float = 0.5,
    l1: float = 1.0,
    gdl: float = 1.0,
    reduction: Reduction = "sum",
    learning_rate: float = 1e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    seed: int = 0,
    workers: int = 0,
    checkpoint_minutes: float = 5.0,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    previous: nn.Module | None = None,
    fingerprint: str = "",
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train a generator, keep the best epoch, and go on where an interrupted run was.

    Each step trains the discriminator on one acquired and one synthetic batch, then the generator (report, section IV).
    A step depends on the state before it and on (seed, step) alone, so a resumed run equals an uninterrupted one bit
    for bit on one device with one number of threads. Where the batches have a margin, the generator sees it, and the
    losses and the discriminator see the centre alone.

    Args:
        folder: Gets log.jsonl, tensorboard/, checkpoints/ and best/.
        generator: Fresh; holds the best epoch's weights at the end.
        discriminator: Fresh, or None to train without the adversarial term.
        batches: The batch of each step.
        validate: Scores the generator after each epoch; `psnr`, in dB, chooses the best. Without validation subjects it
            returns an empty dict, and the last epoch is kept.
        epochs: Number of epochs.
        steps_per_epoch: Steps that count as one; None means all patches once.
        adversarial: Weight of the adversarial term.
        l1: Weight of the L1 term.
        gdl: Weight of the gradient difference term.
        reduction: Of L1 and GDL over the voxels.
        learning_rate: Adam's, for both networks.
        betas: Adam's.
        seed: Of what is random within a step.
        workers: Processes that cut patches.
        checkpoint_minutes: Time between checkpoints within an epoch.
        device: Where the networks are.
        precision: Of the networks' forward and backward passes, as `unscanned.precision.choose` allowed it.
        previous: For an auto-context stage whose context is the previous output on the same patch: the earlier stages.
        fingerprint: Of settings and data; a checkpoint of another one is refused.
        progress: Called with (steps taken, all steps, label).
        should_stop: Asked after each step; when true, a checkpoint is written and the training stops.

    Returns:
        The best epoch, its step and its scores, the seconds that the steps took, and the share of them that was spent
        waiting for patches.

    Raises:
        TrainingError: A loss or gradient is not finite.
        Interrupted: `should_stop` said so; the state is saved.
        CheckpointError: The folder holds checkpoints of other settings or data.
        ResourceError: The disk is full.
    """
    steps_per_epoch = steps_per_epoch or batches.steps_per_pass
    total = epochs * steps_per_epoch
    generator_optimizer = torch.optim.Adam(generator.parameters(), learning_rate, betas)
    modules: dict[str, nn.Module] = {"generator": generator}
    optimizers: dict[str, torch.optim.Optimizer] = {"generator_optimizer": generator_optimizer}
    adversary = None
    if discriminator is not None and adversarial > 0:
        adversary = Adversary(
            discriminator, torch.optim.Adam(discriminator.parameters(), learning_rate, betas), precision
        )
        modules["discriminator"], optimizers["discriminator_optimizer"] = discriminator, adversary.optimizer

    step, best, seconds, waited = 0, None, 0.0, 0.0
    checkpoint = load_checkpoint(folder / "checkpoints", fingerprint)
    if checkpoint is not None:
        restore(checkpoint.tensors, modules, optimizers)
        step, best, seconds = checkpoint.step, checkpoint.facts["best"], checkpoint.facts["seconds"]
        waited = checkpoint.facts.get("waited", 0.0)
    log = RunLog(folder, step)
    for warning in checkpoint.warnings if checkpoint else ():
        log.write("warning", step=step, message=warning)

    def save() -> None:
        patches = step * batches.batch
        facts = {"fingerprint": fingerprint, "best": best, "seconds": seconds, "waited": waited, "patches": patches}
        save_checkpoint(folder / "checkpoints", step, state(modules, optimizers), facts)

    saved_at = time.monotonic()
    loader = batches.loader(step, total, workers)
    generator.train()
    while step < total:
        began = time.monotonic()
        source, target = (tensor.to(device) for tensor in next(loader))
        waiting = time.monotonic() - began
        torch.manual_seed(_step_seed(seed, step))
        losses = _step(
            generator,
            adversary,
            generator_optimizer,
            source,
            target,
            previous,
            precision=precision,
            adversarial=adversarial,
            l1=l1,
            gdl=gdl,
            reduction=reduction,
        )
        step += 1
        elapsed = time.monotonic() - began
        seconds += elapsed
        waited += waiting
        epoch = -(-step // steps_per_epoch)
        log.write("step", step=step, epoch=epoch, **losses, seconds=elapsed, waiting_s=waiting)
        if progress:
            progress(step, total, f"epoch {epoch}/{epochs}, L1 {losses['l1']:.3f}")

        if step % steps_per_epoch == 0:
            scores = validate(generator)
            is_best = best is None or not scores or scores["psnr"] > best["psnr"]
            log.write("validation", step=step, epoch=epoch, **scores, best=is_best)
            if is_best:
                best = {"epoch": epoch, "step": step, **scores}
                save_checkpoint(
                    folder / "best", step, state({"generator": generator}, {}), {"fingerprint": fingerprint}
                )
        stop = should_stop() and step < total
        if stop or step % steps_per_epoch == 0 or time.monotonic() - saved_at > 60 * checkpoint_minutes:
            save()
            saved_at = time.monotonic()
        if stop:
            log.close()
            raise Interrupted(
                "training was interrupted",
                where=folder,
                found=f"step {step} of {total}, saved",
                do="Run it again to go on.",
            )
    log.close()
    chosen = load_checkpoint(folder / "best", fingerprint)
    assert chosen is not None, "an epoch ended, so there is a best one"
    restore(chosen.tensors, {"generator": generator}, {})
    generator.eval()
    return {
        "epochs": epochs,
        "steps": total,
        "patches": total * batches.batch,
        "seconds": seconds,
        "waiting_share": waited / seconds,
        "best": best,
    }


def _step(
    generator: nn.Module,
    adversary: Adversary | None,
    optimizer: torch.optim.Optimizer,
    source: Tensor,
    target: Tensor,
    previous: nn.Module | None,
    *,
    precision: str,
    adversarial: float,
    l1: float,
    gdl: float,
    reduction: Reduction,
) -> dict[str, float]:
    """Take one step of both networks, and return the losses before it; L1 and GDL are given per voxel."""
    with autocast(precision, source.device):
        if previous is not None:
            with torch.no_grad():
                source = torch.cat([source[:, :1], previous(source[:, :1])], 1)
        synthetic = generator(source).to(target.dtype)
    condition, synthetic = (_centre(tensor, target.shape[2:]) for tensor in (source[:, :1], synthetic))
    losses: dict[str, float] = {}
    if adversary is not None:
        losses["d_loss"] = float(adversary.train(condition, target, synthetic))
    l1_term = l1_loss(synthetic, target, reduction)
    gdl_term = gradient_difference_loss(synthetic, target, reduction)
    loss = l1 * l1_term + gdl * gdl_term
    if adversary is not None:
        adversarial_term = adversary.generator_loss(condition, synthetic)
        losses["adversarial"] = float(adversarial_term.detach())
        loss = loss + adversarial * adversarial_term
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    check_finite(loss, generator)
    optimizer.step()
    voxels = target[0].numel() if reduction == "sum" else 1
    return {
        **losses,
        "g_loss": float(loss.detach()),
        "l1": float(l1_term.detach()) / voxels,
        "gdl": float(gdl_term.detach()) / voxels,
    }


def _centre(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Cut the margin off a (batch, channel, i, j, k) tensor."""
    if tensor.shape[2:] == shape:
        return tensor
    i, j, k = ((n - m) // 2 for n, m in zip(tensor.shape[2:], shape, strict=True))
    return tensor[:, :, i : i + shape[0], j : j + shape[1], k : k + shape[2]]


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**63
