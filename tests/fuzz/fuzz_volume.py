"""Feed the volume reader mutated files until it breaks a promise.

The promises, for every file: the true volume or one `VolumeError`; no other exception; an answer within 5 s; memory
within a budget. What is true depends on the mutation. Where the compressed bytes were changed, it is the volume before.
Where the header or the voxels were changed and compressed again, it is what nibabel makes of the changed file.

    PYTHONPATH=src:tests python -m fuzz.fuzz_volume --executions 20000
    PYTHONPATH=src:tests python -m fuzz.fuzz_volume --engine atheris --seconds 120   # coverage-guided

Exit code 0 if no promise was broken, and if all executions were made unless `--seconds` said when to stop; otherwise 1.
The files that broke a promise are in the folder given by `--crashes`. What the guided engine found worth keeping stays
in the folder given by `--corpus`, and the next run begins with it.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import hashlib
import inspect
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from nifti_files import AFFINE, nifti_bytes, some_voxels
from peak_memory import MEASURABLE, forget_peak, peak_mib

from unscanned.errors import VolumeError
from unscanned.volumes import bytestream, header, nifti

GZIP = b"\x1f\x8b"
SLOWEST_S = 5.0
SECONDS = 600.0
MEMORY_MIB = 100.0
INTERESTING = [
    *(np.float32(v).tobytes() for v in (0, -1, 1, 352, 1e38, 1e-42, np.nan, np.inf, -np.inf)),
    *(np.int16(v).tobytes() for v in (0, -1, 1, 2, 3, 4, 7, 8, 16, 64, 512, 1536, 32767, -32768)),
    *(np.int32(v).tobytes() for v in (0, 348, 540, -1, 2**31 - 1)),
]


class BrokenPromise(Exception):
    """What the reader did with a file that it must not do."""


def seeds() -> list[bytes]:
    """Return small valid files that differ in type, byte order, scaling, transform, axes and extension."""
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.3
    return [
        nifti_bytes(qform=AFFINE),
        nifti_bytes(some_voxels((11, 7, 5), ">i2"), fields={"scl_slope": 0.5, "scl_inter": -3}),
        nifti_bytes(some_voxels((8, 8, 8), "<f4"), affine=sheared),
        nifti_bytes(some_voxels((16, 4, 3), "u1"), affine=None, qform=AFFINE),
        nifti_bytes(some_voxels((6, 6, 6, 1, 1), "<f8")),
        nifti_bytes(some_voxels((9, 10, 8), "<i4"), fields={"vox_offset": 416}),
    ]


def compress(content: bytes, draw: random.Random) -> bytes:
    """Compress at any level, as one gzip member or as two."""
    cut = draw.choice([0, draw.randrange(len(content))])
    parts = [content[:cut], content[cut:]] if cut else [content]
    return b"".join(gzip.compress(part, draw.choice([0, 1, 9]), mtime=0) for part in parts)


def truncated(content: bytes, draw: random.Random) -> bytes:
    """Cut the file anywhere."""
    return content[: draw.randrange(len(content))]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Flip up to eight bits."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def extended(content: bytes, draw: random.Random) -> bytes:
    """Append zeros, noise, another member, or a bomb."""
    size = draw.choice([1, 100, 65_536, 65_537, 200_000])
    tails: list[Callable[[], bytes]] = [
        lambda: bytes(size),
        lambda: draw.randbytes(size),
        lambda: gzip.compress(bytes(size)),
        lambda: gzip.compress(bytes(2**22)),
        lambda: GZIP + draw.randbytes(size),
        lambda: 500 * gzip.compress(b""),
    ]
    return content + draw.choice(tails)()


def rearranged(content: bytes, draw: random.Random) -> bytes:
    """Remove, repeat or swap a stretch of bytes."""
    first, last = sorted(draw.choices(range(len(content)), k=2))
    piece = content[first:last]
    return content[:first] + draw.choice([b"", piece + piece, piece[::-1]]) + content[last:]


def edited(content: bytes, draw: random.Random) -> bytes:
    """Overwrite header fields with values at the edge of what they can hold."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        value = draw.choice([*INTERESTING, draw.randbytes(draw.randint(1, 4))])
        position = draw.randrange(0, 348 - len(value), 2)
        changed[position : position + len(value)] = value
    return bytes(changed)


CONTAINER_MUTATIONS = [truncated, flipped, extended, rearranged]
CONTENT_MUTATIONS = [edited, edited, edited, flipped, truncated, extended, rearranged]


