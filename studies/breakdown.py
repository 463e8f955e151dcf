"""Where the time goes: of a patch, the sweeps of the fast path; of a training step, its parts.

python studies/breakdown.py
python studies/breakdown.py --training

PyTorch's profiler, which sees one thread, times the operators of a pass over sixteen patches, parted into products and
movement of data; the sweeps are those of `unscanned.models.spectral`. What the profiler itself costs is in the figures:
compare shares. A step of seven patches, on one thread too, is timed function by function: the profiler takes memory
that the next step would find free, and new pages are dear.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from unscanned.benchmark.floor import floor
from unscanned.benchmark.inference import PATCH, Network, noise
from unscanned.benchmark.machine import machine
from unscanned.benchmark.training import step_of
from unscanned.machine.memory import keep_freed_memory_in_process
from unscanned.models import folding, spectral
from unscanned.models.generators import FastGenerator
from unscanned.models.nie import NieGenerator
from unscanned.models.nie_discriminator import NieDiscriminator

BATCH, CALLS = 16, 3
STEP_BATCH, WARM_UPS = 7, 4

SWEEPS = {
    "_analyse": "transforms along i and j",
    "_multiply": "transforms along k, products with the kernels",
    "_synthesize": "transforms back along j and i",
}
REST = "folding, activations, unfolding"
PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}
MOVES = {"aten::copy_", "aten::complex", "aten::clone", "aten::cat", "aten::stack", "aten::contiguous"}


PARTS = {
    "generator: convolutions, forward": (spectral._SpectralConvolution, "forward"),
    "generator: convolutions, backward": (spectral._SpectralConvolution, "backward"),
    "generator: batch norm and LeakyReLU, forward": (folding._NormActivation, "forward"),
    "generator: batch norm and LeakyReLU, backward": (folding._NormActivation, "backward"),
    "discriminator, three times forward": (NieDiscriminator, "forward"),
    "both optimizers": (torch.optim.Adam, "step"),
}
OTHER = "discriminator, three times backward; losses, folding"


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


def timed_parts() -> dict[str, float]:
    """Let every function of `PARTS` add its seconds to what is returned."""
    spent = dict.fromkeys(PARTS, 0.0)
    for label, (owner, name) in PARTS.items():
        function = getattr(owner, name)

        def call(*arguments: Any, label: str = label, function: Any = function, **options: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **options)
            spent[label] += time.perf_counter() - began
            return result

        is_method = owner is not spectral._SpectralConvolution and owner is not folding._NormActivation
        setattr(owner, name, call if is_method else staticmethod(call))
    return spent


def training() -> None:
    """Time the parts of a step of both networks, and print them and the operations."""
    spent = timed_parts()
    step = step_of(Network("nie", 0, "cpu"), "auto", "float32")
    source, target = (torch.from_numpy(noise(seed, STEP_BATCH, 1, PATCH, PATCH, PATCH)) for seed in (1, 2))
    with FlopCounterMode(display=False) as counter:
        step(source, target)
    for _ in range(WARM_UPS):
        step(source, target)
    spent.update(dict.fromkeys(PARTS, 0.0))
    began = time.perf_counter()
    for _ in range(CALLS):
        step(source, target)
    total = (time.perf_counter() - began) / CALLS
    shares = {label: seconds / CALLS for label, seconds in spent.items()}
    shares[OTHER] = total - sum(shares.values())
    print("| part | s | share |\n| --- | --- | --- |")
    for label, seconds in shares.items():
        print(f"| {label} | {seconds:.2f} | {seconds / total:.0%} |")
    counts = {str(name): value / 1e9 for name, value in counter.get_flop_counts()["Global"].items()}
    # PyTorch counts a complex product as it counts a real one: two operations a pair instead of eight
    products = 4 * sum(value for name, value in counts.items() if name in ("aten.mm", "aten.bmm", "aten.baddbmm"))
    direct = sum(value for name, value in counts.items() if "conv" in name)
    print(
        f"\n{total:.2f} s in all. Generator: {products:.0f} GFLOP; discriminator: {direct:.0f} GFLOP; "
        f"a large product of this machine now {machine(torch.device('cpu'))['gigaflop_per_second']:.0f} GFLOP/s."
    )


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--training", action="store_true", help="of a training step instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory_in_process()
    if options.training:
        training()
        return
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
    least = floor(cast(NieGenerator, network), PATCH, BATCH, here)
    print(
        f"\nms a patch; {1e3 * total:.0f} in all. Products: {least['gigaflop'] / products:.0f} GFLOP/s, "
        f"a large product of this machine now {here['gigaflop_per_second']:.0f}."
    )


if __name__ == "__main__":
    main()
