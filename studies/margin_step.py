"""What `training.margin` costs: seconds and peak memory of a training step of both full networks on the CPU.

python studies/margin_step.py 0 8 29

Each margin has a process of its own, whose imports are not counted. The step is timed after a first one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from unscanned.benchmark.inference import PATCH, Network, noise
from unscanned.benchmark.training import step_of
from unscanned.benchmark.worker import Worker
from unscanned.machine.threads import set_process_threads


def prepared(margin: int, batch: int) -> Callable[[], Any]:
    """Return a step on noise: patches of the source with that much around them, bare ones of the target."""
    edge = PATCH + 2 * margin
    source = torch.from_numpy(noise(1, batch, 1, edge, edge, edge))
    target = torch.from_numpy(noise(2, batch, 1, PATCH, PATCH, PATCH))
    return partial(step_of(Network("nie", 0, "cpu"), "auto", "float32"), source, target)


def main() -> None:
    """Take the steps, and print a row of a Markdown table for each margin."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("margins", type=int, nargs="+", metavar="MARGIN", help="voxels on each side")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    set_process_threads(options.threads)
    print("| margin | times the voxels | s a step | GiB |\n| --- | --- | --- | --- |")
    for margin in options.margins:
        with Worker(prepared, margin, options.batch) as worker:
            worker.run()
            seconds, peak = worker.timed()["seconds"], worker.peak_mib()
        gib = "?" if peak is None else f"{peak / 1024:.1f}"
        print(f"| {margin} | {((PATCH + 2 * margin) / PATCH) ** 3:.1f} | {seconds:.1f} | {gib} |", flush=True)


if __name__ == "__main__":
    main()
