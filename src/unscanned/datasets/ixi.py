"""The IXI dataset from its official site: about 580 healthy subjects with PD, T2 and T1 volumes, CC BY-SA 3.0.

PD and T2 are the two echoes of one dual-echo acquisition and share one grid. https://brain-development.org/ixi-dataset/
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from unscanned.datasets.archive import unpack_tar
from unscanned.datasets.download import download, https_where_served
from unscanned.datasets.part import new_digest
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import DatasetError, SettingsError
from unscanned.files import lock, new_folder, read_json, write_json, write_text
from unscanned.progress import Progress

__all__ = ["CHECKSUMS", "OFFICIAL_URL", "fetch_ixi"]

OFFICIAL_URL = "http://biomedic.doc.ic.ac.uk/brain-development/downloads/IXI"
"""Where the archives are. The server speaks plain http: what makes a download safe is its checksum."""

CHECKSUMS: Mapping[str, str] = MappingProxyType(
    {
        "PD": "88ecd9d1fa33cb4a2278183b42ffd749",
        "T2": "e3140d78730ecdd32ba92da48c0a9aaa",
        "T1": "34901a0593b41dd19c1a1f746eac2d58",
    }
)
"""MD5 of each archive, as published."""

_MARKER = "fetched.json"

_README = """\
IXI dataset
===========

Volumes of healthy subjects from Hammersmith Hospital (HH, 3 T), Guy's Hospital (Guys, 1.5 T) and the Institute of
Psychiatry (IOP, 1.5 T) in London. Files are named IXI<subject>-<hospital>-<number>-<contrast>.nii.gz.

Licence: Creative Commons Attribution-ShareAlike 3.0 (CC BY-SA 3.0),
https://creativecommons.org/licenses/by-sa/3.0/legalcode
Whoever uses the data names their source; whoever passes on adapted data does so under the same licence.

Source to cite: IXI Dataset, https://brain-development.org/ixi-dataset/

The file fetched.json in each folder states the archive, its checksum and the files that came from it.
"""


@draws_progress
def fetch_ixi(
    out: str | Path,
    *,
    contrasts: Sequence[str] = ("PD", "T2"),
    base_url: str = OFFICIAL_URL,
    checksums: Mapping[str, str] = CHECKSUMS,
    idle_timeout_s: float = 30.0,
    tries: int = 5,
    backoff_s: float = 1.0,
    keep_archive: bool = True,
    progress: Progress | None = AUTOMATIC,
) -> Path:
    """Download, verify and unpack archives of IXI into `out`/IXI-PD, `out`/IXI-T2, ...

    A download that broke off goes on where it broke when the function is called again. A contrast that is in place is
    left alone, and `progress` gets a label that says so. Where the server offers https, that is used.

    Args:
        out: Folder for the dataset, made when missing. An archive has some 4 GB, and as much again unpacked.
        contrasts: Which archives: "PD", "T2", "T1".
        base_url: Address of the folder on the server that holds IXI-PD.tar and the others.
        checksums: MD5 or SHA-256 of the archive of each contrast. Nothing is accepted without one.
        idle_timeout_s: A connection is given up after so many seconds without a byte.
        tries: Failures in a row after which to give up.
        backoff_s: Pause after the first failure; it doubles with each.
        keep_archive: Whether IXI-PD.tar stays in `out` beside the unpacked folder.
        progress: Called with bytes done, bytes in all, and a label. Without it a bar, in a terminal and in Jupyter;
            None draws none.

    Returns:
        `out`, as `find_pairs(out, layout="ixi")` reads it.

    Raises:
        BusyError: Another process fetches into `out`.
        DatasetError: An archive is refused, or a folder of its name is there that this function did not make.
        DownloadError: A download failed or its checksum differs; what came so far is kept.
        ResourceError: The disk has no room, or `out` cannot be written.
        SettingsError: A contrast has no checksum, or the address is not of a known kind.

    Example:
        >>> fetch_ixi("ixi", contrasts=("PD",))  # doctest: +SKIP
        PosixPath('ixi')
    """
    out = Path(out)
    expected = {contrast: _checksum(contrast, checksums) for contrast in contrasts}
    missing = []
    for contrast, checksum in expected.items():
        if not _in_place(out / f"IXI-{contrast}", checksum):
            missing.append(contrast)
        elif progress is not None:
            progress(1, 1, f"IXI-{contrast}: already in place")
    if not missing:
        return out
    with lock(out):
        if not (out / "README.txt").exists():
            write_text(out / "README.txt", _README)
        for contrast in missing:
            archive = out / f"IXI-{contrast}.tar"
            url = f"{base_url.rstrip('/')}/{archive.name}"
            _require_free_name(out / archive.stem)
            if not archive.exists():
                url = https_where_served(url)
            download(
                url,
                archive,
                checksum=expected[contrast],
                idle_timeout_s=idle_timeout_s,
                tries=tries,
                backoff_s=backoff_s,
                room=2.0,
                progress=progress,
            )
            _unpack(archive, contrast, expected[contrast], url, progress)
            if not keep_archive:
                archive.unlink()
    return out


def _checksum(contrast: str, checksums: Mapping[str, str]) -> str:
    if contrast not in checksums:
        raise SettingsError(
            "no archive of this contrast is known by its checksum",
            where="contrasts",
            found=repr(contrast),
            expected=" or ".join(sorted(checksums)),
        )
    new_digest(checksums[contrast])
    return checksums[contrast].lower()


def _in_place(folder: Path, checksum: str) -> bool:
    """Whether every file that was unpacked from the archive with this checksum is still there at its full length."""
    try:
        marker = read_json(folder / _MARKER)
        return marker["checksum"] == checksum and all(
            (folder / name).stat().st_size == size for name, size in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _require_free_name(folder: Path) -> None:
    """Refuse before the download what could not be unpacked after it."""
    if folder.exists():
        raise DatasetError(
            "a folder of this name is there already, but it is not the whole of the archive",
            where=folder,
            do="Move it away and run the same command again; or use it as it is.",
        )


def _unpack(archive: Path, contrast: str, checksum: str, url: str, progress: Progress | None) -> None:
    with new_folder(archive.with_suffix("")) as folder:
        files = unpack_tar(archive, folder, progress=progress)
        if not any(
            re.fullmatch(rf"IXI\d+-\w+-\d+-{re.escape(contrast)}\.nii(\.gz)?", Path(name).name) for name in files
        ):
            raise DatasetError(
                "the archive holds no scan of this contrast",
                where=archive,
                expected=f"files named like IXI012-HH-1211-{contrast}.nii.gz",
            )
        write_json(
            folder / _MARKER,
            {"archive": archive.name, "url": url, "checksum": checksum, "licence": "CC BY-SA 3.0", "files": files},
        )
