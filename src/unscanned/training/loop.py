"""The training of one generator against its discriminator, to be read from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unscanned.display import warn
from unscanned.errors import CheckpointError, Interrupted, ResourceError, TrainingError, UnscannedError
from unscanned.machine import ranks
from unscanned.machine.memory import is_out_of_memory, largest_that_fits
from unscanned.progress import Progress, signal_of
from unscanned.settings import Training
from unscanned.training.batches import PatchBatches
from unscanned.training.feed import Feed
from unscanned.training.health import AdversaryCollapsed, check_collapse, count_signs, sign_warnings, unwatched
from unscanned.training.log import RunLog
from unscanned.training.optimizers import rate, set_rate
from unscanned.training.state import TrainingState
from unscanned.training.step import Step

__all__ = ["train_stage"]


def train_stage(
    folder: Path,
    take_step: Step,
    batches: PatchBatches,
    validate: Callable[[nn.Module], dict[str, float]],
    settings: Training,
    *,
    device: torch.device | str = "cpu",
    identity: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    validates: bool = True,
) -> dict[str, Any]:
    """Train a generator, keep the best epoch, and go on where an interrupted run was.

    Each step trains the discriminator on one acquired and one synthetic batch, and the generator (the reference,
    section IV). A step depends on the state before it and on (seed, step) alone, so a resumed run equals an
    uninterrupted one bit for bit on one device with one number of threads. Where the batches have a margin, the
    generator sees it, and the losses and the discriminator see the centre alone.

    A loss or gradient that is not finite is never stepped on: the stage goes back to the beginning of the epoch and
    takes the patches in another order, once; the second time it goes on from there without its adversary, if it may.

    Several ranks, one a device, take each step together; each decision is the same on all of them.

    Args:
        folder: Gets log.jsonl, tensorboard/, checkpoints/ and best/.
        take_step: Fresh networks and optimizers; its generator holds the best epoch's weights at the end.
        batches: The batch of each step.
        validate: Scores the generator, or the average of its weights, after each epoch; `psnr`, in dB, chooses the
            best, and `health.SIGNS` are watched. Without validation subjects it returns an empty dict, and the last
            epoch is kept. May raise `Interrupted`.
        settings: How long, the seed of what is random within a step, and the processes that cut patches.
        device: Where the networks are.
        identity: Settings and data, table by table; a checkpoint with another one is refused.
        progress: Called with (steps taken, all steps, label).
        should_stop: Asked after each step; when true, a checkpoint is written and the training stops.
        validates: Whether there are validation subjects, on which alone a collapse shows.

    Returns:
        The best epoch, its step and its scores, the seconds that the steps took, and the share of them that was spent
        waiting for patches.

    Raises:
        TrainingError: A loss or gradient is not finite for the second time, without an adversary to give up, or the
            generator has collapsed; the best epoch is in best/.
        Interrupted: `should_stop` said so; the state is saved.
        CheckpointError: The folder holds checkpoints of other settings or data, or of more epochs.
        DatasetError: Prepared scans can no longer be read; the state is saved.
        ResourceError: The disk is full, memory is short, or a loader worker was lost.
    """
    steps_per_epoch = settings.steps_per_epoch or batches.steps_per_pass
    total = settings.epochs * steps_per_epoch
    state = TrainingState(folder, take_step.networks, take_step.optimizers, identity or {}, device)
    notes = state.load()
    if notes is None:
        state.save(keep=0)
    if state.step > total:
        raise CheckpointError(
            "the run is beyond the last epoch",
            where=folder,
            found=f"step {state.step}",
            expected=f"at most {total} ({settings.epochs} epochs of {steps_per_epoch} steps)",
            do="Give training.epochs as many as it has had or more, or choose another folder.",
        )
    record, log = state.record, _log(state)
    if notes is None:
        notes, late = _never(take_step, settings, total), take_step.adversarial_after
        if take_step.adversary is not None and late < total:
            with_it = settings.epochs - late // steps_per_epoch
            notes += unwatched(with_it, total, validates=validates, goes_on=take_step.goes_on)
    for note in notes:
        _warn(log, state.step, note)
    feed = _feed(batches, state, total, settings.workers)
    saved_at = time.monotonic()
    take_step.generator.train()
    while True:
        _admit(take_step, state)
        epoch_start = state.step - state.step % steps_per_epoch
        if state.step == epoch_start > record.validated:
            if progress:
                progress(state.step, total, f"epoch {epoch_start // steps_per_epoch} of {settings.epochs}, validation")
            try:
                _validate(state, epoch_start // steps_per_epoch, validate, log)
            except Interrupted as error:
                log.close()
                state.save(keep=state.step)
                (stop,) = ranks.most(signal_of(should_stop))
                raise _interrupted(state, total, stop) from error
            saved_at = time.monotonic()
        try:
            check_collapse(record.scores, record.signs, state.step, goes_on=_goes_on(take_step, state))
        except AdversaryCollapsed as error:
            record.adversary_left, record.signs = state.step, {}
            state.save(keep=epoch_start)
            ends = "its adversary collapsed by its end" if state.step == total else "goes on without its adversary"
            _warn(log, state.step, f"{ends}: {error}")
            _admit(take_step, state)
        if state.step == total:
            break

        began = time.monotonic()
        batch, failed = _next(feed)
        if failed is not None:
            state.save(keep=epoch_start)
            (stop,) = ranks.most(signal_of(should_stop))
            if stop:
                raise _interrupted(state, total, stop) from failed
            raise failed.at(_place(batches, state)) from failed
        waiting = time.monotonic() - began
        set_rate(state.optimizers.values(), rate(settings, state.step, total))
        torch.manual_seed(_step_seed(settings.seed, state.step, ranks.number()))
        try:
            losses = take_step(*(part.to(device) for part in batch))
        except TrainingError as error:
            failure = error.at(_place(batches, state))
            log.close()
            feed.close()
            change = _roll_back(state, epoch_start, failure, goes_on=_goes_on(take_step, state))
            record, log = state.record, _log(state)
            _warn(log, state.step, f"went back to step {state.step} and {change}. {failure}")
            feed = _feed(batches, state, total, settings.workers)
            continue
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            losses = None
        if losses is None:  # outside the handler, whose traceback would hold on to the memory
            raise _too_large(take_step, batch, device)

        state.step += 1
        if take_step.average is not None:
            take_step.average.update(state.step)
        elapsed = time.monotonic() - began
        record.seconds += elapsed
        record.waited += waiting
        epoch = -(-state.step // steps_per_epoch)
        log.write("step", step=state.step, epoch=epoch, **losses, seconds=elapsed, waiting_s=waiting)
        if progress:
            progress(state.step, total, f"epoch {epoch} of {settings.epochs}, L1 {losses['l1']:.3f}")
        minutes = (time.monotonic() - saved_at) / 60
        stop, is_due = ranks.most(signal_of(should_stop), minutes > settings.checkpoint_minutes)
        if stop or is_due:
            state.save(keep=state.step - state.step % steps_per_epoch)
            saved_at = time.monotonic()
        if stop:
            log.close()
            raise _interrupted(state, total, stop)
    log.close()
    state.load_best()
    return {
        "epochs": settings.epochs,
        "steps": total,
        "patches": total * batches.batch,
        "seconds": record.seconds,
        "waiting_share": record.waited / record.seconds,
        "best": record.best,
    }


def _admit(take_step: Step, state: TrainingState) -> None:
    """Let the adversary take part in the next step if it has joined and was not given up, whatever came before."""
    if take_step.adversary is not None:
        is_in = state.step >= take_step.adversarial_after and state.record.adversary_left is None
        take_step.adversary.takes_part = is_in


def _never(take_step: Step, settings: Training, total: int) -> list[str]:
    """Return in words what of the settings the training is too short for."""
    late = take_step.adversarial_after if take_step.adversary is not None else 0
    begins = {
        "training.warmup_steps": (settings.warmup_steps, "the learning rate never reaches its full value"),
        "loss.adversarial_after": (late, "the adversary never joins"),
    }
    return [f"{name} = {step} of {total} steps: {words}" for name, (step, words) in begins.items() if step >= total > 0]


def _goes_on(take_step: Step, state: TrainingState) -> bool:
    """Whether a collapse would be the adversary's, which the training can do without."""
    return take_step.goes_on and take_step.adversary is not None and take_step.adversary.takes_part


