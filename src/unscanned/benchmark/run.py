"""The benchmark: inference, training and cost against size in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from unscanned.benchmark.floor import floor
from unscanned.benchmark.inference import Network, inference
from unscanned.benchmark.machine import machine
from unscanned.benchmark.size import EDGES, LAYERS, size
from unscanned.benchmark.training import training
from unscanned.benchmark.workload import PATCH, Workload
from unscanned.machine.device import choose_device
from unscanned.machine.memory import keep_freed_memory_in_process
from unscanned.machine.precision import set_process_precision
from unscanned.machine.threads import set_process_threads
from unscanned.models.nie import NieGenerator
from unscanned.progress import Progress
from unscanned.synthesis.reconstruct import default_batch

__all__ = ["benchmark"]


def benchmark(
    workload: Workload = Workload(),  # noqa: B008 - frozen
    *,
    edges: Sequence[int] = EDGES,
    layers: Sequence[tuple[int, int, int, int]] = LAYERS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time a generator and its training against what a user would take instead.

    Args:
        workload: What is timed.
        edges: Of single patches, in voxels, even.
        layers: Kernel, channels, grid and patches of single layers.
        progress: Called with (parts done, all parts, label).

    Returns:
        What `--json` writes: settings, machine, floor, inference, training, size; seconds, ratios to plain PyTorch,
        agreement, MiB.

    Raises:
        SettingsError: No such device.
        ResourceError: The device is not there.
    """
    set_process_threads(workload.threads)
    place = choose_device(workload.device)
    set_process_precision("float32", place)
    keep_freed_memory_in_process()
    network = Network(workload.network, workload.seed, str(place))
    reference = cast(NieGenerator, network.build("auto"))
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("machine", lambda: machine(place)),
        ("floor", lambda: floor(reference, PATCH, default_batch(place), result["machine"])),
        ("inference", lambda: inference(network, workload.edge, workload.repeats)),
        ("training", lambda: training(network, workload.batch, workload.steps)),
        ("size", lambda: size(network, workload, edges, layers)),
    ]
    result: dict[str, Any] = {"settings": workload.model_dump(mode="json")}
    for number, (name, measure) in enumerate(parts):
        if progress:
            progress(number, len(parts), name)
        result[name] = measure()
    if progress:
        progress(len(parts), len(parts), "benchmark")
    return result
