"""One file over HTTP: resumed where it broke, and accepted only with the checksum that is known beforehand."""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from unscanned.datasets.part import Part, digest_of
from unscanned.errors import DownloadError, SettingsError, in_words
from unscanned.files import require_room
from unscanned.progress import Progress

__all__ = ["check_address", "download", "https_where_served"]

_CHUNK_BYTES = 256 * 1024
_FURTHER_BYTES = 1024 * 1024
_LONGEST_PAUSE_S = 60.0
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_LENGTH = r"[0-9]{1,30}"
"What counts as a length: Python refuses to read numbers of thousands of digits."
_HEADERS = {"User-Agent": "unscanned", "Accept-Encoding": "identity"}


def download(
    url: str,
    path: str | Path,
    *,
    checksum: str,
    idle_timeout_s: float = 30.0,
    tries: int = 5,
    backoff_s: float = 1.0,
    limit_bytes: int = 16 * 1024**3,
    room: float = 1.0,
    progress: Progress | None = None,
) -> None:
    """Download a file, or go on with a download that was broken off, and put it at `path` once its checksum is right.

    The bytes so far lie in `path` + ".part", what the server said of them in ".part.json"; both outlive a killed
    process. The rest is asked for with Range and If-Range, so a file that has changed on the server is begun again, as
    it is where the server ignores Range. The length that the server states decides nothing: the file is whole when its
    checksum is right.

    Args:
        url: Address of the file, http or https. A redirection from https to http is not followed.
        path: The final name. A file that is already there is checked, not downloaded.
        checksum: MD5 (32 hexadecimal digits) or SHA-256 (64) of the file.
        idle_timeout_s: Seconds without a byte after which the connection is given up.
        tries: Failures in a row, without getting a mebibyte further, after which to give up.
        backoff_s: Pause after the first failure; it doubles with each.
        limit_bytes: The longest file that is accepted.
        room: Disk space that must be free before the first byte, in multiples of the file's length.
        progress: Called with bytes done, bytes in all, and a label.

    Raises:
        DownloadError: The server refuses, the connection broke too often, or the checksum differs. The .part is kept.
        ResourceError: The disk has no room for the file.
        SettingsError: The address or the checksum is not of a known kind.
    """
    path = Path(path)
    checksum = checksum.lower()
    _split(url)
    if path.exists():
        _require_checksum(path, checksum, progress)
        return
    part = Part(path, checksum, progress)
    failures, furthest = 0, part.size
    while not part.is_verified():
        try:
            _transfer(url, part, idle_timeout_s=idle_timeout_s, limit_bytes=limit_bytes, room=room)
            reason = "the server ended the file there, but the checksum differs"
        except _Broken as broken:
            reason = str(broken)
        if part.size >= furthest + _FURTHER_BYTES:
            failures, furthest = 0, part.size
        failures += 1
        if part.is_verified():
            break
        if failures >= tries:
            part.give_up(url, failures, reason)
        time.sleep(min(backoff_s * 2 ** (failures - 1), _LONGEST_PAUSE_S))
    part.finish()


def check_address(url: str) -> None:
    """Refuse what is no address to download from.

    Raises:
        SettingsError: It is not of a known kind.
    """
    _split(url)


def https_where_served(url: str, *, timeout_s: float = 10.0) -> str:
    """Return the https twin of an http address if the server has it, otherwise the address itself.

    An address with a port is left alone: the same port cannot speak both.
    """
    parts = _split(url)
    if parts.scheme != "http" or parts.port is not None:
        return url
    secure = urllib.parse.urlunsplit(parts._replace(scheme="https"))
    request = urllib.request.Request(secure, method="HEAD", headers=_HEADERS)
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            # A page for people at the file's address (a login, a notice) is not the file.
            return url if response.headers.get_content_type() == "text/html" else secure
    except (DownloadError, OSError, http.client.HTTPException):
        return url


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isprintable()
    except ValueError:
        valid = False
    if not valid or " " in url:
        raise SettingsError("this is not an address to download from", where=repr(url), expected="http:// or https://")
    return parts


