"""Files that are either whole or absent: atomic writes, checksums, JSON, and locks on output folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from unscanned.errors import BusyError, DatasetError, ResourceError, UnscannedError

__all__ = [
    "atomic_path",
    "digest",
    "is_stream",
    "lock",
    "new_folder",
    "open_regular",
    "read_json",
    "read_sealed",
    "read_text",
    "remove_partials",
    "require_room",
    "sha256",
    "short_digest",
    "unsealed",
    "write_bytes",
    "write_json",
    "write_sealed",
    "write_text",
    "writing",
]


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, flush it to disk and rename it into place.

    The temporary file keeps the suffixes of `path`, so that libraries that look at the name work. If the body raises,
    the temporary file is removed and whatever stood at `path` before still stands there. A symbolic link stays: the
    file that it leads to is replaced. A device, a named pipe or an open descriptor such as /dev/stdout is written to.

    Args:
        path: The final name. Its folder is made when missing.

    Raises:
        ResourceError: The disk is full, the quota is used up, or nothing can be written there.

    Example:
        >>> with atomic_path(folder / "table.csv") as temporary:
        ...     _ = temporary.write_text("a,b")
    """
    path = Path(path)
    temporary = None
    try:
        with writing(path):
            final = Path(os.path.realpath(path)) if path.is_symlink() else path
            to_stream = is_stream(path)
            folder = Path(tempfile.gettempdir()) if to_stream else final.parent
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp("".join(path.suffixes[-2:]), f".partial-{os.getpid()}-", folder)
            temporary = Path(name)
            os.fchmod(handle, 0o666 & ~_umask())
            os.close(handle)
            yield temporary
            if to_stream:
                with open(temporary, "rb") as source, _open_stream(path) as target:
                    shutil.copyfileobj(source, target)
                temporary.unlink()
            else:
                _flush(temporary)
                temporary.replace(final)
                _flush(folder)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, UnscannedError) and temporary is not None and error.where == temporary:  # which is gone
            raise error.at(path) from error
        raise


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success rename it to `path`, otherwise remove it.

    What an earlier, killed process left of the same folder is removed.

    Raises:
        DatasetError: There is something at `path` already.
        BusyError: A living process is writing the same folder.
        ResourceError: The disk is full, or nothing can be written there.
    """
    path = Path(path)
    prefix = f".partial-{path.name}-"
    there_already = DatasetError("is there already", where=path, do="Move it away, or choose another folder.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.iterdir():
            if re.fullmatch(re.escape(prefix) + r"[a-z0-9_]{8}", stale.name):
                with lock(stale):
                    shutil.rmtree(stale)
        if os.path.lexists(path):
            raise there_already
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        with lock(temporary), writing(path):
            yield temporary
            temporary.chmod(path.parent.stat().st_mode & 0o777)
            (temporary / ".lock").unlink()
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise there_already from error
                raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn every failure of the system while the body writes `path` into one kind of error.

    Raises:
        ResourceError: The disk is full, a limit is reached, or nothing can be written there. NumPy and pydicom raise an
            OSError that does not say why; it counts too.
    """
    try:
        yield
    except OSError as error:
        raise _cannot_write(Path(path), error) from error


def is_stream(path: Path) -> bool:
    """Whether a path is written to as it is: a device, a pipe, or a descriptor of this process."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or _descriptor(path) is not None


def require_room(path: str | Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        path: What will be written; it need not be there yet.
        needed: Bytes.

    Raises:
        ResourceError: The disk has fewer bytes free.
    """
    if needed > _free(Path(path)):
        raise _full(Path(path), needed)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all; where it cannot fit, nothing is written."""
    with atomic_path(path) as temporary:
        require_room(temporary, len(content))
        temporary.write_bytes(content)


def write_text(path: str | Path, content: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    # A file's name may hold bytes that are no text; as an escape it stands in JSON and HTML and can be read back.
    write_bytes(path, content.encode(errors="backslashreplace"))


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON whole or not at all. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def open_regular(path: str | Path) -> BufferedReader:
    """Open a regular file for reading. A pipe or a device, which may never end, is refused without waiting for it.

    Raises:
        OSError: It cannot be opened, or is something else than a file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_text(path: str | Path, *, encoding: str = "utf-8", limit_bytes: int = 256 * 2**20) -> str:
    """Read a text file.

    Raises:
        OSError: The file cannot be read, is no regular file or is longer than `limit_bytes`.
        ValueError: The file is not text in this encoding.
    """
    content = bytearray()
    with open_regular(path) as file:
        while chunk := file.read(2**20):  # to read up to a limit takes its memory at once
            content += chunk
            if len(content) > limit_bytes:
                raise OSError(errno.EFBIG, f"it is longer than {limit_bytes:,} bytes", str(path))
    return content.decode(encoding)


