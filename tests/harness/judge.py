"""Run one call of the command line on files of its own, and say which promises it broke."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import hashlib
import inspect
import io
import multiprocessing
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
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from harness import files
from harness.calls import Call
from peak_memory import forget_peak, peak_mib

import unscanned
from unscanned import cli, demo
from unscanned.datasets import ixi

PATH = os.environ["PATH"]
CODES = {0, 2, 3, 4, 5, 6, 7, 8, 9}
CPU_S, WALL_S, MEMORY_MIB = 40, 150, 1500
"A call may use so much: seconds of processor time, seconds in all (for what waits without end), and memory."
MEASURING_MIB = 3500
"The same for a `check` that takes a step of the training whose cost it tells."

OF_LIBRARIES = (".cache", ".config", "matplotlib-", "torchinductor_", "intel", ".ses")
"What libraries (.ses: ONNX Runtime) keep in the home folder and among temporary files."


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


def judge(call: Call, world: Path, base: Path, worker: Worker | None = None) -> Verdict:
    """Make the files of a call, run it, compare all files with what they were, and remove them.

    Args:
        call: The call.
        world: Folder of `make_world`.
        base: An empty folder that other users may enter.
        worker: Makes the call, unless it is a process of its own.
    """
    case = Path(tempfile.mkdtemp(prefix="case-", dir=base))
    case.chmod(0o755)
    try:
        _furnish(call, world, case)
        before = snapshot(case)
        reader = os.open(case / "out/fifo", os.O_RDONLY | os.O_NONBLOCK) if call.out == "fifo" else None
        if reader is not None:
            fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2**20)  # a writer waits for a reader, and then for room
        began = time.monotonic()
        try:
            code, seconds, mib = _run_process(call, case) if worker is None else worker.run(call, case)
        finally:
            if reader is not None:
                os.close(reader)
        wall = time.monotonic() - began
        shown = "".join(
            path.read_bytes().decode(errors="replace")
            for name in ("stdout", "stderr")
            if (path := case / name).exists()
        )
        broken = [*_said(call, code, shown), *_changed(call, before, snapshot(case))]
        if seconds > CPU_S or wall > WALL_S or code == -signal.SIGPROF:
            broken.append(f"time {seconds:.0f} s of processor time, {wall:.0f} s in all")
        if mib > (MEASURING_MIB if _takes_a_step(call) else MEMORY_MIB):
            broken.append(f"memory {mib:,.0f} MiB")
        return Verdict(code, seconds, mib, tuple(broken), shown, _signature(shown))
    finally:
        if call.out.endswith("small disk"):
            subprocess.run(["umount", "-l", case / "out/disk"], check=False)
        shutil.rmtree(case, ignore_errors=True)


def _takes_a_step(call: Call) -> bool:
    """Whether a call is a `check` that was not told to leave out its measurement."""
    given = [after for option, after in pairwise(call.words) if option == "--measure-s"]
    return call.verb == "check" and given != ["0"]


def _furnish(call: Call, world: Path, case: Path) -> None:
    for name in ("in", "out", "home", "tmp", "gone"):
        (case / name).mkdir()
    for name in call.inputs:
        if (world / name).is_dir():
            shutil.copytree(world / name, case / "in" / name)
        elif (world / name).exists():
            shutil.copyfile(world / name, case / "in" / name)
    if "jobs" in call.inputs:
        for list_ in (case / "in/jobs/cohort.json", case / "in/jobs/scans.jsonl"):
            list_.write_text(list_.read_text().replace("@", str(case)))
    for name, number, kind, seed in call.faults:
        found = [path for path in files.files_below(case / "in" / name) if path.is_file() and not path.is_symlink()]
        if found:
            with contextlib.suppress(OSError):  # an earlier fault may have left nothing to do it to
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
    named = [path for option, path in pairwise(call.words) if option == "-o"]
    # What a verb writes without being told where, or under a name without a folder.
    here = call.out in ("nothing", "here") or not named or not named[-1].startswith("@")
    # Where a dataset that is no input is given as the output, a run may lie beside its scans, and a file beside it.
    inside = {"in dataset": ("in/dataset/derivatives",), "dataset": ("in/dataset.",)}.get(call.out, ())
    if call.out == "dataset" and call.words.count("@/in/dataset") == 1 and "@/in/table.csv" not in call.words:
        inside = ("in/dataset.", "in/dataset/")
    for path in sorted(set(before) | set(after)):
        first, *rest = path.split("/")
        if before.get(path) == after.get(path) or path in ("stdout", "stderr"):
            continue
        if (
            first == "gone"
            or path.endswith("/.lock")
            or "unscanned-crash-" in path
            or (first in ("home", "tmp") and rest and rest[0].startswith(OF_LIBRARIES))
        ):
            continue
        what = "new" if path not in before else "changed" if path in after else "removed"
        is_new_inside = what == "new" and path.startswith(inside or "/")
        own = first == "out" or (first == "home" and here) or is_new_inside
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
        "PATH": PATH,
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


class Worker:
    """A fork of this process that makes calls of the command line, one after the other.

    It is another process so that a call may hang, use up the memory or end it; the next call then gets a new one. Each
    call finds the environment, working folder, user, streams and signals as a process that has just started.
    """

    def __init__(self, served: str) -> None:
        self._connection, other = multiprocessing.Pipe()
        self._child = os.fork()
        self.calls = 0
        if self._child == 0:
            self._connection.close()
            try:
                _serve(other, served)
            except EOFError:
                pass  # the harness has ended
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(124)
        other.close()

    def run(self, call: Call, case: Path) -> tuple[int, float, float]:
        """Make a call; return its exit code, the seconds of processor time, and the memory that it took, in MiB."""
        self.calls += 1
        self._connection.send((call, case))
        try:
            if not self._connection.poll(WALL_S):
                os.kill(self._child, signal.SIGABRT)  # the fault handler says where it is
                time.sleep(0.5)
                self.end()
                return -signal.SIGKILL, 0.0, 0.0
            code, seconds, mib = self._connection.recv()
        except (EOFError, ConnectionError):
            _, status, used = os.wait4(self._child, 0)
            self._child = 0
            self.end()
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, 0.0
        return code, seconds, mib

    @property
    def is_alive(self) -> bool:
        """Whether it can make another call."""
        return self._child > 0

    def end(self) -> None:
        """End it, and whatever its calls have left running."""
        self._connection.close()
        if self._child > 0:
            _kill_group(self._child)
            os.waitpid(self._child, 0)
        self._child = 0


def _serve(connection: Connection, served: str) -> None:
    os.setsid()
    if os.geteuid() == 0:
        os.setgroups([])
    _limit()
    torch.set_num_threads(1)
    # What a fork cannot have from a slow network or in tiny: the archives come from here, the demo is small.
    inspect.unwrap(ixi.fetch_ixi).__kwdefaults__.update(base_url=served, checksums=CHECKSUMS, tries=2, backoff_s=0.01)
    demo.simulate = partial(demo.simulate, shape=(24, 24, 24), spacing_mm=8.0)
    demo.reproduce = partial(demo.reproduce, file=SETTINGS)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)}
    while True:
        call, case = connection.recv()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        began, before = time.process_time(), _own_mib()
        forget_peak()
        signal.setitimer(signal.ITIMER_PROF, CPU_S)  # ends the process
        code = _in_process(call, case)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send((code, time.process_time() - began, peak_mib() - before))


def _in_process(call: Call, case: Path) -> int:
    """Make a call in this process as if it had just started."""
    _redirect(call, case)
    environment = _environment(call, case)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.argv = ["unscanned", *_words(call, case)]
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", errors="surrogateescape")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding="utf-8", errors="backslashreplace", write_through=True
    )
    faulthandler.enable(sys.stderr)
    torch.set_num_threads(1)
    is_other = call.user == "nobody" and os.geteuid() == 0
    if is_other:
        os.setresgid(files.NOBODY, files.NOBODY, 0)
        os.setresuid(files.NOBODY, files.NOBODY, 0)
    try:
        code = cli.main(sys.argv[1:])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        code = 125
    finally:
        if is_other:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
    return code


def _words(call: Call, case: Path) -> list[str]:
    return [word.replace("@", str(case)) for word in call.words]


def _redirect(call: Call, case: Path) -> None:
    """Lead the standard streams of this process where the call wants them, and go into its working folder."""
    nothing = os.open("/dev/null", os.O_RDONLY)
    err = os.open(case / "stderr", os.O_WRONLY | os.O_CREAT)
    if call.stdout == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    elif call.stdout == "closed":
        reader, out = os.pipe()
        os.close(reader)
    else:
        out = os.open(case / "stdout", os.O_WRONLY | os.O_CREAT)
    for descriptor, number in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    cwd = case / ("gone" if call.cwd == "gone" else "home")
    os.chdir(cwd)
    if call.cwd == "gone":
        cwd.rmdir()


def _run_process(call: Call, case: Path) -> tuple[int, float, float]:
    """Make a call in a process of its own, as `Worker.run` does."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            _redirect(call, case)
            _limit()
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S + 5, CPU_S + 10))
            powers = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if call.user == "powerless" else []
            command = [*powers, sys.executable, "-m", "unscanned", *_words(call, case)]
            os.execvpe(command[0], command, _environment(call, case))
        finally:
            os._exit(125)
    watched = os.pidfd_open(child)
    select.select([watched], [], [], WALL_S)
    os.close(watched)
    _kill_group(child)  # also what it may have left running
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 8 * 2**30  # libraries reserve more than they use
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


CHECKSUMS: dict[str, str] = {}
"MD5 of the archives in world/served; set once by who starts the harness."
SETTINGS: Path | None = None
"The settings of the small demo; likewise."


def _own_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
