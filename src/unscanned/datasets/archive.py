"""Unpacking of archives that may be hostile: all of it is checked before any of it is written."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from unscanned.errors import DatasetError, in_words
from unscanned.files import require_room
from unscanned.progress import Progress

__all__ = ["unpack_tar", "unpack_zip"]

M = TypeVar("M")

_CHUNK_BYTES = 256 * 1024
_HEADER_LIMIT_BYTES = 1024 * 1024
_NAME_LIMIT_BYTES = 255


def unpack_tar(
    archive: str | Path,
    folder: str | Path,
    *,
    member_limit: int = 20_000,
    growth_limit: float = 4.0,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Unpack an uncompressed tar archive that holds nothing but regular files into a folder.

    The files are written by this function, not by tarfile: owner, mode and times in the archive have no effect.

    Args:
        archive: The archive.
        folder: An existing folder. `new_folder` gives an empty one that gets its name once all is unpacked.
        member_limit: The most members that are accepted.
        growth_limit: The most bytes that are accepted in all, in multiples of the archive's own length.
        progress: Called with bytes done, bytes in all, and a label.

    Returns:
        The length in bytes of each file, by its path in `folder`.

    Raises:
        DatasetError: The archive is refused: it is not a plain tar or is cut short, has a link, a device, a sparse or
            a set-user-ID file, a path that is absolute, leads out or occurs twice, or is over a limit. Nothing was
            written.
        ResourceError: The disk has no room for the files.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with _BoundedReader(io.FileIO(archive, "rb")) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = _checked_members(tar, archive, member_limit, growth_limit * archive.stat().st_size)
            total = sum(member.size for member in members.values())
            require_room(folder / archive.stem, total)
            done = 0
            for name, member in members.items():
                with _content(tar, member) as content:
                    _write(content, member.size, folder / name)
                done += member.size
                if progress is not None:
                    progress(done, total, f"{archive.name}: unpacking")
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError) as error:
        raise DatasetError(
            f"the archive cannot be read ({in_words(error)})",
            where=archive,
            expected="a whole, uncompressed tar archive",
            do="Delete it and fetch it again.",
        ) from error
    return {name: member.size for name, member in members.items()}


def unpack_zip(
    archive: str | Path,
    folder: str | Path,
    *,
    member_limit: int = 1000,
    limit_bytes: int,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Unpack a zip archive that holds nothing but regular files and folders into a folder.

    Args:
        archive: The archive.
        folder: An existing folder.
        member_limit: The most members that are accepted.
        limit_bytes: The most bytes that are accepted in all, by what the archive says and by what comes out of it.
        progress: Called with bytes done, bytes in all, and a label.

    Returns:
        The length in bytes of each file, by its path in `folder`.

    Raises:
        DatasetError: The archive is refused: it is no whole zip, is encrypted, has a link or a device, a path that is
            absolute, leads out or occurs twice, or is over a limit. All but a length that is not the stated one is seen
            before anything is written.
        ResourceError: The disk has no room for the files.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _checked_zip_members(opened.infolist(), archive, member_limit, limit_bytes)
            total = sum(member.file_size for member in members.values())
            require_room(folder / archive.stem, total)
            done = 0
            for name, member in members.items():
                with opened.open(member) as content:
                    _write(content, member.file_size, folder / name)
                done += member.file_size
                if progress is not None:
                    progress(done, total, f"{archive.name}: unpacking")
    except _UNREADABLE_ZIP as error:
        raise DatasetError(
            f"the archive cannot be read ({in_words(error)})",
            where=archive,
            expected="a whole zip archive",
            do="Delete it and fetch it again.",
        ) from error
    return {name: member.file_size for name, member in members.items()}


_UNREADABLE_ZIP = (
    *(zipfile.BadZipFile, zlib.error, tarfile.TarError),
    *(EOFError, ValueError, RuntimeError, OverflowError, MemoryError),
)


class _BoundedReader(io.BufferedReader):
    """A file that refuses long reads: tarfile believes a header that claims a name of gigabytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _HEADER_LIMIT_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size)


