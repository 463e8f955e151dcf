"""Where the scans of a dataset are, by file names or a table; no scan is opened."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unscanned.errors import DatasetError, listed
from unscanned.files import read_text, short_digest
from unscanned.settings import Layout

__all__ = [
    "Inventory",
    "Layout",
    "Scan",
    "bids_case",
    "bids_label",
    "bids_suffix",
    "case_of_folder",
    "contrast_key",
    "conversion",
    "has_bids_suffix",
    "identify",
    "likely_pair",
    "list_nifti",
    "present",
    "sidecar_path",
    "stem",
    "take_inventory",
]


_NAMES = {
    "bids": re.compile(
        r"sub-(?P<subject>[^\W_]+)(_ses-(?P<session>[^\W_]+))?(?P<entities>(_[a-zA-Z]+-[^\W_]+)*)_(?P<contrast>[^\W_]+)"
    ),
    "ixi": re.compile(r"(?P<subject>IXI\d+)-[A-Za-z]+-\d+-(?P<contrast>[A-Za-z0-9]+)"),
}
_LABEL = re.compile(r"[^\W_]{1,100}")
_SUFFIXES = (".nii", ".nii.gz")
_DICOM_SUFFIX = re.compile(r"|\.(dcm|ima|dicom|\d+)", re.IGNORECASE)
_COMMON = {"PDw", "T1w", "T2w", "FLAIR"}
_SYNTHETIC = "_desc-synthetic"
_BIDS_SUFFIXES = (
    *("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "PDT2", "UNIT1", "angio"),
    *("T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "MTRmap", "MTsat", "M0map", "S0map"),
)
_NOT_RAW = frozenset({"derivatives", "sourcedata", "code", "stimuli"})


@dataclass(frozen=True)
class Scan:
    """One file that, by its name or its place in a table, holds one contrast of one session.

    Attributes:
        subject: Label without "sub-", such as "ms07" or "IXI012".
        session: Label without "ses-", or None.
        contrast: Key of the contrast, see `contrast_key`.
        entities: Further BIDS entities of the name, such as "_acq-mprage_run-1".
        path: The file; not opened, it may not exist.
    """

    subject: str
    session: str | None
    contrast: str
    entities: str
    path: Path


@dataclass
class Inventory:
    """The scans of a dataset, and the places where some could have been missed.

    Attributes:
        scans: All scans, of whatever contrast, sorted by path.
        oddities: (path, message) of names that do not fit, and of links that lead back.
        dicom: Folders that hold DICOM files.
        unreadable: (path, message) of folders and links that could not be followed.
    """

    scans: list[Scan] = field(default_factory=list)
    oddities: list[tuple[Path, str]] = field(default_factory=list)
    dicom: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


def stem(path: Path) -> str:
    """Return a NIfTI file's name without `.nii` or `.nii.gz`, however that is spelled."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def sidecar_path(path: Path) -> Path:
    """Return where the JSON file beside a NIfTI file is."""
    return path.parent / f"{stem(path)}.json"


def contrast_key(name: str) -> str:
    """Return the key under which "T2", "T2w" and "t2w" are one contrast.

    Example:
        >>> contrast_key("PDw"), contrast_key("FLAIR")
        ('pd', 'flair')
    """
    return re.sub(r"(?<=.)w$", "", name.strip().lower())


def bids_suffix(name: str) -> str:
    """Return the BIDS suffix of a contrast: "T2w" for "T2"; a name that BIDS does not have stays as it is.

    Example:
        >>> bids_suffix("PD"), bids_suffix("T1w"), bids_suffix("flair"), bids_suffix("STIR")
        ('PDw', 'T1w', 'FLAIR', 'STIR')
    """
    return _SUFFIX_OF.get(contrast_key(name), name.strip())


def has_bids_suffix(name: str) -> bool:
    """Return whether BIDS has a suffix for a contrast."""
    return contrast_key(name) in _SUFFIX_OF


def bids_label(name: str) -> str:
    """Return what a BIDS label can hold of a name: its ASCII letters and digits; a digest where it has none.

    Example:
        >>> bids_label("patient_7 T1"), bids_label("Müller")
        ('patient7T1', 'Muller')
    """
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode()
    return re.sub("[^0-9a-zA-Z]", "", plain) or short_digest({"name": name})


def bids_case(case: str) -> str:
    """Return a case with labels that BIDS can hold: "sub-Muller_ses-1" for "sub-Müller_ses-1"."""
    return "_".join(f"{key}-{bids_label(label)}" for key, _, label in (part.partition("-") for part in case.split("_")))


