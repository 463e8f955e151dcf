"""Where the time of a patch goes: the sweeps of the fast path, each parted into products and movement of data.

python benchmarks/breakdown.py

PyTorch's profiler, which sees one thread, times the operators of a pass over sixteen patches; the sweeps are those of
`unscanned.models.spectral`. What the profiler itself costs is in the figures: compare shares.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from unscanned.benchmark.floor import floor
from unscanned.benchmark.inference import PATCH, Network, noise
from unscanned.benchmark.machine import machine
from unscanned.memory import keep_freed_memory
from unscanned.models import spectral
from unscanned.models.generators import FastGenerator

BATCH, CALLS = 16, 3

SWEEPS = {
    "_analyse": "transforms along i and j",
    "_multiply": "transforms along k, products with the kernels",
    "_synthesize": "transforms back along j and i",
}
REST = "folding, activations, unfolding"
PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}
MOVES = {"aten::copy_", "aten::complex", "aten::clone", "aten::cat", "aten::stack", "aten::contiguous"}


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the function with its calls marked in the profile."""

    def call(*arguments: Any, **options: Any) -> Any:
        with record_function(name):
            return function(*arguments, **options)

    return call


def sweep_of(event: Any) -> str:
    """Return the sweep that an operator ran in."""
    while event is not None:
        if event.name in SWEEPS.values():
            return str(event.name)
        event = event.cpu_parent
    return REST


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    network = Network("nie", 0, "cpu").build("auto").eval()
    generator = FastGenerator(network)
    x = torch.from_numpy(noise(0, BATCH, 1, PATCH, PATCH, PATCH))
    with torch.inference_mode():
        generator(x)
        for name, label in SWEEPS.items():
            setattr(spectral, name, named(getattr(spectral, name), label))
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(CALLS):
                generator(x)
    spent: dict[str, dict[str, float]] = {label: defaultdict(float) for label in [*SWEEPS.values(), REST]}
    for event in profiler.events():
        kind = "products" if event.name in PRODUCTS else "moves" if event.name in MOVES else "other"
        spent[sweep_of(event)][kind] += event.self_cpu_time_total / 1e6 / CALLS / BATCH
    total = sum(sum(kinds.values()) for kinds in spent.values())
    print("| sweep | products | moving data | other | share |\n| --- | --- | --- | --- | --- |")
    for label, kinds in spent.items():
        cells = " | ".join(f"{1e3 * kinds[kind]:.1f}" for kind in ("products", "moves", "other"))
        print(f"| {label} | {cells} | {sum(kinds.values()) / total:.0%} |")
    products = sum(kinds["products"] for kinds in spent.values())
    here = machine(torch.device("cpu"))
    least = floor(network, PATCH, BATCH, here)
    assert least is not None
    print(
        f"\nms a patch; {1e3 * total:.0f} in all. Products: {least['gigaflop'] / products:.0f} GFLOP/s, "
        f"a large product of this machine now {here['gigaflop_per_second']:.0f}."
    )


if __name__ == "__main__":
    main()
