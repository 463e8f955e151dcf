"""Run one call of the command line on files of its own, and say which promises it broke."""

from __future__ import annotations

import faulthandler
import fcntl
import hashlib
import io
import os
import random
import re
import resource
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import unscanned
from unscanned import cli, demo
from unscanned.datasets import ixi

from harness import files
from harness.calls import Call

CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9}
CPU_S, WALL_S, MEMORY_MIB = 40, 150, 1500
"A call may use so much: seconds of processor time, seconds in all (for what waits without end), and memory."

OWN_DIRECTORIES = (".cache", ".config", "matplotlib-", "torchinductor_", "tmp")
"Of the libraries, in the home folder and among temporary files."


@dataclass(frozen=True)
class Verdict:
    """What became of a call.

    Attributes:
        code: Its exit code; negative for a signal.
        seconds: Of processor time.
        mib: Memory beyond that of the harness, or of the process where it is one.
        broken: What it did that no call may do; the first word of each says the kind.
        shown: What it printed.
        signature: Where it crashed, to tell the same fault from another.
    """

    code: int
    seconds: float
    mib: float
    broken: tuple[str, ...]
    shown: str
    signature: str = ""


def judge(call: Call, world: Path, base: Path, *, served: str = "http://127.0.0.1:9") -> Verdict:
    """Make the files of a call, run it, compare all files with what they were, and remove them.

    Args:
        call: The call.
        world: Folder of `make_world`.
        base: An empty folder that other users may enter.
        served: Address of the archives in world/served, for `fetch`.
    """
    case = Path(tempfile.mkdtemp(prefix="case-", dir=base))
    case.chmod(0o755)
    try:
        _furnish(call, world, case)
        before = snapshot(case)
        reader = os.open(case / "out/fifo", os.O_RDONLY | os.O_NONBLOCK) if call.out == "fifo" else None
        if reader is not None:
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2**20)  # a writer waits for a reader, and then for room
        try:
            code, used, wall = _run(call, case, served)
        finally:
            if reader is not None:
                os.close(reader)
        shown = "".join((case / name).read_bytes().decode(errors="replace") for name in ("stdout", "stderr"))
        seconds = used.ru_utime + used.ru_stime
        mib = used.ru_maxrss / 1024 - (0 if call.is_process else _own_mib())
        broken = [*_said(call, code, shown), *_changed(call, before, snapshot(case))]
        if seconds > CPU_S or wall > WALL_S:
            broken.append(f"time {seconds:.0f} s of processor time, {wall:.0f} s in all")
        if mib > MEMORY_MIB:
            broken.append(f"memory {mib:,.0f} MiB")
        return Verdict(code, seconds, mib, tuple(broken), shown, _signature(shown))
    finally:
        if call.out.endswith("small disk"):
            subprocess.run(["umount", "-l", case / "out/disk"], check=False)
        shutil.rmtree(case, ignore_errors=True)


def _furnish(call: Call, world: Path, case: Path) -> None:
    for name in ("in", "out", "home", "tmp", "gone"):
        (case / name).mkdir()
    for name in call.inputs:
        if (world / name).is_dir():
            shutil.copytree(world / name, case / "in" / name)
        elif (world / name).exists():
            shutil.copyfile(world / name, case / "in" / name)
    for name, number, kind, seed in call.faults:
        found = [path for path in files.files_below(case / "in" / name) if path.is_file() and not path.is_symlink()]
        if found:
            files.FAULTS[kind](found[number % len(found)], random.Random(seed))
    files.make_output(call.out, case / "out", world)
    if call.out == "read-only":
        (case / "out/read-only").chmod(0o555)
    if call.user == "nobody":
        for name in ("out", "home", "tmp", "gone"):
            files.give_away(case / name)


def snapshot(folder: Path) -> dict[str, tuple[int, object]]:
    """Return the mode of everything below a folder, with the hash of files and the targets of links."""
    return {os.path.relpath(path, folder): facts for path, facts in _facts(os.fspath(folder))}


