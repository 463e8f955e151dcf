"""What a run will cost: patches, steps, disk, memory and hours on this machine, from a few real steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from unscanned.datasets.pairs import Pair, select_pairs
from unscanned.datasets.split import split_subjects
from unscanned.errors import DatasetError, UnscannedError
from unscanned.machine.memory import high_water_mib, is_out_of_memory, keep_freed_memory_in_process
from unscanned.machine.precision import autocast, set_process_precision
from unscanned.machine.threads import set_process_threads
from unscanned.settings import Settings, to_dict
from unscanned.synthesis.reconstruct import default_batch, reconstruct
from unscanned.training.batches import no_patches, too_small
from unscanned.training.run import check_settings, warn_of_settings
from unscanned.training.stage import build_step
from unscanned.volumes.grid import frame
from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import read_volume
from unscanned.volumes.patches import cut, starts

__all__ = ["MEASURE_SECONDS", "Cost", "duration", "estimate_cost"]

MEASURE_SECONDS = 20.0
"What the measurement of a step may take, about: one step of one patch is always taken."

_BYTES_A_VOXEL = {"float32": 9, "float16": 5}
"Of a prepared case by `prepare.precision`: source and target, and the head."
_CHECKPOINTS = 3
"Whole states on disk at a time: two in a stage's checkpoints, and the best generator, which is less than one."
_MAPPED = 4
"Patches that are mapped to time synthesis."
_UNMEASURED = "time and memory were not measured"


@dataclass(frozen=True)
class Cost:
    """What one arm costs on this machine.

    Attributes:
        subjects: Those that train, validate and test.
        patches: In one pass over the training cases.
        steps: Of all stages and folds.
        disk_bytes: Prepared volumes, context volumes and checkpoints.
        memory_bytes: Of the process while it trains, of the device on CUDA; None where it was not measured.
        seconds: Of training, validation and context volumes; None where it was not measured.
        synthesis_seconds: Of the volumes of the test cases; None where it was not measured.
        step_seconds: Of one step; None where it was not measured.
        measured: How the time was found, in words.
        device: Where.
    """

    subjects: Mapping[str, int]
    patches: int
    steps: int
    disk_bytes: int
    memory_bytes: int | None
    seconds: float | None
    synthesis_seconds: float | None
    step_seconds: float | None
    measured: str
    device: str

    def lines(self) -> list[str]:
        """Return it in words, a line for each thing."""
        parts = ", ".join(f"{count} {part}" for part, count in self.subjects.items())
        told = [
            f"subjects  {parts}",
            f"patches   {self.patches:,} in a pass over the training cases",
            f"steps     {self.steps:,} in all",
            f"disk      {_bytes(self.disk_bytes)}",
        ]
        if self.memory_bytes is not None:
            told.append(f"memory    {_bytes(self.memory_bytes)}")
        if self.seconds is not None and self.step_seconds is not None and self.synthesis_seconds is not None:
            told.append(
                f"time      {duration(self.seconds)} on this machine ({self.device}), {self.step_seconds:.2g} s a step"
            )
            if self.synthesis_seconds > 0:
                told.append(f"          and {duration(self.synthesis_seconds)} for the volumes of the test subjects")
        return [*told, f"          {self.measured}"]


@dataclass(frozen=True)
class _Pace:
    """What was measured: seconds of a step and of a mapped patch, memory of a step in bytes."""

    step_seconds: float
    patch_seconds: float
    memory_bytes: int | None
    measured: str


def estimate_cost(
    dataset: str | Path, settings: Settings, *, seconds: float = MEASURE_SECONDS, has_first_stage: bool = False
) -> Cost:
    """Return what it costs to train an arm on a dataset, from the names of its files, one scan and a few steps.

    The grid, the number of patches and the disk follow from the settings. How many patches have enough of a head
    (`training.min_head`) is that of the first training case.

    Args:
        dataset: Folder or CSV of paired scans.
        settings: What to train.
        seconds: About how long to measure; 0 does not measure, and leaves time and memory out.
        has_first_stage: Whether a chain takes its first stage from another arm instead of training it.

    Raises:
        DatasetError: The dataset is not there, has no pair, or too few subjects for the split.
        VolumeError: The first training scan cannot be read.
        SettingsError: As for `check_settings`.
        ResourceError: As for `check_settings`.
    """
    device = check_settings(settings)
    warn_of_settings(settings)
    found = select_pairs(dataset, **to_dict(settings.data))
    split = split_subjects(found.pairs, **to_dict(settings.split))
    cases = {part: [pair for pair in found.pairs if pair.subject in split[part]] for part in split}
    if not cases["train"]:
        raise DatasetError("no training subject", where=dataset, expected="1 or more", do="Set split.train.")
    per_case = _patches(cases["train"], settings)
    training, shape = settings.training, settings.prepare.shape
    patches = per_case * len(cases["train"])
    trainings = _trainings(settings, has_first_stage)
    epoch = [training.steps_per_epoch or math.ceil(share * patches / training.batch) for share in trainings]
    steps = training.epochs * sum(epoch)
    pace = _measure(settings, device, seconds) if seconds > 0 else _UNMEASURED
    counted = {part: len(subjects) for part, subjects in split.items()}
    voxels, parameters = math.prod(shape), _parameters(settings)
    prepared = len(cases["train"]) + len(cases["validation"])
    contexts = (settings.context.stages - 1) if settings.context.input == "volume" else 0
    disk = prepared * voxels * (
        _BYTES_A_VOXEL[settings.prepare.precision] + 4 * contexts
    ) + _CHECKPOINTS * 12 * parameters * len(trainings)
    if isinstance(pace, str):
        return Cost(counted, patches, steps, disk, None, None, None, None, pace, str(device))
    validated = len(cases["validation"]) * _mapped(settings, training.validation_stride) * training.epochs
    mapped = validated * len(trainings) + contexts * prepared * _mapped(settings, settings.context.stride)
    total = steps * pace.step_seconds + mapped * pace.patch_seconds
    synthesis = settings.synthesis
    made = (1 + synthesis.mirror) * settings.context.stages * len(cases["test"]) * _mapped(settings, synthesis.stride)
    return Cost(
        counted,
        patches,
        steps,
        disk,
        pace.memory_bytes,
        total,
        made * pace.patch_seconds,
        pace.step_seconds,
        pace.measured,
        str(device),
    )


def _patches(pairs: list[Pair], settings: Settings) -> int:
    """Return the training patches of a case, of the first where that depends on the head."""
    training, shape = settings.training, settings.prepare.shape
    if min(shape) < training.patch:
        raise too_small("prepare.shape", shape, training.patch)
    places = starts(shape, training.patch, training.patch)
    if training.min_head <= 0:
        return len(places)
    volume = read_volume(pairs[0].source)
    head = head_mask(volume.array, volume.affine)
    prepare = settings.prepare
    where = frame(volume, shape=shape, spacing_mm=prepare.spacing_mm, head=head, averages=prepare.averages)
    inside = where.forward(head.astype(np.float32)) > 0.5
    count = sum(bool(cut(inside, start, training.patch).mean() >= training.min_head) for start in places)
    if count == 0:
        raise no_patches(training.min_head)
    return count


def _trainings(settings: Settings, has_first_stage: bool) -> list[float]:
    """Return the share of the training cases that each training of a chain sees, folds included."""
    context = settings.context
    shares = [1.0] * (context.stages - (1 if has_first_stage and context.stages > 1 else 0))
    if context.stages > 1 and context.input == "volume" and context.training_input == "out_of_fold":
        shares += [1 - 1 / context.folds] * context.folds * (context.stages - 1)
    return shares


def _mapped(settings: Settings, stride: int) -> int:
    """Return the patches that are mapped to make a volume; in mode volume about as many as cover it once."""
    patch = settings.training.patch
    return len(starts(settings.prepare.shape, patch, patch if settings.synthesis.mode == "volume" else stride))


def _parameters(settings: Settings) -> int:
    networks = build_step(settings, settings.context.stages, "cpu").networks.values()
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def _measure(settings: Settings, device: torch.device, seconds: float) -> _Pace | str:
    """Take a few real steps on noise; where memory does not hold them, return that in words."""
    training = settings.training
    set_process_threads(training.threads)
    set_process_precision(training.precision, device)
    keep_freed_memory_in_process()
    random_state = torch.get_rng_state()
    try:
        return _take_steps(settings, device, seconds)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, UnscannedError) or not is_out_of_memory(error):
            raise
        return (
            f"time and memory were not measured: {device} has too little memory for a step of 1 to "
            f"{training.batch} patches of {training.patch + 2 * training.margin} voxels"
        )
    finally:
        torch.set_rng_state(random_state)


def _take_steps(settings: Settings, device: torch.device, seconds: float) -> _Pace:
    training = settings.training
    began, before = time.perf_counter(), high_water_mib()
    step = build_step(settings, 1, device)

    def timed(size: int) -> float:
        edge = training.patch + 2 * training.margin
        source, target = (torch.randn(size, 1, n, n, n, device=device) for n in (edge, training.patch))
        start = time.perf_counter()
        step(source, target)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first = timed(1)
    one = min(first, timed(1)) if first < seconds / 3 else first
    left = seconds - (time.perf_counter() - began)
    after_one = _used_mib(device)
    taken, size = one * training.batch, 1
    if training.batch == 1 or one * training.batch < left / 2:
        size = training.batch
        taken = timed(size) if size > 1 else one
        if taken < (seconds - (time.perf_counter() - began)) / 2:
            taken = min(taken, timed(size))
    used = _used_mib(device)
    memory = None
    if used is not None:
        base = 0.0 if device.type == "cuda" else before or 0.0
        memory = used if size == training.batch or after_one is None else base + (used - base) * training.batch
    patch = training.patch
    block = np.random.default_rng(0).standard_normal((1, patch * _MAPPED, patch, patch)).astype(np.float32)
    step.generator.eval()
    start = time.perf_counter()
    with torch.no_grad(), autocast(settings.synthesis.precision, device):
        reconstruct(block, step.generator, patch=patch, stride=patch, batch=default_batch(device, patch), device=device)
    mapped = (time.perf_counter() - start) / _MAPPED
    how = f"measured in {time.perf_counter() - began:.0f} s: " + (
        f"a step of {size} patches" if size == training.batch else f"a step of 1 patch, times {training.batch}"
    )
    return _Pace(taken, mapped, None if memory is None else int(memory * 2**20), how)


def _used_mib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return high_water_mib()


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Return a time in minutes, hours or days.

    Example:
        >>> duration(90), duration(7200)
        ('2 min', '2 hours')
    """
    if seconds < 5400:
        return f"{max(1, round(seconds / 60))} min"
    days = f" ({seconds / 86400:.0f} days)" if seconds > 3 * 86400 else ""
    return f"{seconds / 3600:,.0f} hours{days}"