def _checked_members(
    tar: tarfile.TarFile, archive: Path, member_limit: int, limit_bytes: float
) -> dict[str, tarfile.TarInfo]:
    """Return the regular files by path, or refuse the archive."""
    members: dict[str, tarfile.TarInfo] = {}
    total = 0
    for count, member in enumerate(tar, start=1):
        total += member.size
        _check_limits(archive, count, member_limit, total, limit_bytes)
        problem = _problem_of(member)
        if problem is not None:
            _refuse(archive, problem, repr(member.name), "regular files with relative paths only")
        if not member.isdir():
            _add(members, member, member.name, archive)
    _require_end(tar)
    _check_clashes(members, archive)
    return members


def _checked_zip_members(
    found: Iterable[zipfile.ZipInfo], archive: Path, member_limit: int, limit_bytes: float
) -> dict[str, zipfile.ZipInfo]:
    """Return the regular files by path, or refuse the archive."""
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for count, member in enumerate(found, start=1):
        total += member.file_size
        _check_limits(archive, count, member_limit, total, limit_bytes)
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where it was not made on a Unix system
        problems = {
            "has a link": kind == stat.S_IFLNK,
            "has a device or another special file": kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK),
            "is encrypted": bool(member.flag_bits & 1),
            "is compressed in a way that is not read": member.compress_type
            not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
            # zipfile cuts a name at a null byte and turns the separators of other systems.
            "has a path that cannot be written": member.orig_filename != member.filename,
        }
        problem = next((problem for problem, is_there in problems.items() if is_there), None)
        problem = problem or _problem_of_path(member.orig_filename)
        if problem is not None:
            _refuse(archive, problem, repr(member.orig_filename), "regular files with relative paths only")
        if not member.is_dir():
            _add(members, member, member.filename, archive)
    _check_clashes(members, archive)
    return members


def _check_limits(archive: Path, count: int, member_limit: int, total: int, limit_bytes: float) -> None:
    if count > member_limit:
        _refuse(archive, "has too many members", f"more than {member_limit:,}", f"at most {member_limit:,}")
    if total > limit_bytes:
        _refuse(archive, "would unpack to too much", f"{total:,} bytes", f"at most {limit_bytes:,.0f}")


def _add(members: dict[str, M], member: M, path: str, archive: Path) -> None:
    name = str(PurePosixPath(path))
    if name in members:
        _refuse(archive, "has a path twice", repr(path), "every path once")
    members[name] = member


def _check_clashes(members: Iterable[str], archive: Path) -> None:
    folders = {str(parent) for name in members for parent in PurePosixPath(name).parents}
    clash = folders.intersection(members)
    if clash:
        _refuse(archive, "has a path that is both a file and a folder", repr(min(clash)), "one or the other")


def _require_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a broken header for the end; the true end is a block of zeros."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it breaks off at byte {tar.offset:,}")


def _problem_of(member: tarfile.TarInfo) -> str | None:
    is_file = member.isreg() and not member.issparse()
    problems = {
        "has a link": member.islnk() or member.issym(),
        "has a device or another special file": not (member.isdir() or is_file),
        "has a set-user-ID or set-group-ID file": bool(member.mode & 0o6000),
        "has a malformed member": member.size < 0 or (member.isreg() and not PurePosixPath(member.name).parts),
    }
    problem = next((problem for problem, is_there in problems.items() if is_there), None)
    return problem or _problem_of_path(member.name)


def _problem_of_path(name: str) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or any(character in name for character in "\\:"):
        return "has a path that leads out of the folder"
    if not name.isprintable() or any(len(part.encode()) > _NAME_LIMIT_BYTES for part in path.parts):
        return "has a path that cannot be written"
    return None


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    return content


def _refuse(archive: Path, problem: str, found: str, expected: str) -> None:
    raise DatasetError(
        f"the archive is refused: it {problem}",
        where=archive,
        found=found,
        expected=expected,
        do="Nothing was unpacked. Do not use this archive; get it from its official address.",
    )


def _write(content: IO[bytes], size: int, path: Path) -> None:
    """Write a file of a stated length, and no more than that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        left = size
        while chunk := content.read(min(_CHUNK_BYTES, left + 1)):
            if len(chunk) > left:
                raise tarfile.ReadError(f"{path.name} is longer than stated")
            file.write(chunk)
            left -= len(chunk)
        if left:
            raise tarfile.ReadError(f"{path.name} is cut short")
        file.flush()
        os.fsync(file.fileno())