def _facts(folder: str) -> Iterator[tuple[str, tuple[int, object]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            content: object = None
            if stat.S_ISLNK(mode):
                content = os.readlink(entry.path)
            elif stat.S_ISREG(mode):
                with open(entry.path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            yield entry.path, (mode, content)
            if stat.S_ISDIR(mode):
                yield from _facts(entry.path)


def _changed(call: Call, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    """Yield what is another file than before, new outside the output, or left unfinished."""
    kept = files.protected(call.out, call.verb)
    here = call.out in ("nothing", "here")
    inside = "in/dataset/derivatives" if call.out == "in dataset" else None
    for path in sorted(set(before) | set(after)):
        first, *rest = path.split("/")
        if before.get(path) == after.get(path) or path in ("stdout", "stderr"):
            continue
        if first == "gone" or path.endswith("/.lock") or "unscanned-crash-" in path or (rest and rest[0].startswith(OWN_DIRECTORIES)):
            continue
        own = first == "out" or (first == "home" and here) or (inside is not None and path.startswith(inside))
        if path in before and path not in after:
            what = "removed"
        elif path in before:
            what = "changed"
        else:
            what = "new"
        if not own or (first == "out" and rest[0] in kept and what != "new"):
            yield f"files {path} is {what}"
        elif what == "new" and ".partial-" in path:
            yield f"partial {path} is left"


def _said(call: Call, code: int, shown: str) -> Iterator[str]:
    """Yield what is wrong with the exit code and the words of a call."""
    if "Traceback (most recent call last)" in shown:
        yield "traceback printed"
    if "this is a bug" in shown:
        yield "bug"
    if call.stdout == "file":
        if code not in CODES and "bug" not in shown:
            yield f"code {code}"
        if code and not shown.strip():
            yield f"silence with code {code}"
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", shown) and not dict(call.environment).get("FORCE_COLOR"):
        yield "escape printed raw"


def _signature(shown: str) -> str:
    named = re.search(r"what happened is in (\S+)\. Please", shown)
    text = Path(named[1]).read_text(errors="replace") if named and Path(named[1]).is_file() else shown
    if named:
        Path(named[1]).unlink(missing_ok=True)  # it may lie elsewhere, where the call's own folder could not be used
    frames = re.findall(r'File "[^"]*?(unscanned/[^"]+)", line (\d+)', text) or re.findall(
        r'File "[^"]*/([^"/]+)", line (\d+)', text
    )
    if not frames:
        return ""
    last = [line for line in text.strip().splitlines() if line.strip() and not line.startswith(" ")][-1]
    return f"{frames[-1][0]}:{frames[-1][1]} {last[:160]}"


def _environment(call: Call, case: Path) -> dict[str, str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(unscanned.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(case / "home"),
        "TMPDIR": str(case / "tmp"),
        "LC_ALL": "C.UTF-8",
    }
    for name, value in call.environment:
        environment.pop(name, None)
        if value is not None:
            environment[name] = value.replace("@", str(case))
    return environment


def _run(call: Call, case: Path, served: str) -> tuple[int, resource.struct_rusage, float]:
    """Run the call to its end or its limits; return its exit code, what it used, and the seconds it took."""
    words = [word.replace("@", str(case)) for word in call.words]
    out = os.open(case / "stdout", os.O_WRONLY | os.O_CREAT)
    if call.stdout == "full":
        os.close(out)
        out = os.open("/dev/full", os.O_WRONLY)
    elif call.stdout == "closed":
        os.close(out)
        reader, out = os.pipe()
        os.close(reader)
    err = os.open(case / "stderr", os.O_WRONLY | os.O_CREAT)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 125
        try:
            os.setsid()
            nothing = os.open("/dev/null", os.O_RDONLY)
            for descriptor, number in ((nothing, 0), (out, 1), (err, 2)):
                os.dup2(descriptor, number)
            _limit()
            cwd = case / ("gone" if call.cwd == "gone" else "home")
            os.chdir(cwd)
            if call.cwd == "gone":
                cwd.rmdir()
            environment = _environment(call, case)
            if call.is_process:
                powers = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if call.user == "powerless" else []
                command = [*powers, sys.executable, "-m", "unscanned", *words]
                os.execvpe(command[0], command, environment)
            if call.user == "nobody" and os.geteuid() == 0:
                os.setgroups([])
                os.setgid(files.NOBODY)
                os.setuid(files.NOBODY)
            code = _in_process(words, environment, served, case)
        finally:
            os._exit(code)
    os.close(out)
    os.close(err)
    watched = os.pidfd_open(child)
    ready, _, _ = select.select([watched], [], [], WALL_S)
    os.close(watched)
    if not ready:
        os.kill(child, signal.SIGABRT)  # the fault handler says where it is
        time.sleep(0.5)
    _, status, used = os.wait4(child, os.WNOHANG if not ready else 0)
    if not ready:
        _kill_group(child)
        _, status, used = (0, signal.SIGKILL, used) if status else os.wait4(child, 0)
    wall = time.monotonic() - began
    _kill_group(child)  # what it may have left running
    return os.waitstatus_to_exitcode(status), used, wall


def _kill_group(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S + 5, CPU_S + 10))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bytes_ = pages * resource.getpagesize() + 8 * 2**30  # libraries reserve more than they use
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))


def _in_process(words: list[str], environment: Mapping[str, str], served: str, case: Path) -> int:
    """Call the command line in this process as if it had just started."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.argv = ["unscanned", *words]
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="surrogateescape")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    faulthandler.enable(sys.stderr)
    torch.set_num_threads(1)
    # What a fork cannot have from a slow network or in tiny: the archives come from here, the demo is small.
    ixi.fetch_ixi.__kwdefaults__.update(base_url=served, checksums=CHECKSUMS, tries=2, backoff_s=0.01)
    demo.simulate = partial(demo.simulate, shape=(24, 24, 24), spacing_mm=8.0)
    demo.reproduce = partial(demo.reproduce, file=SETTINGS)
    code = cli.main(words)
    sys.stdout.flush()
    return code


CHECKSUMS: dict[str, str] = {}
"MD5 of the archives in world/served; set once by who starts the harness."
SETTINGS: Path | None = None
"The settings of the small demo; likewise."


def _own_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