def read_json(path: str | Path, *, limit_bytes: int = 256 * 2**20) -> Any:
    """Read a JSON file.

    Raises:
        OSError: The file cannot be read, or is longer than `limit_bytes`.
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(read_text(path, limit_bytes=limit_bytes))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_sealed(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all, with a hash of all that it says."""
    write_json(path, {**content, _SEAL: digest(content)})


def read_sealed(path: str | Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not what was written.
    """
    return unsealed(read_json(path))


def unsealed(content: Any) -> dict[str, Any]:
    """Return the content of a sealed file without its seal.

    Raises:
        ValueError: It is not what was written.
    """
    inside = {key: value for key, value in content.items() if key != _SEAL} if isinstance(content, dict) else {}
    if not inside or content.get(_SEAL) != digest(inside):
        raise ValueError("it was changed since it was written")
    return inside


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON values, as 64 hexadecimal digits; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def short_digest(content: Mapping[str, Any]) -> str:
    """Return the first 16 digits of `digest`."""
    return digest(content)[:16]


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold `folder/.lock` while the body runs, so that two runs never write into one folder.

    A lock left by a process that has died is free. Whether other hosts see the lock is up to the file system.

    Raises:
        BusyError: A living process holds the lock.
        ResourceError: Nothing can be written there, or the file system has no locks.
    """
    import fcntl

    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        opened = open(folder / ".lock", "ab+", buffering=0)  # noqa: SIM115
    # The kernel's lock dies with its process, so a stale file never blocks; the text only serves the message.
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ResourceError(
                    "the file system cannot lock files, so two runs could write into one folder",
                    where=folder,
                    found=error.strerror,
                    do="Choose an output folder on a local disk, or have it mounted with flock.",
                ) from error
            file.seek(0)
            raise BusyError(
                "the folder is in use by another run",
                where=folder,
                found=file.read().decode(errors="replace").strip() or "a lock without an owner's name",
                do="Wait for it to end, or choose another output folder.",
            ) from error
        _held.add(file)
        with contextlib.suppress(OSError):  # a full disk can go without the name
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            _held.discard(file)
            with contextlib.suppress(OSError):
                file.truncate(0)


def remove_partials(folder: str | Path) -> None:
    """Remove what killed processes left of unfinished files below a folder; call it while its lock is held.

    Those of living processes stay: a folder inside may be another run's output.
    """
    for path in Path(folder).rglob(".partial-*"):
        named = re.match(r"\.partial-(\d+)-", path.name)
        if path.is_file() and not (named and _is_alive(int(named[1]))):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # no file is unfinished where this process cleans up
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True


_SEAL = "seal_sha256"
_held: set[BinaryIO] = set()


def _let_go() -> None:
    """Close the locks in a child process: they are its parent's, and end with it."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)

_SMALL_BYTES = 2**20


def _cannot_write(path: Path, error: OSError) -> ResourceError:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if error.errno == errno.EFBIG or (error.errno is None and limit != resource.RLIM_INFINITY):
        return ResourceError(
            "the system does not allow a file of this size",
            where=path,
            found=error if limit == resource.RLIM_INFINITY else f"a limit of {limit:,} bytes",
            do="Raise the limit (ulimit -f), or choose a file system that takes large files.",
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and _free(path) < _SMALL_BYTES):
        return _full(path)
    return ResourceError("cannot be written", where=path, found=error, do="Choose another place for the output.")


def _descriptor(path: Path) -> int | None:
    """Return the number of this process's descriptor that a path such as /dev/stdout leads to."""
    for _ in range(40):  # links in a row that Linux follows
        folder = os.path.realpath(path.parent)
        if folder == f"/proc/{os.getpid()}/fd" and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            break
        path = Path(folder, os.readlink(path))
    return None


def _open_stream(path: Path) -> BinaryIO:
    descriptor = _descriptor(path)
    if descriptor is None:
        return open(path, "wb")
    # Its twin writes where the descriptor stands. Opened anew, a file that it stands for would begin at its first byte.
    sys.stdout.flush()
    return os.fdopen(os.dup(descriptor), "wb")


def _full(path: Path, needed: int | None = None) -> ResourceError:
    return ResourceError(
        "the disk is full",
        where=path,
        found=f"{_free(path):,} bytes free",
        expected=None if needed is None else f"{needed:,} bytes",
        do="Free some space and run the same command again; nothing was lost.",
    )


def _free(path: Path) -> int:
    return shutil.disk_usage(next(above for above in path.absolute().parents if above.is_dir())).free


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
