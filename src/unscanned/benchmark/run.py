"""The benchmark: inference, training and cost against size in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from unscanned.benchmark.floor import floor
from unscanned.benchmark.inference import PATCH, Network, inference
from unscanned.benchmark.machine import machine
from unscanned.benchmark.size import EDGES, LAYERS, size
from unscanned.benchmark.training import training
from unscanned.errors import SettingsError
from unscanned.machine.device import choose_device
from unscanned.machine.memory import keep_freed_memory_in_process
from unscanned.machine.precision import set_process_precision
from unscanned.machine.threads import set_process_threads
from unscanned.models.nie import NieGenerator
from unscanned.progress import Progress
from unscanned.synthesis.reconstruct import default_batch

__all__ = ["NETWORKS", "benchmark"]

NETWORKS = ("nie", "small")
"Pairs of a generator and a discriminator of one name."


def benchmark(
    *,
    network: str = "nie",
    device: str = "cpu",
    threads: int | None = None,
    edge: int = 48,
    repeats: int = 3,
    batch: int = 7,
    steps: int = 1,
    patches: Sequence[int] = (1, 8, 64),
    volumes: Sequence[int] = (64, 96, 128),
    edges: Sequence[int] = EDGES,
    layers: Sequence[tuple[int, int, int, int]] = LAYERS,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time a generator and its training against what a user would take instead.

    Args:
        network: Name of the generator and of the discriminator: nie or small.
        device: cpu, cuda or cuda:N.
        threads: Of the CPU; None takes what PyTorch takes.
        edge: Of the cubic volume whose stride-8 patches are mapped; 48 has 27 of them.
        repeats: Rounds of inference and of the cost against size.
        batch: Patches of a training step.
        steps: Rounds of training; a plain step takes about a minute on two cores.
        patches: Numbers of patches for mode patches.
        volumes: Edges of the cubic volumes for mode volume, in voxels.
        edges: Of the single patches, in voxels, even.
        layers: Kernel, channels, grid and patches of the single layers.
        seed: Of the weights and the input, which are noise: the time does not depend on them.
        progress: Called with (parts done, all parts, label).

    Returns:
        What `--json` writes: settings, machine, floor, inference, training, size; seconds, ratios to plain PyTorch,
        agreement, MiB.

    Raises:
        SettingsError: A volume smaller than a patch, nothing to time, or no such network.
        ResourceError: The device is not there.
    """
    if network not in NETWORKS:
        raise SettingsError("no such network", where="network", found=network, expected=" or ".join(NETWORKS))
    numbers = {"repeats": (repeats,), "batch": (batch,), "steps": (steps,), "patches": patches, "volumes": volumes}
    for name, values in numbers.items():
        for value in values:
            if value < 1:
                raise SettingsError("there is nothing to time", where=name, found=value, expected="at least 1")
    if edge < PATCH:
        raise SettingsError(
            "the volume is smaller than a patch", where="edge", found=edge, expected=f"at least {PATCH}"
        )
    set_process_threads(threads)
    place = choose_device(device)
    set_process_precision("float32", place)
    keep_freed_memory_in_process()
    generator = Network(network, seed, str(place))
    reference = cast(NieGenerator, generator.build("auto"))
    parts: list[tuple[str, Callable[[], Any]]] = [
        ("machine", lambda: machine(place)),
        ("floor", lambda: floor(reference, PATCH, default_batch(place), result["machine"])),
        ("inference", lambda: inference(generator, edge, repeats)),
        ("training", lambda: training(generator, batch, steps)),
        ("size", lambda: size(generator, repeats, patches, volumes, edges, layers)),
    ]
    settings = {"network": network, "device": device, "edge": edge, "repeats": repeats, "batch": batch, "steps": steps}
    result: dict[str, Any] = {
        "settings": {**settings, "patches": list(patches), "volumes": list(volumes), "seed": seed}
    }
    for number, (name, measure) in enumerate(parts):
        if progress:
            progress(number, len(parts), name)
        result[name] = measure()
    if progress:
        progress(len(parts), len(parts), "benchmark")
    return result