def _log(state: TrainingState) -> RunLog:
    return RunLog(state.folder, state.step, state.record.validated, writes=ranks.number() == 0)


def _next(feed: Feed) -> tuple[tuple[Tensor, ...], UnscannedError | None]:
    """Return the next batch, and the error of a rank that could not cut its part."""
    batch: tuple[Tensor, ...] = ()
    failed = None
    try:
        batch = next(feed)
    except UnscannedError as error:
        failed = error
    return batch, ranks.each_tells(failed)


def _feed(batches: PatchBatches, state: TrainingState, total: int, workers: int) -> Feed:
    """Return the batches from here on, in the order that the record asks for."""
    batches.order = 0 if state.record.rolled_back_from is None else 1
    return batches.loader(state.step, total, workers)


def _validate(state: TrainingState, epoch: int, validate: Callable[[nn.Module], dict[str, float]], log: RunLog) -> None:
    """Score the generator, keep it if it is the best so far, and save."""
    record = state.record
    scores = validate(state.chosen)
    is_best = record.best is None or not scores or scores["psnr"] > record.best["psnr"]
    log.write("validation", step=state.step, epoch=epoch, **scores, best=is_best)
    record.validated, record.scores, record.signs = state.step, scores, count_signs(scores, record.signs)
    for warning in sign_warnings(scores, record.signs):
        _warn(log, state.step, warning)
    if is_best:
        record.best = {"epoch": epoch, "step": state.step, **scores}
        state.save_best()
    state.save(keep=state.step)


