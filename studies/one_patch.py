"""What a training step of one patch takes on one thread, with the fast convolutions and without, beside one of two.

python studies/one_patch.py 32 48 64

Steps of the preset strong on noise. The ways take turns in one process; the first round warms up, and the median of
processor time of the others is told.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from unscanned.machine.memory import keep_freed_memory_in_process
from unscanned.machine.threads import set_process_threads
from unscanned.settings import resolve
from unscanned.training.stage import build_step
from unscanned.training.step import Step

WAYS = (("plain", 1), ("auto", 1), ("auto", 2))
"`generator.convolution` and `training.batch`."


def step_of(edge: int, convolution: str) -> Step:
    """Return a fresh step for patches of that edge."""
    tables = {"training": {"patch": edge}, "generator": {"convolution": convolution}}
    return build_step(resolve("strong", overrides=tables), 1, "cpu")


def measured(edge: int, rounds: int) -> list[float]:
    """Return the median seconds of a step for each of `WAYS`."""
    steps = {way: step_of(edge, way[0]) for way in WAYS}
    source, target = torch.randn(2, 2, 1, edge, edge, edge)
    seconds: dict[tuple[str, int], list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        for way, step in steps.items():
            began = time.process_time()
            step(source[: way[1]], target[: way[1]])
            seconds[way].append(time.process_time() - began)
    return [statistics.median(taken[1:]) for taken in seconds.values()]


def main() -> None:
    """Print a row of a Markdown table for each edge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edges", type=int, nargs="+", metavar="EDGE", help="of the patches, in voxels")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    set_process_threads(1)
    keep_freed_memory_in_process()
    print("| patch | one patch, `plain` | one patch, `auto` | ratio | two patches |\n| --- | --- | --- | --- | --- |")
    for edge in options.edges:
        plain, fast, two = measured(edge, options.rounds)
        print(f"| {edge}³ | {plain:.2f} s | {fast:.2f} s | {plain / fast:.1f} | {two:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
