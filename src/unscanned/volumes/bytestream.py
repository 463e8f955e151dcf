"""The bytes of a `.nii` or `.nii.gz` file, decompressed within bounds and hashed on the way."""

from __future__ import annotations

import hashlib
import zlib
from typing import BinaryIO

__all__ = ["SLACK_BYTES", "ByteStream", "GzipStream", "open_stream"]

SLACK_BYTES = 64 * 1024
"""How many bytes may follow the last voxel: some writers pad their files, none by more."""

_CHUNK_BYTES = 64 * 1024
_GZIP_MAGIC = b"\x1f\x8b"


class ByteStream:
    """A file's content, read once from front to back; this class reads it as it is, `GzipStream` decompresses it.

    Attributes:
        complete: False once the file has ended in the middle of a gzip member.
        garbage_bytes: Bytes behind the end of the compressed data, counted up to one more than `SLACK_BYTES`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.complete = True
        self.garbage_bytes = 0
        self._file = file
        self._hash = hashlib.sha256()

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as the content goes and return the number of bytes."""
        filled = 0
        while filled < len(view):
            count = self._file.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                break
            self._hash.update(view[filled : filled + count])
            filled += count
        return filled

    def sha256(self) -> str:
        """Return the SHA-256 of the file's bytes as read so far."""
        return self._hash.hexdigest()


class GzipStream(ByteStream):
    """The decompressed content of a gzip file of one or more members.

    No call holds more than one chunk beside the caller's own buffer, whatever the file decompresses to. zlib verifies
    the checksum and the length of each member when the member's end is read, so only a caller who reads to the end
    has read verified bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._compressed = b""
        self._inflater = zlib.decompressobj(wbits=31)
        self._members = 1
        self._produced_bytes = 0

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as the content goes and return the number of bytes.

        Raises:
            zlib.error: The compressed data are damaged, or a checksum is wrong.
        """
        filled = 0
        while filled < len(view):
            if self._inflater.eof and not self._next_member():
                break
            if not self._compressed:
                self._compressed = self._read()
            piece = self._inflater.decompress(self._compressed, min(len(view) - filled, 16 * _CHUNK_BYTES))
            file_ended = not self._compressed
            self._compressed = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if file_ended and not piece and not self._inflater.eof:
                self.complete = False
                break
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._produced_bytes += len(piece)
        return filled

    def _read(self) -> bytes:
        chunk = self._file.read(_CHUNK_BYTES)
        self._hash.update(chunk)
        return chunk

    def _next_member(self) -> bool:
        while len(self._compressed) < len(_GZIP_MAGIC) and (more := self._read()):
            self._compressed += more
        if not self._compressed.startswith(_GZIP_MAGIC):
            self._count_garbage()
            return False
        self._members += 1
        # Each new member copies the rest of the chunk, so a file of millions of empty ones would take hours.
        if self._members > 64 + self._produced_bytes // 1024:
            raise zlib.error(f"{self._members} gzip members for {self._produced_bytes} bytes")
        self._inflater = zlib.decompressobj(wbits=31)
        return True

    def _count_garbage(self) -> None:
        while self._compressed and self.garbage_bytes <= SLACK_BYTES:
            self.garbage_bytes += len(self._compressed)
            self._compressed = self._read()


def open_stream(file: BinaryIO) -> ByteStream:
    """Return the stream that fits the first bytes of a seekable file, whatever its name says."""
    magic = file.read(len(_GZIP_MAGIC))
    file.seek(0)
    return GzipStream(file) if magic == _GZIP_MAGIC else ByteStream(file)
