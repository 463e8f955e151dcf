"""Unpacking of tar archives that may be hostile: all of it is checked before any of it is written."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath

from unscanned.errors import DatasetError, in_words
from unscanned.files import require_room
from unscanned.progress import Progress

__all__ = ["unpack_tar"]

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
                _write(tar, member, folder / name)
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
    folders: set[str] = set()
    total = 0
    for count, member in enumerate(tar, start=1):
        total += member.size
        if count > member_limit:
            _refuse(archive, "has too many members", f"more than {member_limit:,}", f"at most {member_limit:,}")
        if total > limit_bytes:
            _refuse(archive, "would unpack to too much", f"{total:,} bytes", f"at most {limit_bytes:,.0f}")
        problem = _problem_of(member)
        if problem is not None:
            _refuse(archive, problem, repr(member.name), "regular files with relative paths only")
        if member.isdir():
            continue
        name = str(PurePosixPath(member.name))
        if name in members:
            _refuse(archive, "has a path twice", repr(member.name), "every path once")
        members[name] = member
        folders.update(str(parent) for parent in PurePosixPath(name).parents)
    _require_end(tar)
    clash = folders.intersection(members)
    if clash:
        _refuse(archive, "has a path that is both a file and a folder", repr(min(clash)), "one or the other")
    return members


def _require_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a broken header for the end; the true end is a block of zeros."""
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"it breaks off at byte {tar.offset:,}")


def _problem_of(member: tarfile.TarInfo) -> str | None:
    name, path, is_file = member.name, PurePosixPath(member.name), member.isreg() and not member.issparse()
    problems = {
        "has a link": member.islnk() or member.issym(),
        "has a device or another special file": not (member.isdir() or is_file),
        "has a set-user-ID or set-group-ID file": bool(member.mode & 0o6000),
        "has a path that leads out of the folder": path.is_absolute()
        or ".." in path.parts
        or any(character in name for character in "\\:"),
        "has a path that cannot be written": not name.isprintable()
        or any(len(part.encode()) > _NAME_LIMIT_BYTES for part in path.parts),
        "has a malformed member": member.size < 0 or (member.isreg() and not path.parts),
    }
    return next((problem for problem, is_there in problems.items() if is_there), None)


def _refuse(archive: Path, problem: str, found: str, expected: str) -> None:
    raise DatasetError(
        f"the archive is refused: it {problem}",
        where=archive,
        found=found,
        expected=expected,
        do="Nothing was unpacked. Do not use this archive; get it from its official address.",
    )


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    with content, open(path, "xb") as file:
        shutil.copyfileobj(content, file, _CHUNK_BYTES)
        if file.tell() != member.size:
            raise tarfile.ReadError(f"{member.name} is cut short")
        file.flush()
        os.fsync(file.fileno())
