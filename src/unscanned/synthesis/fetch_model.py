"""A model from an address: downloaded as datasets are, verified, unpacked, loaded once, and put on a shelf."""

from __future__ import annotations

import re
import shutil
import tempfile
import urllib.parse
import zipfile
from pathlib import Path

from unscanned.datasets.archive import unpack_tar, unpack_zip
from unscanned.datasets.download import check_address, download
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import CheckpointError, DatasetError, SettingsError, listed
from unscanned.files import lock, new_folder, open_regular, writing
from unscanned.progress import Progress
from unscanned.synthesis.model_file import load_model
from unscanned.synthesis.shelf import (
    SHIPPED,
    ShelvedModel,
    check_name,
    list_models,
    model_files,
    read_list,
    shelve,
    user_shelf,
)

__all__ = ["fetch_model"]

_LIMIT_BYTES = 2**30
"Of the archive, and of what comes out of it: a chain of four of the largest generators has 60 MB."
_MEMBERS = 1000
_PREFIX = ".partial-fetch-"
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
"What files of gzip, bzip2 and xz begin with."
_TAKEN = "Give the model another name with --name."


@draws_progress
def fetch_model(
    url: str,
    sha256: str,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    idle_timeout_s: float = 30.0,
    tries: int = 5,
    backoff_s: float = 1.0,
    progress: Progress | None = AUTOMATIC,
) -> ShelvedModel:
    """Download, verify and unpack a model, so that it can be called by its name.

    A download that broke off goes on where it broke when the function is called again. A model that is in place is left
    alone.

    Args:
        url: Address of a zip or an uncompressed tar archive with model.json and model.safetensors, at its top or in one
            folder.
        sha256: Of the archive. Nothing is accepted without it.
        out: Shelf to put it on; None takes the user's.
        name: To call it by; None takes its contrasts, such as t1w-t2w.
        idle_timeout_s: A connection is given up after so many seconds without a byte.
        tries: Failures in a row after which to give up.
        backoff_s: Pause after the first failure; it doubles with each.
        progress: Called with bytes done, bytes in all, and a label. Without it a bar, in a terminal and in Jupyter;
            None draws none.

    Returns:
        The model on its shelf.

    Raises:
        BusyError: Another process fetches onto the same shelf.
        CheckpointError: The archive holds no model, several, or one that is refused. Nothing was put on the shelf.
        DatasetError: The archive is refused. Nothing was put on the shelf.
        DownloadError: The download failed or its checksum differs; what came so far is kept.
        ResourceError: The disk has no room, or the shelf cannot be written.
        SettingsError: Another model has the name, or address, checksum or name are not of a known kind.
    """
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise SettingsError("not a SHA-256", where="--sha256", found=repr(sha256), expected="64 hexadecimal digits")
    sha256 = sha256.lower()
    if name is not None:
        check_name(name)
    check_address(url)
    shelf = user_shelf() if out is None else Path(out)
    with lock(shelf):
        for stale in shelf.glob(f"{_PREFIX}*"):  # of a killed process
            shutil.rmtree(stale)
        there = _in_place(shelf, sha256, name)
        if there is not None:
            if progress is not None:
                progress(1, 1, f"{there.name}: already in place")
            return there
        if name is not None:
            _require_free_name(shelf, name)
        archive = shelf / f".{sha256[:16]}-{_file_name(url)}"
        download(
            url,
            archive,
            checksum=sha256,
            idle_timeout_s=idle_timeout_s,
            tries=tries,
            backoff_s=backoff_s,
            limit_bytes=_LIMIT_BYTES,
            room=2.0,
            progress=progress,
        )
        try:
            with writing(shelf), tempfile.TemporaryDirectory(prefix=_PREFIX, dir=shelf) as temporary:
                _unpack(archive, Path(temporary), url, progress)
                folder = _model_in(Path(temporary), url)
                model = load_model(folder)
                chosen = name or f"{model.source}-{model.target}".lower()
                check_name(chosen)
                _put(folder, shelf, chosen)
        except (CheckpointError, DatasetError):
            archive.unlink()
            raise
        archive.unlink()
        return shelve(shelf, chosen, url=url, archive_sha256=sha256)


def _file_name(url: str) -> str:
    """Return the last part of an address as it may stand in the name of a file."""
    return re.sub(r"[^\w.-]", "", Path(urllib.parse.urlsplit(url).path).name)[-100:] or "model"


def _in_place(shelf: Path, sha256: str, name: str | None) -> ShelvedModel | None:
    """Return the model that came from this archive; refuse one that was changed since."""
    for found, entry in read_list(shelf).models.items():
        if entry.archive_sha256 == sha256 and name in (None, found) and (shelf / found).exists():
            model = ShelvedModel(found, shelf / found, str(shelf), entry)
            model.check()
            return model
    return None


def _require_free_name(shelf: Path, name: str) -> None:
    known = {found for found in read_list(shelf).models if (shelf / found).exists()}
    if shelf == user_shelf():
        known |= {model.name for model in list_models(SHIPPED)}
    if name in known:
        raise SettingsError("another model has this name", where=shelf / name, found=name, do=_TAKEN)


def _unpack(archive: Path, folder: Path, url: str, progress: Progress | None) -> None:
    with open_regular(archive) as file:
        if file.read(6).startswith(_COMPRESSED):
            raise DatasetError(
                "a compressed tar archive is not taken",
                where=url,
                expected="a zip or an uncompressed tar archive",
                do="Ask its maker for one, or unpack it yourself and give the folder of the model.",
            )
    if zipfile.is_zipfile(archive):
        unpack_zip(archive, folder, member_limit=_MEMBERS, limit_bytes=_LIMIT_BYTES, progress=progress)
    else:
        unpack_tar(archive, folder, member_limit=_MEMBERS, progress=progress)


def _model_in(folder: Path, url: str) -> Path:
    """Return the one folder with a model, of those that an archive held."""
    found = [path.parent for path in sorted(folder.rglob("model.json"))]
    if len(found) != 1:
        raise CheckpointError(
            "the archive does not hold one model",
            where=url,
            found=listed([str(path.relative_to(folder)) for path in found]) or "no model.json",
            expected="model.json and model.safetensors, at its top or in one folder",
        )
    return found[0]


def _put(folder: Path, shelf: Path, name: str) -> None:
    """Give a folder its place on the shelf. One that a killed process has put there, but not listed, is as good."""
    _require_free_name(shelf, name)
    place = shelf / name
    if place.is_dir() and model_files(place) == model_files(folder):
        return
    with new_folder(place) as made:
        shutil.copytree(folder, made, dirs_exist_ok=True)