_SUFFIX_OF = {contrast_key(suffix): suffix for suffix in _BIDS_SUFFIXES}


def identify(path: str | Path) -> Scan | None:
    """Return what the name of one file says, by BIDS or by IXI; None where it follows neither."""
    return _named(Path(path), "bids") or _named(Path(path), "ixi")


def take_inventory(
    root: str | Path, layout: Layout, *, source: str, target: str, require_target: bool = True
) -> Inventory:
    """List the scans of a dataset.

    Args:
        root: A folder, or a table of paths ending in `.csv` or `.tsv`.
        layout: "auto" decides by the names: a table, BIDS, then IXI.
        source: Contrast; for a table, a column.
        target: Contrast; for a table, a column.
        require_target: Refuse a table without that column.

    Raises:
        DatasetError: The root does not exist, or no name in it fits the layout.
    """
    root = Path(root)
    is_table = root.suffix.lower() in (".csv", ".tsv")
    if layout == "csv" or (layout == "auto" and is_table):
        return Inventory(scans=list(_table_scans(root, source, target, require_target)))
    if not os.path.isdir(root):
        raise DatasetError(
            "the dataset is not there",
            where=root,
            expected="a folder of scans, or a table ending in .csv or .tsv",
            do="Check the path.",
        )
    inventory = Inventory()
    paths = [path for path in _walk(root, inventory, {}) if path.name.lower().endswith(_SUFFIXES)]
    for name in _NAMES if layout == "auto" else (layout,):
        inventory.scans = [scan for path in paths if (scan := _named(path, name)) is not None]
        if inventory.scans:
            known = {scan.path for scan in inventory.scans}
            inventory.oddities += [
                (path, "this file's name does not fit the layout, so it is not used")
                for path in paths
                if path not in known and not _is_synthetic(path)
            ]
            return inventory
    if inventory.dicom and not paths:
        raise DatasetError(
            "the folder holds DICOM files, and scans are read as NIfTI",
            where=root,
            found=f"DICOM in {listed(inventory.dicom)}",
            do=f"Convert each series: {conversion(inventory.dicom[0], source)}",
        )
    unread = "".join(f"; {path}: {message}" for path, message in inventory.unreadable[:1])
    bids, ixi = f"sub-01_{bids_suffix(source)}.nii.gz", f"IXI012-HH-1211-{contrast_key(source).upper()}.nii.gz"
    raise DatasetError(
        "no scan was found by its name",
        where=root,
        found=f"{len(paths)} NIfTI files" + (f", the first {paths[0].name}" if paths else "") + unread,
        expected=f"names such as {bids} (BIDS) or {ixi} (IXI)",
        do=f"For other names, list the files in a CSV with the columns subject, session, {source} and {target}.",
    )


def conversion(folder: Path, contrast: str) -> str:
    """Return the line to type that converts a folder of DICOM files into a scan with a BIDS name."""
    to = "my-bids/sub-01/anat"
    name = shlex.quote(f"sub-01_{bids_suffix(contrast)}")
    return f"mkdir -p {to} && dcm2niix -b y -z y -f {name} -o {to} {shlex.quote(str(folder))}"


def present(scans: Iterable[Scan]) -> dict[str, set[tuple[str, str | None]]]:
    """Return the contrasts of scans by their names, each with the sessions (subject, session) that have it."""
    found: dict[str, set[tuple[str, str | None]]] = {}
    for scan in scans:
        name = bids_suffix(scan.contrast.upper())
        found.setdefault(name, set()).add((scan.subject, scan.session))
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def likely_pair(scans: Iterable[Scan], source: str, target: str) -> tuple[str, str] | None:
    """Return two contrasts that some sessions have both of, those asked for and the common ones first, or None."""
    there = present(scans)
    wanted = {contrast_key(source): 0, contrast_key(target): 1}
    places = [
        (
            sum(wanted.get(contrast_key(name)) == place for place, name in enumerate(names)),
            len(_COMMON.intersection(names)),
            len(both),
            names[1] == "T2w",
            names,
        )
        for names in itertools.permutations(there, 2)
        if (both := there[names[0]] & there[names[1]])
    ]
    return max(places)[-1] if places else None


def list_nifti(folder: str | Path) -> list[Path]:
    """Return the NIfTI files below a folder, at any depth and through links, sorted; hidden ones are passed over."""
    return sorted(_walk(Path(folder), Inventory(), {}, passed_over=frozenset()))


