"""Draw thousands of calls of the command line, run each on files of its own, and list the promises that were broken.

No call may end with a traceback or exit code 1, use more than its time or memory, change a file that it was given,
write outside its output, print what steers a terminal, or leave unfinished files. What is drawn: the verb, its options
(right, odd, extreme), faults of its inputs, what stands at the output's place (devices, links, full and read-only
disks), the environment, the user, a working folder that is gone.

    PYTHONPATH=src:tests python -m harness.run --calls 20000
    PYTHONPATH=src:tests python -m harness.run --calls 500 --processes    # as processes of their own
    PYTHONPATH=src:tests python -m harness.run --repeat 'JSON'            # one call again, as a finding names it

Exit code 0 if no promise was broken.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import ctypes
import dataclasses
import encodings.aliases
import functools
import gc
import hashlib
import http.server
import json
import multiprocessing
import multiprocessing.synchronize  # another user may not read where it is
import os
import sys
import tempfile
import time
import webbrowser  # noqa: F401 - likewise
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed  # noqa: F401 - likewise
import hypothesis
import monai.networks.nets  # noqa: F401 - likewise
import torch
from harness import judge
from harness.calls import WEIGHTS, Call, calls
from harness.judge import Verdict, Worker
from harness.world import make_world
from hypothesis import HealthCheck, Phase, given

import unscanned.benchmark.run
import unscanned.cli

CALLS_OF_A_WORKER = 40
BATCH = 250
"""Calls for one search of hypothesis; the next begins afresh with the next seed."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder over http from a process of its own, and yield its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
    process.start()
    server.server_close()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        process.kill()
        process.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def prepared(world: Path | None = None) -> Iterator[Callable[[Call], Verdict]]:
    """Yield what judges a call, with all that it needs around it.

    Args:
        world: Folder of `make_world`; None makes one.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="harness-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)  # other users call too
        base = Path(folder)
        world = make_world(base / "world") if world is None else world
        judge.SETTINGS = world / "settings.toml"
        for archive in (world / "served").glob("IXI-*.tar"):
            judge.CHECKSUMS[archive.stem.removeprefix("IXI-")] = hashlib.md5(archive.read_bytes()).hexdigest()
        (base / "cases").mkdir()
        _warm(world, base)
        with serving(world / "served") as address:
            look = _Looking(world, base / "cases", address)
            yield look
            look.renew()


class _Looking:
    """Judges calls with a worker that is renewed from time to time.

    A call that broke a promise is judged by what it does in a worker that has made no other call.
    """

    def __init__(self, world: Path, base: Path, served: str) -> None:
        self.world, self.base, self.served = world, base, served
        self.worker: Worker | None = None

    def __call__(self, call: Call) -> Verdict:
        if call.is_process:
            return judge.judge(call, self.world, self.base)
        if self.worker is None or not self.worker.is_alive or self.worker.calls >= CALLS_OF_A_WORKER:
            self.renew()
            self.worker = Worker(self.served)
        is_first = self.worker.calls == 0
        verdict = judge.judge(call, self.world, self.base, self.worker)
        if not verdict.broken or is_first:
            return verdict
        self.renew()
        return self(call)

    def renew(self) -> None:
        """End the worker; the next call gets a new one."""
        if self.worker is not None:
            self.worker.end()
        self.worker = None


def _warm(world: Path, base: Path) -> None:
    """Import what the verbs import when they are called, so that forks find it: another user may not read it."""
    out, scan = base / "warm", world / "dataset/sub-001/anat/sub-001_PDw.nii.gz"
    made = next((world / "derived").rglob("*.nii.gz"))
    words: list[list[object]] = [
        ["check", world / "table.csv", "--json", out / "check.json", "--measure-s", 0],
        ["reproduce", world / "dataset", "-o", out / "r", "--settings", world / "settings.toml", "--arms", "demo"],
        ["verify", made, "--model", world / "run/model", "--scan", world / "scan.nii.gz"],
        ["dicom", made, world / "dicom", "-o", out / "dicom", "--scan", world / "scan.nii.gz"],
        ["mend", scan, "-o", out / "mended.nii.gz"],
        ["simulate", "-o", out / "s", "--subjects", 1, "--shape", 12, 12, 12, "--spacing-mm", 16],
        ["evaluate", world / "dataset", world / "synthetic", "-o", out / "e", "--split", world / "split.json"],
        ["mend", "--help"],
    ]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for call in words:
            if unscanned.cli.main([str(word) for word in call]):
                raise RuntimeError(f"a call that should be right failed: {call}")
    for name in set(encodings.aliases.aliases.values()):
        with contextlib.suppress(LookupError):  # some are Windows' alone
            codecs.lookup(name)
    gc.collect()
    gc.freeze()  # so that forks do not copy all pages when they count references
    ctypes.CDLL(None).malloc_trim(0)  # a smaller process forks sooner


def search(
    look: Callable[[Call], Verdict], number: int, seed: int, take: Callable[[Call, Verdict], None], *, is_process: bool
) -> None:
    """Judge so many calls drawn by hypothesis with this seed, and hand each to `take`."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(calls(is_process=is_process))
    def one(call: Call) -> None:
        take(call, look(call))

    one()


