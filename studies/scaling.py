"""What training and cohorts cost on 1 to 64 devices, from what one device takes and what this machine can measure.

    python studies/scaling.py measure --json scaling.json [--hosts]
    python studies/scaling.py plan docs/experiments/scaling.toml

`measure` times, on this machine, the exchange of a step's gradients between 1, 2 and 4 processes over gloo, on one host
and with --hosts (root) on two hosts that are network namespaces joined by a link, and reading, making and writing a
scan. `plan` prints the tables of docs/scaling.md from the figures of the file.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from unscanned.files import read_json, write_json

REPEATS = 11
"Exchanges that are timed after two others; the median counts."

DEVICES = (1, 2, 4, 7, 8, 16, 32, 64)
SCANS = (100, 1_000, 10_000, 100_000)
SHAPE = (128, 224, 224)


def exchange(rank: int, count: int, address: str, port: int, sizes: Sequence[int], path: Path) -> None:
    """Time an all-reduce of so many float32 numbers among the processes, and write the medians."""
    torch.set_num_threads(1)
    store = distributed.TCPStore(address, port, count, rank == 0, timeout=datetime.timedelta(seconds=60))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
    medians = {}
    for size in sizes:
        numbers = torch.ones(size)
        taken = []
        for _ in range(REPEATS + 2):
            distributed.barrier()
            began = time.perf_counter()
            distributed.all_reduce(numbers)
            taken.append(time.perf_counter() - began)
        medians[str(size)] = statistics.median(taken[2:])
    if rank == 0:
        write_json(path, medians)
    distributed.destroy_process_group()


def exchanges(count: int, sizes: Sequence[int], spaces: Sequence[str], address: str) -> dict[str, float]:
    """Return the seconds of an exchange by the number of values, the processes shared out over the namespaces."""
    with tempfile.TemporaryDirectory() as folder:
        path, port = Path(folder) / "medians.json", 29_500 + os.getpid() % 1000
        processes = []
        for rank in range(count):
            inside = ["ip", "netns", "exec", spaces[rank % len(spaces)]] if spaces else []
            words = [sys.executable, __file__, "exchange", rank, count, address, port, path, *sizes]
            link = {"GLOO_SOCKET_IFNAME": f"{spaces[rank % len(spaces)]}-l"} if spaces else {}
            processes.append(subprocess.Popen([*inside, *map(str, words)], env={**os.environ, **link}))
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError(f"an exchange among {count} processes failed")
        found: dict[str, float] = read_json(path)
        return found


@contextmanager
def two_hosts() -> Iterator[tuple[list[str], str]]:
    """Make two network namespaces that are joined by a link; needs root."""
    names, addresses = ["unscanned-a", "unscanned-b"], ["10.88.0.1", "10.88.0.2"]
    links = [f"{name}-l" for name in names]

    def run(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for name in names:
            run("netns", "add", name)
        run("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for name, address, link in zip(names, addresses, links, strict=True):
            run("link", "set", link, "netns", name)
            inside = ["-n", name]
            run(*inside, "link", "set", "lo", "up")
            run(*inside, "address", "add", f"{address}/24", "dev", link)
            run(*inside, "link", "set", link, "up")
        yield names, addresses[0]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def a_scan(model_name: str) -> dict[str, float]:
    """Return the seconds that reading, making and writing a scan take here, on one thread."""
    import warnings

    from unscanned import load_model
    from unscanned.simulation.stream import Stream
    from unscanned.volumes.nifti import Volume, read_volume, write_volume

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    pair = Stream(source="T1w", target="T2w", shape=SHAPE, spacing_mm=1.0, seed=0, built_in=1).draw(0)
    model = load_model(model_name)
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "scan.nii.gz", Path(folder) / "made.nii.gz"
        write_volume(path, np.round(1000 * pair.source).astype(np.float32), np.eye(4))
        times: dict[str, list[float]] = {"reading": [], "making": [], "writing": []}
        for _ in range(3):
            began = time.perf_counter()
            volume = read_volume(path)
            times["reading"].append(time.perf_counter() - began)
            began = time.perf_counter()
            made = model.synthesize(volume, progress=None)
            times["making"].append(time.perf_counter() - began)
            began = time.perf_counter()
            write_volume(out, made.array, Volume(made.array, np.eye(4)).affine)
            times["writing"].append(time.perf_counter() - began)
        sizes = {"read_mb": path.stat().st_size / 1e6, "written_mb": out.stat().st_size / 1e6}
    return {name: statistics.median(each) for name, each in times.items()} | sizes


def measure(given: argparse.Namespace) -> None:
    """Time exchanges and a scan here, print them, and write them."""
    sizes = [1, *given.sizes]
    facts: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.platform()}, PyTorch {torch.__version__}",
        "exchange, one host": {str(count): exchanges(count, sizes, (), "127.0.0.1") for count in (2, 4)},
    }
    if given.hosts:
        with two_hosts() as (spaces, address):
            facts["exchange, two hosts"] = {str(count): exchanges(count, sizes, spaces, address) for count in (2, 4)}
    facts["scan"] = a_scan(given.model)
    write_json(given.json, facts)
    for name, values in facts.items():
        print(f"{name}: {values}")


def step_seconds(kind: Mapping[str, Any], link: Mapping[str, float], count: int) -> float:
    """Return what a training step takes on so many devices: the patches of the busiest, and the exchange.

    A ring sends and receives 2 (n - 1) / n times the gradients of both networks. Each layer of batch norm waits for
    two small messages, one forward and one backward.
    """
    compute = kind["step_s"] * -(-kind["batch"] // count) / kind["batch"]
    if count == 1:
        return float(compute)
    ring = 2 * (count - 1) / count * 4 * kind["parameters"] / link["bytes_per_s"]
    return float(compute + ring + (kind["messages"] + 2 * kind["batch_norms"]) * link["latency_s"])


def scans_a_second(kind: Mapping[str, Any], figures: Mapping[str, Any], count: int) -> tuple[float, str]:
    """Return how many scans so many devices make a second, and what sets the limit.

    On a GPU other processes read and write while it makes the next scan; a CPU worker does one after the other.
    """
    files_s = kind["read_s"] + kind["write_s"]
    rates = {
        "scheduler": 1 / figures["scheduler"]["s_a_task"],
        "storage": figures["storage"]["mb_per_s"] / kind["mb_a_scan"],
    }
    if kind["readers"]:
        rates |= {"devices": count / kind["make_s"], "reading and writing": count * kind["readers"] / files_s}
    else:
        rates["devices"] = count / (kind["make_s"] + files_s)
    limit = min(rates, key=lambda name: rates[name])
    return rates[limit], limit


def plan(given: argparse.Namespace) -> None:
    """Print the tables."""
    figures = tomllib.loads(given.figures.read_text(encoding="utf-8"))
    for name, kind in figures["training"].items():
        link = figures["links"][kind["link"]]
        alone = step_seconds(kind, link, 1)
        print(f"\n{name}\n\n| devices | s a step | speed-up | efficiency |\n| --- | --- | --- | --- |")
        for count in (number for number in DEVICES if number <= kind["batch"]):
            taken = step_seconds(kind, link, count)
            print(f"| {count} | {taken:.3f} | {alone / taken:.2f} | {100 * alone / taken / count:.0f} % |")
    for name, kind in figures["cohorts"].items():
        heading = " | ".join(["devices", "scans a minute", "limit", *(f"{count:,} scans" for count in SCANS)])
        print(f"\n{name}\n\n| {heading} |\n{'| --- ' * (3 + len(SCANS))}|")
        for count in DEVICES:
            rate, limit = scans_a_second(kind, figures, count)
            times = [in_words(scans / rate + kind["start_s"]) for scans in SCANS]
            print(f"| {count} | {60 * rate:.1f} | {limit} | {' | '.join(times)} |")


def in_words(seconds: float) -> str:
    """Return a time in the unit that reads best."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("measure")
    one.add_argument("--json", type=Path, required=True)
    one.add_argument("--hosts", action="store_true")
    one.add_argument("--model", default="t1w-t2w")
    one.add_argument("--sizes", type=int, nargs="*", default=[1_176_177, 3_638_945, 13_257_730])
    one.set_defaults(run=measure)
    two = parts.add_parser("plan")
    two.add_argument("figures", type=Path)
    two.set_defaults(run=plan)
    three = parts.add_parser("exchange")  # one process of `measure`
    for name, kind in (("rank", int), ("count", int), ("address", str), ("port", int), ("path", Path)):
        three.add_argument(name, type=kind)
    three.add_argument("sizes", type=int, nargs="+")
    three.set_defaults(run=lambda g: exchange(g.rank, g.count, g.address, g.port, g.sizes, g.path))
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
