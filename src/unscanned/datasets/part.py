"""A file of which a part is here: its bytes, its checksum so far, and what the server said of it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from unscanned.errors import DownloadError, SettingsError
from unscanned.files import read_json, write_json, writing
from unscanned.progress import Progress

__all__ = ["Part", "digest_of", "new_digest"]


_CHUNK_BYTES = 256 * 1024
_ALGORITHMS = {32: "md5", 64: "sha256"}


class Part:
    """The bytes so far of an unfinished download, and what is needed to go on with them safely.

    Args:
        path: The final name. The bytes lie in `path` + ".part", what the server said of them in ".part.json".
        checksum: MD5 or SHA-256 of the whole file.
        progress: Called with bytes done, bytes in all, and a label.
    """

    def __init__(self, path: Path, checksum: str, progress: Progress | None) -> None:
        self.path, self.checksum, self.progress = path, checksum, progress
        self.data = path.with_name(path.name + ".part")
        self.facts = path.with_name(path.name + ".part.json")
        self.digest, self.size = new_digest(checksum), 0
        self.etag: str | None = None
        self.modified: str | None = None
        self.length: int | None = None
        self.in_one_go = False
        self._recover()

    def _recover(self) -> None:
        try:
            facts = read_json(self.facts)
            checksum, etag, modified, length = (facts[key] for key in ("checksum", "etag", "modified", "length"))
        except (OSError, ValueError, KeyError, TypeError):
            return
        is_sound = {type(etag), type(modified)} <= {str, type(None)} and type(length) in (int, type(None))
        if is_sound and checksum == self.checksum and self.data.exists():
            self.etag, self.modified, self.length = etag, modified, length
            self.digest, self.size = digest_of(self.data, checksum, self.progress), self.data.stat().st_size

    def is_verified(self) -> bool:
        """Whether the bytes so far have the checksum: then they are the file."""
        return self.size > 0 and self.digest.hexdigest() == self.checksum

    def strong_validator(self) -> str | None:
        """What If-Range may name. A weak ETag says nothing about the bytes, so the date stands in for it."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def begin(self, headers: Any, length: int | None) -> None:
        """Start from the first byte. The facts go first and come last: without them a .part is not gone on with."""
        self.forget()
        with writing(self.data):
            self.data.parent.mkdir(parents=True, exist_ok=True)
            self.data.write_bytes(b"")
        self.digest, self.size, self.in_one_go = new_digest(self.checksum), 0, True
        self.etag, self.modified, self.length = headers.get("ETag"), headers.get("Last-Modified"), length
        write_json(
            self.facts, {"checksum": self.checksum, "etag": self.etag, "modified": self.modified, "length": self.length}
        )

    def continues_with(self, headers: Any, start: int, length: int | None) -> bool:
        """Whether an answer to a Range request is the rest of the same file."""
        same_version = headers.get("ETag", self.etag) == self.etag
        same_date = headers.get("Last-Modified", self.modified) == self.modified
        same_length = None in (length, self.length) or length == self.length
        # With all stated bytes here and a wrong checksum, it is the stated length that is wrong: more bytes may follow.
        return start == self.size and same_version and same_date and (same_length or self.size == self.length)

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end.

        Raises:
            ResourceError: The disk is full.
        """
        with writing(self.data), open(self.data, "ab") as file:
            file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Give the bytes so far up: the next request asks for the whole file."""
        self.forget()
        self.digest, self.size, self.length = new_digest(self.checksum), 0, None

    def forget(self) -> None:
        """Let no later call go on with these bytes."""
        self.facts.unlink(missing_ok=True)

    def finish(self) -> None:
        """Put the verified file under its final name.

        Raises:
            ResourceError: The disk fails, or the name has been taken by a folder.
        """
        with writing(self.path):
            with open(self.data, "rb") as file:
                os.fsync(file.fileno())
            self.data.replace(self.path)
        self.forget()

    def refuse(self) -> NoReturn:
        """Raise the DownloadError of a whole file that is the wrong one."""
        self.forget()
        raise DownloadError(
            "the checksum of the downloaded file differs",
            where=self.data,
            found=self.digest.hexdigest(),
            expected=self.checksum,
            do="Run the same command again to download it afresh. If it differs again, the server's file is not "
            "the published one: do not use it.",
        )

    def give_up(self, url: str, failures: int, reason: str) -> NoReturn:
        """Raise the DownloadError of a server or a connection that failed too often."""
        of = "" if self.length is None else f" of {self.length:,}"
        kept = f"it goes on from {self.data}" if self.size else "nothing has been downloaded yet"
        raise DownloadError(
            f"the download failed {failures} times in a row, at last because {reason}",
            where=url,
            found=f"{self.size:,}{of} bytes",
            do=f"Check the connection and run the same command again: {kept}.",
        )


def new_digest(checksum: str) -> Any:
    """Return a fresh hash object of the kind that `checksum` was made with, told by its length.

    Raises:
        SettingsError: It is not 32 or 64 hexadecimal digits.
    """
    algorithm = _ALGORITHMS.get(len(checksum))
    if algorithm is None or not re.fullmatch("[0-9a-fA-F]+", checksum):
        raise SettingsError(
            "not a checksum", found=repr(checksum), expected="an MD5 (32 hexadecimal digits) or SHA-256 (64)"
        )
    return hashlib.new(algorithm, usedforsecurity=False)


def digest_of(path: str | Path, checksum: str, progress: Progress | None = None) -> Any:
    """Return the hash object of a file's bytes, of the kind that `checksum` was made with."""
    path, digest, done = Path(path), new_digest(checksum), 0
    size = path.stat().st_size
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, size, f"{path.name}: checking")
    return digest