class _Broken(Exception):
    """One request failed in a way that another may not."""


class _StaySecure(urllib.request.HTTPRedirectHandler):
    """Follow redirections to http and https only, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = req.type, urllib.parse.urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new == "http"):
            raise DownloadError(
                "the server sends the download to an address that is not followed",
                where=req.full_url,
                found=newurl,
                expected="https" if old == "https" else "http or https",
                do="Give the new address as the base address if you trust it.",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_StaySecure)


def _transfer(url: str, part: Part, *, idle_timeout_s: float, limit_bytes: int, room: float) -> None:
    """Send one request and add what it brings; return when the server has sent what it announced."""
    with _open(url, part, idle_timeout_s) as response:
        length = _place(response, part)
        _check_length(url, length or 0, limit_bytes)
        require_room(part.data, int((length or 0) * room) - part.size)
        for chunk in _chunks(response, part, length):
            _check_length(url, part.size + len(chunk), limit_bytes)
            part.append(chunk)
            if part.progress is not None:
                part.progress(part.size, max(length or 0, part.size), part.path.name)
    if length is not None and part.size < length:
        raise _Broken("the connection was closed early")


def _request(url: str, part: Part) -> urllib.request.Request:
    """The request for what is missing."""
    request = urllib.request.Request(url, headers=_HEADERS)
    if part.size:
        request.add_header("Range", f"bytes={part.size}-")
        validator = part.strong_validator()
        if validator:
            request.add_header("If-Range", validator)
    return request


def _open(url: str, part: Part, timeout_s: float) -> Any:
    try:
        return _OPENER.open(_request(url, part), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and part.size:  # no byte follows those that are here, and yet they are not the file
                if part.in_one_go:
                    part.refuse()
                part.restart()
                raise _Broken("the pieces downloaded so far are not the server's file") from error
            if error.code in _PASSING_STATUS:
                raise _Broken(f"the server answered {error.code} {error.reason}") from error
            raise DownloadError(
                "the server does not give the file",
                where=url,
                found=f"{error.code} {error.reason}",
                do="Check the address, or give another one as the base address.",
            ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error


def _place(response: Any, part: Part) -> int | None:
    """Bring the .part to where the answer starts, and return the whole file's length as far as the server states it."""
    stated = re.fullmatch(_LENGTH, response.headers.get("Content-Length", "").strip())
    body = int(stated[0]) if stated else None
    if response.status == 206:
        match = re.fullmatch(
            rf"bytes ({_LENGTH})-({_LENGTH})/({_LENGTH}|\*)", response.headers.get("Content-Range", "").strip()
        )
        start = int(match[1]) if match else -1
        length = int(match[3]) if match and match[3] != "*" else None
        if not part.continues_with(response.headers, start, length):
            part.restart()
            raise _Broken("the file on the server has changed")
        part.in_one_go = False
        return length if length is not None or body is None else start + body
    if part.in_one_go and part.size and part.size == body:
        part.refuse()
    part.begin(response.headers, body)
    return body


def _chunks(response: Any, part: Part, length: int | None) -> Any:
    """Yield the body as it comes, but never more than was announced."""
    while length is None or part.size < length:
        wanted = _CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length - part.size)
        try:
            chunk = response.read1(wanted)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(_reason(error)) from error
        if not chunk:
            return
        yield chunk


def _require_checksum(path: Path, checksum: str, progress: Progress | None) -> None:
    found = digest_of(path, checksum, progress).hexdigest()
    if found != checksum:
        raise DownloadError(
            "the file that is already there is not the published one",
            where=path,
            found=f"checksum {found}",
            expected=checksum,
            do="Move it away and run the same command again.",
        )


def _check_length(url: str, length: int, limit_bytes: int) -> None:
    if length > limit_bytes:
        raise DownloadError(
            "the server's file is far too long",
            where=url,
            found=f"{length:,} bytes",
            expected=f"at most {limit_bytes:,}",
            do="Check the address.",
        )


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return "the server fell silent"
    return f"the connection broke ({in_words(cause)})"
