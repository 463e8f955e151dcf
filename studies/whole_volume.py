"""Seconds and peak memory of a whole volume of any shape, with the full generator on noise: mode volume, or patches.

python studies/whole_volume.py 128 224 224 --memory-mib 1440
python studies/whole_volume.py 128 224 224 --stride 8
"""

from __future__ import annotations

import argparse

from unscanned.benchmark.inference import Network, noise
from unscanned.benchmark.rounds import timed
from unscanned.machine.memory import high_water_mib
from unscanned.machine.threads import set_process_threads
from unscanned.synthesis.reconstruct import reconstruct
from unscanned.synthesis.whole_volume import map_volume


def main() -> None:
    """Map one volume, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", type=int, nargs=3)
    parser.add_argument("--memory-mib", type=int, help="of mode volume")
    parser.add_argument("--stride", type=int, help="mode patches instead, with this stride")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    set_process_threads(options.threads)
    before = high_water_mib()
    network, volume = Network("nie", 0, "cpu").build("auto"), noise(0, 1, *options.shape)
    if options.stride:
        row = timed(lambda: reconstruct(volume, network, stride=options.stride))
    else:
        row = timed(lambda: map_volume(volume, network, memory_mib=options.memory_mib))
    after = high_water_mib()
    peak = "not told by this system" if before is None or after is None else f"{after - before:.0f} MiB"
    print(f"{row['seconds']:.1f} s, {row['cpu_seconds']:.1f} s of processor time, peak above the imports {peak}")


if __name__ == "__main__":
    main()