def mutate(draw: random.Random) -> tuple[str, str, bytes, bytes | None]:
    """Return a mutation's name, a file name, the file, and the content that must be read if any is."""
    content = draw.choice(seeds())
    if draw.random() < 0.5:
        mutation = draw.choice(CONTAINER_MUTATIONS)
        return f"gzip {mutation.__name__}", "scan.nii.gz", mutation(compress(content, draw), draw), content
    mutation = draw.choice(CONTENT_MUTATIONS)
    changed = mutation(content, draw)
    if draw.random() < 0.5 and changed:
        return f"content {mutation.__name__}, compressed", "scan.nii.gz", compress(changed, draw), changed
    return f"content {mutation.__name__}", "scan.nii", changed, changed


def execute(path: Path, file: bytes, content: bytes | None) -> str:
    """Read one file and return "read" or "refused".

    Args:
        path: Where to put the file.
        file: Its bytes.
        content: The decompressed bytes that a volume must agree with; None decompresses the file.

    Raises:
        BrokenPromise: The reader broke a promise.
    """
    path.write_bytes(file)
    start = time.monotonic()
    try:
        result = nifti.read_volume(path)
    except VolumeError as error:
        if str(path) not in str(error):
            raise BrokenPromise(f"the message does not name the file: {error}") from error
        outcome = "refused"
    except Exception as error:
        raise BrokenPromise(f"{type(error).__name__}: {error}") from error
    else:
        compare(result.array, result.affine, decompressed(file) if content is None else content)
        outcome = "read"
    if time.monotonic() - start > SLOWEST_S:
        raise BrokenPromise(f"{time.monotonic() - start:.1f} s")
    return outcome