def _roll_back(state: TrainingState, epoch_start: int, error: UnscannedError, *, goes_on: bool) -> str:
    """Go back to the beginning of the epoch, where every run of these settings comes by.

    The first time the patches come in another order, the second time the adversary is given up if it may be, and
    otherwise the error is raised.

    Returns:
        What is different from there, in words.
    """
    failed, had_rolled_back = state.step, state.record.rolled_back_from is not None
    if (had_rolled_back and not goes_on) or state.load(last=epoch_start) is None:
        raise error
    if had_rolled_back:
        state.record.adversary_left, state.record.signs = state.step, {}
    else:
        state.record.rolled_back_from = failed
    state.save(keep=state.step)
    return "goes on without its adversary" if had_rolled_back else "another order of the patches"


def _place(batches: PatchBatches, state: TrainingState) -> str:
    """Return the next step and its patches in words."""
    return f"step {state.step}, {batches.describe(state.step)}"


def _too_large(take_step: Step, batch: tuple[Tensor, ...], device: torch.device | str) -> ResourceError:
    """Return what to say of a batch that memory does not hold. The networks are of no use after this."""
    source, size = batch[0], len(batch[0])
    fits = 0
    if ranks.count() == 1:  # the others would wait for what this one tries
        fits = largest_that_fits(lambda n: take_step(*(part[:n].to(device) for part in batch)), size // 2)
    parts = take_step.parts
    offers = torch.device(device).type == "cuda" and not take_step.offload
    smaller = " training.offload = true takes less of a GPU's memory, with the same result." if offers else ""
    smaller += f" training.accumulate = {2 * parts} takes them in smaller parts." if 2 * parts <= size else ""
    return ResourceError(
        "memory does not hold a training step",
        where=device,
        found=f"training.batch = {size}, patches of {source.shape[-1]} voxels with what is around them"
        + (f", in {parts} parts" if parts > 1 else "")
        + (f", on each of {ranks.count()} devices" if ranks.count() > 1 else ""),
        expected=f"training.batch = {fits}, which fits" if fits else "a smaller training.patch",
        do="The last checkpoint is kept. A smaller batch changes the result, so it is never chosen for you." + smaller,
    )


def _interrupted(state: TrainingState, total: int, stop: int) -> Interrupted:
    error = Interrupted(
        "training was interrupted",
        where=state.folder,
        found=f"step {state.step} of {total}, saved",
        do="Run it again to go on.",
    )
    if stop > 1:  # the signal that came to one rank is the exit code of all
        error.exit_code = 128 + stop
    return error


def _warn(log: RunLog, step: int, message: str) -> None:
    log.write("warning", step=step, message=message)
    if log.writes:
        warn(f"{log.path.parent}: {message}")


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of what a network draws within a step; no two ranks draw the same for their patches."""
    return (seed * 1_000_003 + step + rank * 2**48) % 2**63
