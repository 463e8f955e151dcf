"""What each part of the fast path brings: seconds a patch with the parts added one after another.

python studies/ablations.py --rounds 5

Each variant runs in a process of its own, since what the C library does with freed memory holds for a whole process.
The variants take turns, and the medians over the rounds are printed as Markdown.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

import unscanned.machine.threads
from unscanned.benchmark.inference import PATCH, Network, noise
from unscanned.benchmark.rounds import timed
from unscanned.machine.memory import keep_freed_memory_in_process
from unscanned.machine.threads import set_process_threads
from unscanned.models.generators import FastGenerator

VARIANTS: dict[str, tuple[Any, ...]] = {
    "plain Conv3d": ("plain", False, False, False, 1),
    "plain Conv3d, 8 patches at a time": ("plain", False, False, False, 8),
    "plain Conv3d, torch.compile": ("plain", False, False, False, 1, True),
    "folded by parity, in the frequency domain": ("auto", False, False, False, 1),
    "and pieces shared among the threads": ("auto", True, False, False, 1),
    "and kernels' spectra kept, batch norm absorbed": ("auto", True, True, False, 1),
    "and freed memory kept": ("auto", True, True, True, 1),
    "and 4 patches at a time": ("auto", True, True, True, 4),
    "and 16 patches at a time": ("auto", True, True, True, 16),
    "16 patches at a time, pieces not shared": ("auto", False, True, True, 16),
}
"Convolution, pieces shared, frozen, memory kept, patches at a time, compiled."

CALLS = 2


def seconds(
    threads: int | None,
    convolution: str,
    shares: bool,
    is_frozen: bool,
    keeps_memory: bool,
    batch: int,
    is_compiled: bool = False,
) -> float:
    """Return the seconds a patch that calls take after a first one."""
    set_process_threads(threads)
    if not shares:
        unscanned.machine.threads.LARGEST = 1
    if keeps_memory:
        keep_freed_memory_in_process()
    generator = Network("nie", 0, "cpu").build(convolution).eval()
    run: Callable[[Tensor], Tensor] = FastGenerator(generator) if is_frozen else generator
    if is_compiled:
        run = torch.compile(generator)
    x = torch.from_numpy(noise(0, batch, 1, PATCH, PATCH, PATCH))
    with torch.inference_mode():
        run(x)
        return timed(lambda: [run(x) for _ in range(CALLS)])["seconds"] / CALLS / batch


def main() -> None:
    """Time the variants and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name, variant in VARIANTS.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                times[name].append(pool.submit(seconds, options.threads, *variant).result())
    base = times["plain Conv3d"]
    print("| with | s a patch | ratio | range |\n| --- | --- | --- | --- |")
    for name, own in times.items():
        ratios = [b / o for b, o in zip(base, own, strict=True)]
        print(
            f"| {name} | {statistics.median(own):.3f} | {statistics.median(ratios):.1f} "
            f"| {min(ratios):.1f} to {max(ratios):.1f} |"
        )


if __name__ == "__main__":
    main()