@contextlib.contextmanager
def watched(seconds: float) -> Iterator[None]:
    """Raise `BrokenPromise` in a body that takes longer.

    A body that hangs outside Python cannot be interrupted: after twice the time the process ends with its traceback and
    exit code 1.
    """

    def give_up(number: int, frame: object) -> None:
        raise BrokenPromise(f"no answer within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, give_up)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, handler)


def decompressed(file: bytes) -> bytes:
    """Return what the gzip members at the front of a file hold."""
    content = b""
    while file.startswith(GZIP):
        inflater = zlib.decompressobj(wbits=31)
        content += inflater.decompress(file)
        file = inflater.unused_data
    return content


def compare(array: np.ndarray, affine: np.ndarray, content: bytes) -> None:
    """Check a volume against nibabel's reading of the same content."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if np.frombuffer(content, "<f4", 1, 76)[0] == 0:  # nibabel refuses a pixdim[0] that the standard allows.
            content = content[:76] + np.float32(1).tobytes() + content[80:]
        content = content[:348] + bytes(4) + content[352:]  # Extensions are none of the reader's business.
        image = nibabel.Nifti1Image.from_bytes(content)
        expected = np.asarray(image.dataobj).astype(np.float32).reshape(array.shape, order="F")
        scale = max(1.0, float(np.abs(expected).max()))
        if not np.allclose(array, expected, rtol=1e-5, atol=1e-5 * scale):
            raise BrokenPromise("the voxels differ from nibabel's")
        if not np.allclose(affine, image.affine, rtol=1e-5, atol=1e-5):
            raise BrokenPromise("the affine differs from nibabel's")


def run_mutations(executions: int, seconds: float, seed: int, folder: Path, crashes: Path) -> dict[str, object]:
    """Read mutated files one after the other, up to one that hangs, and return the figures."""
    counts: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    slowest, start, broken = 0.0, time.monotonic(), 0
    execute(folder / "scan.nii.gz", gzip.compress(seeds()[0]), seeds()[0])
    before = forget_peak() if MEASURABLE else 0.0
    done = 0
    while done < executions and time.monotonic() - start < seconds and slowest <= SLOWEST_S:
        name, file_name, file, content = mutate(random.Random(f"{seed}:{done}"))
        began = time.monotonic()
        try:
            with watched(SLOWEST_S):
                outcome = execute(folder / file_name, file, content)
        except Exception as error:
            outcome, broken = "broken", broken + 1
            (crashes / f"{hashlib.sha256(file).hexdigest()[:16]}-{file_name}").write_bytes(file)
            print(f"execution {done}, {name}: {type(error).__name__}: {error}", file=sys.stderr)
        slowest = max(slowest, time.monotonic() - began)
        counts[f"{name}: {outcome}"] += 1
        outcomes[outcome] += 1
        done += 1
    growth = peak_mib() - before if MEASURABLE else 0.0
    return {
        "engine": "structured mutations",
        "seed": seed,
        "executions": done,
        "executions_asked_for": executions,
        "outcomes": dict(outcomes),
        "by_mutation": dict(sorted(counts.items())),
        "slowest_s": round(slowest, 3),
        "peak_memory_growth_mib": round(growth, 1) if MEASURABLE else None,
        "seconds": round(time.monotonic() - start, 1),
        "promises_broken": broken + (growth > MEMORY_MIB),
    }


def run_guided(
    executions: int, seconds: float, seed: int, folder: Path, crashes: Path, *, corpus: Path
) -> dict[str, object]:
    """Let atheris search for files by the reader's coverage, in a process of its own, and return the figures.

    Args:
        executions: Files to read.
        seconds: When to stop at the latest.
        seed: Of the search.
        folder: For the file that is being read.
        crashes: Gets the files that broke a promise.
        corpus: Files to begin with; gets the seeds and every file that led to a new branch.
    """
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds()):
        (corpus / f"{number}.nii").write_bytes(content)
        (corpus / f"{number}.nii.gz").write_bytes(gzip.compress(content, 1, mtime=0))
    command = [sys.executable, "-m", "fuzz.fuzz_volume", "--guided-child", str(folder / "scan.nii.gz")]
    limits = [f"-runs={executions}", f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", "-max_len=8192"]
    promises = [
        f"-timeout={int(SLOWEST_S)}",
        "-rss_limit_mb=600",
        f"-artifact_prefix={crashes}/",
        "-print_final_stats=1",
    ]
    started = time.monotonic()
    result = subprocess.run([*command, *limits, *promises, str(corpus)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        print(result.stderr[-3000:], file=sys.stderr)
    figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", result.stderr))
    covered = re.findall(r"cov: (\d+)", result.stderr)
    return {
        "engine": "atheris, guided by coverage",
        "seed": seed,
        "executions": int(figures.get("number_of_executed_units", 0)),
        "executions_asked_for": executions,
        "corpus_files": len(list(corpus.iterdir())),
        "branches_covered": int(covered[-1]) if covered else 0,
        "peak_memory_mib": int(figures.get("peak_rss_mb", 0)),
        "seconds": round(time.monotonic() - started, 1),
        "promises_broken": int(result.returncode != 0),
    }


def guided_child(path: Path, arguments: list[str]) -> None:
    """Run libFuzzer's loop on the instrumented reader; it ends the process itself."""
    import atheris

    for module in (bytestream, header, nifti):
        for owner in (module, *filter(inspect.isclass, vars(module).values())):
            for function in filter(inspect.isfunction, list(vars(owner).values())):
                if function.__module__ == module.__name__ and not function.__code__.co_filename.startswith("<"):
                    atheris.instrument_func(function)
    atheris.Setup(["fuzz_volume", *arguments], lambda data: execute(path, data, None if data[:2] == GZIP else data))
    atheris.Fuzz()


def main() -> int:
    """Run the engine that is asked for, print the figures as JSON, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, help=f"stop then; without it, to be done by {SECONDS:g} s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["mutations", "atheris"], default="mutations")
    parser.add_argument("--crashes", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--corpus", type=Path, default=Path("runs/fuzz-corpus"), help="of the engine atheris")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    run = partial(run_guided, corpus=options.corpus) if options.engine == "atheris" else run_mutations
    seconds = SECONDS if options.seconds is None else options.seconds
    options.crashes.mkdir(parents=True, exist_ok=True)
    # Among the crashes, since the file stays there if reading it ends the process.
    with tempfile.TemporaryDirectory(prefix="running-", dir=options.crashes) as folder:
        figures = run(options.executions, seconds, options.seed, Path(folder), options.crashes)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    done = figures["executions"]
    too_few = options.seconds is None and done < options.executions
    if too_few:
        print(f"{done} of {options.executions} executions were made; give --seconds more time", file=sys.stderr)
    return int(figures["promises_broken"] != 0 or too_few)


if __name__ == "__main__":
    nibabel.imageglobals.logger.setLevel("CRITICAL")
    if sys.argv[1:2] == ["--guided-child"]:
        guided_child(Path(sys.argv[2]), sys.argv[3:])
    sys.exit(main())
