"""What each precision costs on a device: a training step of seven patches, a volume at stride 8, and mode volume.

python studies/precisions.py cuda
python studies/precisions.py cpu --shape 64 64 64 --precisions float32
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from unscanned.benchmark.inference import PATCH, STRIDE, Network, noise
from unscanned.benchmark.rounds import timed
from unscanned.machine.precision import autocast, available, set_process_precision
from unscanned.settings import resolve
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.synthesis.whole_volume import map_volume
from unscanned.training.stage import build_step

WARM_UP, ROUNDS = 3, 8


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median time of a piece of work."""
    return median(timed(work)["seconds"] for _ in range(rounds))


def main() -> None:
    """Time all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device")
    parser.add_argument("--shape", type=int, nargs=3, default=(224, 224, 128))
    parser.add_argument("--precisions", nargs="+")
    options = parser.parse_args()
    device = torch.device(options.device)
    generator, volume = Network("nie", 0, options.device).build("auto"), noise(0, 1, *options.shape)
    print("| precision | training step of 7, s | volume at stride 8, s | mode volume, s |")
    print("| --- | --- | --- | --- |")
    for precision in options.precisions or available(device):
        set_process_precision(precision, device)
        step = build_step(resolve("adv-gdl", overrides={"training": {"precision": precision}}), 1, device)
        source, target = (torch.from_numpy(noise(n, 7, 1, PATCH, PATCH, PATCH)).to(device) for n in (1, 2))
        for _ in range(WARM_UP):
            step(source, target)
        trained = seconds(partial(step, source, target), ROUNDS)
        with autocast(precision, device):
            reconstruct(volume[:, :PATCH, :PATCH, :PATCH], generator, device=device)
            patches = seconds(lambda: reconstruct(volume, generator, patch=PATCH, stride=STRIDE, device=device), 1)
            map_volume(volume[:, :PATCH, :PATCH, :PATCH], generator, device=device)
            whole = seconds(lambda: map_volume(volume, generator, device=device), 1)
        print(f"| {precision} | {trained:.3f} | {patches:.2f} | {whole:.2f} |", flush=True)


if __name__ == "__main__":
    main()