def _walk(
    folder: Path, inventory: Inventory, seen: dict[tuple[int, int], Path], *, passed_over: frozenset[str] = _NOT_RAW
) -> Iterator[Path]:
    is_root = not seen
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        inventory.unreadable.append((folder, f"this folder cannot be read: {error.strerror}"))
        return
    first = seen.setdefault((status.st_dev, status.st_ino), folder)
    if first != folder:
        inventory.oddities.append(
            (folder, f"this link leads to {first}, which is searched already; it was not followed")
        )
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or (is_root and entry.name in passed_over):
            continue
        if path.name.lower().endswith(_SUFFIXES):
            yield path
            continue
        if folder not in inventory.dicom and _DICOM_SUFFIX.fullmatch(path.suffix) and _is_dicom(path):
            inventory.dicom.append(folder)
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            why = f"this link leads nowhere, or may not be followed: {error.strerror}"
            inventory.unreadable.append((path, why))
        else:
            if is_folder:
                yield from _walk(path, inventory, seen)


def _is_dicom(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def case_of_folder(path: Path, root: Path) -> tuple[str, str | None] | None:
    """Return the subject and session whose BIDS folder a path is or lies in; None where it lies in no subject's."""
    labels = dict(
        part.split("-", 1) for part in path.relative_to(root).parts if re.fullmatch(r"(sub|ses)-[^\W_]+", part)
    )
    return (labels["sub"], labels.get("ses")) if "sub" in labels else None


def _is_synthetic(path: Path) -> bool:
    return _SYNTHETIC in stem(path)


def _named(path: Path, layout: str) -> Scan | None:
    """Return what a file's name says in a layout; None where it does not follow it, or is that of a synthetic file."""
    match = _NAMES[layout].fullmatch(stem(path))
    if match is None or _is_synthetic(path):
        return None
    said: dict[str, Any] = {"session": None, "entities": "", **match.groupdict()}
    return Scan(said["subject"], said["session"], contrast_key(said["contrast"]), said["entities"], path)


def _table_scans(table: Path, source: str, target: str, require_target: bool) -> Iterator[Scan]:
    columns, rows = _read_table(table)
    required = ["subject", source, *([target] if require_target else [])]
    if not {contrast_key(name) for name in required} <= {contrast_key(name) for name in columns}:
        raise DatasetError(
            "the table lacks a column",
            where=table,
            found=listed(columns) or "no columns",
            expected=f"{', '.join(required)}, and session where there is more than one",
        )
    used = {name: _column(table, columns, name) for name in ("subject", "session", source, target)}

    def cell(row: dict[str, str], name: str) -> str:
        return (row.get(used[name] or "") or "").strip()

    seen: dict[tuple[str, str | None], int] = {}
    for line, row in rows:
        subject = cell(row, "subject").removeprefix("sub-")
        session = cell(row, "session").removeprefix("ses-") or None
        for label in (subject, session):
            if label is not None and not _LABEL.fullmatch(label):
                raise DatasetError(
                    "a label in the table cannot be part of a file name",
                    where=f"{table}, line {line}",
                    found=repr(label),
                    expected="1 to 100 letters and digits, as in BIDS",
                )
        first = seen.setdefault((subject, session), line)
        if first != line:
            raise DatasetError(
                f"a session is listed twice, in lines {first} and {line}",
                where=table,
                found=f"subject {subject}, session {session}",
                do="Keep one line, or give the two a session each.",
            )
        for contrast in (source, target):
            if name := cell(row, contrast):
                yield Scan(subject, session, contrast_key(contrast), "", table.parent / name)


def _column(table: Path, columns: Sequence[str], name: str) -> str | None:
    """Return the one column of a name, or None where there is none."""
    fitting = [column for column in columns if contrast_key(column) == contrast_key(name)]
    if len(fitting) > 1:
        raise DatasetError(
            "several columns of the table have one meaning",
            where=table,
            found=" and ".join(fitting),
            expected=f"one column {name}",
            do="Rename or remove the others: nothing says which one counts.",
        )
    return fitting[0] if fitting else None


def _read_table(table: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    delimiter = "\t" if table.suffix.lower() == ".tsv" else ","
    try:
        text = read_text(table, encoding="utf-8-sig")
        if "\0" in text:  # csv reads it, and no path may hold it
            raise ValueError("a null character")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        rows = [(reader.line_num, row) for row in reader]
        columns = list(reader.fieldnames or ())
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError("the table cannot be read", where=table, found=error, expected="UTF-8 text") from error
    return columns, rows
