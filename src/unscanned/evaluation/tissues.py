"""Label maps of tissues beside a dataset: the regions in which errors are counted tissue by tissue."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unscanned.datasets.layout import list_nifti, stem
from unscanned.errors import DatasetError
from unscanned.files import read_text
from unscanned.volumes.grid import onto_grid
from unscanned.volumes.nifti import Volume, read_volume

__all__ = ["Labels", "find_labels", "own_labels"]


_SUFFIX = "_dseg"


@dataclass(frozen=True)
class Labels:
    """Label maps of cases, as BIDS derivatives have them.

    Attributes:
        files: `<case>_dseg.nii.gz` by case.
        names: Of the labels; one without a name is called by its number, and those of one name are one tissue.
    """

    files: dict[str, Path]
    names: dict[int, str]

    def regions(self, case: str, target: Volume) -> dict[str, np.ndarray]:
        """Return the voxels of each tissue on a target's grid, by region, such as "tissue: white matter".

        Label 0 is background. A case without a file has no regions.

        Raises:
            VolumeError: The file cannot be read.
            DatasetError: It lies on another grid, or its voxels are not whole numbers.
        """
        path = self.files.get(case)
        if path is None:
            return {}
        try:
            array = onto_grid(target, read_volume(path, allow_constant=True), str(path))
        except DatasetError as error:
            raise error.but(
                what="labels and target lie on different grids", do="Write them on the target's."
            ) from error
        labels = np.ascontiguousarray(np.rint(array), np.int32)
        if np.abs(array - labels).max() > 1e-3:
            raise DatasetError("labels are whole numbers", where=path, found="other numbers")
        found: dict[str, np.ndarray] = {}
        for label in map(int, np.unique(labels)):
            if label != 0:
                region = f"tissue: {self.names.get(label, label)}"
                found[region] = (labels == label) | found.get(region, False)
        return found


def own_labels(dataset: str | Path) -> Path | None:
    """Return the folder of the label maps that `simulate` wrote beside its scans; None where a dataset has none."""
    folder = Path(dataset, "derivatives", "truth")
    return folder if _label_maps(folder) else None


def find_labels(folder: str | Path) -> Labels:
    """Return the label maps below a folder, at any depth, with the names that its dseg.tsv gives.

    Raises:
        DatasetError: There are none, two of one case, or dseg.tsv cannot be read.
    """
    folder = Path(folder)
    files: dict[str, Path] = {}
    for path in _label_maps(folder):
        case = stem(path).removesuffix(_SUFFIX)
        if case in files:
            raise DatasetError("two label maps of one case", where=case, found=f"{files[case]} and {path}")
        files[case] = path
    if not files:
        raise DatasetError(
            "no label maps", where=folder, expected="files such as sub-001/anat/sub-001_dseg.nii.gz, and dseg.tsv"
        )
    table = folder / "dseg.tsv"
    if not table.exists():
        return Labels(files, {})
    try:
        rows = csv.DictReader(read_text(table, encoding="utf-8-sig").splitlines(), delimiter="\t")
        return Labels(files, {int(row["index"]): row["name"] for row in rows if row["name"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            "the names of the labels cannot be read", where=table, found=error, expected="columns index and name"
        ) from error


def _label_maps(folder: Path) -> list[Path]:
    return [path for path in list_nifti(folder) if stem(path).endswith(_SUFFIX)]