def to_json(call: Call) -> str:
    """Return a call as JSON, from which `--repeat` makes it again."""
    return json.dumps({k: v for k, v in dataclasses.asdict(call).items() if v != Call.__dataclass_fields__[k].default})


def from_json(text: str) -> Call:
    """Return the call of `to_json`."""
    content = json.loads(text)
    return Call(**{k: _tuples(v) for k, v in content.items()})


def _tuples(value: object) -> object:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class Tally:
    """What came of the calls so far."""

    def __init__(self) -> None:
        self.by_verb: Counter[str] = Counter()
        self.by_code: Counter[str] = Counter()
        self.by_kind: Counter[str] = Counter()
        self.by_user: Counter[str] = Counter()
        self.cpu: Counter[str] = Counter()
        self.findings: dict[str, list[str]] = {}
        self.slowest = self.largest = 0.0
        self.began = time.monotonic()

    def take(self, call: Call, verdict: Verdict) -> None:
        """Count a call, and print what is found for the first time."""
        self.by_verb[call.verb] += 1
        self.by_code[str(verdict.code)] += 1
        self.by_user[call.user] += 1
        self.by_kind.update([f"output: {call.out}", *{f"input: {fault[2]}" for fault in call.faults}])
        self.cpu[call.verb] += verdict.seconds
        self.slowest, self.largest = max(self.slowest, verdict.seconds), max(self.largest, verdict.mib)
        for broken in verdict.broken:
            key = f"{call.verb}: {broken.split(' ')[0]}: {verdict.signature}"
            known = self.findings.setdefault(key, [])
            known.append(to_json(call))
            if len(known) == 1:
                shown = verdict.shown.strip()[-600:]
                print(f"FINDING {key}\n  {broken}\n  --repeat '{known[0]}'\n  | {shown!r}", flush=True)
        if self.number % 100 == 0:
            print(
                f"{self.number} calls, {self.broken} with findings of {len(self.findings)} kinds, "
                f"{(time.monotonic() - self.began) / 60:.1f} min",
                flush=True,
            )

    @property
    def number(self) -> int:
        """Calls so far."""
        return sum(self.by_verb.values())

    @property
    def broken(self) -> int:
        """Calls that broke a promise."""
        return len({call for known in self.findings.values() for call in known})

    def summary(self) -> dict[str, object]:
        """Return all figures as JSON values."""
        return {
            "calls": self.number,
            "calls_with_findings": self.broken,
            "findings": {key: {"count": len(known), "repeat": known[:3]} for key, known in self.findings.items()},
            "by_verb": dict(self.by_verb.most_common()),
            "by_exit_code": dict(self.by_code.most_common()),
            "cpu_s_by_verb": {verb: round(seconds) for verb, seconds in self.cpu.most_common()},
            "by_user": dict(self.by_user),
            "by_kind": dict(self.by_kind.most_common()),
            "slowest_cpu_s": round(self.slowest, 1),
            "largest_memory_mib": round(self.largest),
            "minutes": round((time.monotonic() - self.began) / 60, 1),
        }


def main() -> int:
    """Run what is asked for, print the figures as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop then, after the call in progress")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", action="store_true", help="every call as a process of its own")
    parser.add_argument("--repeat", help="a call as JSON")
    parser.add_argument("--world", type=Path, help="folder of inputs made before; made there if it is missing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--verbs", nargs="+", choices=WEIGHTS, default=[*WEIGHTS], help="draw no others")
    options = parser.parse_args()
    WEIGHTS.update({verb: 0 for verb in WEIGHTS if verb not in options.verbs})
    if options.world is not None and not options.world.exists():
        make_world(options.world)
    with prepared(options.world) as look:
        if options.repeat:
            verdict = look(from_json(options.repeat))
            print(verdict.shown, verdict, sep="\n")
            return int(bool(verdict.broken))
        tally, seed = Tally(), options.seed

        def take(call: Call, verdict: Verdict) -> None:
            tally.take(call, verdict)
            if time.monotonic() - tally.began > options.seconds:
                raise _Over

        with contextlib.suppress(_Over, KeyboardInterrupt):
            while tally.number < options.calls:
                wanted = min(BATCH, options.calls - tally.number)
                search(look, wanted, seed, take, is_process=options.processes)
                seed += 1
    text = json.dumps({"seed": options.seed, **tally.summary()}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return int(tally.broken > 0 or (tally.number < options.calls and options.seconds == float("inf")))


class _Over(BaseException):
    """The time is over."""


if __name__ == "__main__":
    sys.exit(main())
