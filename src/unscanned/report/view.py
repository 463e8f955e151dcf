"""The page of `unscanned view`: any volumes in the report's viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unscanned.datasets.layout import sidecar_path, stem
from unscanned.display import AUTOMATIC, draws_progress
from unscanned.errors import SettingsError
from unscanned.files import read_json, write_text
from unscanned.formats.sidecar import STAMP
from unscanned.outputs import claim, holds
from unscanned.progress import Progress
from unscanned.report import LIMIT_MB
from unscanned.report.figures import planes_figure
from unscanned.report.page import data_uri, environment
from unscanned.report.viewer import Shown, files_viewer, licences, niivue, viewer_facts
from unscanned.volumes.nifti import Volume, read_volume
from unscanned.volumes.orientation import orientation, to_ras

__all__ = ["write_view"]


@draws_progress
def write_view(
    files: Sequence[str | Path], out: str | Path, *, limit_mb: float = LIMIT_MB, progress: Progress | None = AUTOMATIC
) -> Path:
    """Write a self-contained HTML page in which any volumes can be looked at, linked by their place in the world.

    Args:
        files: NIfTI files, each on whatever grid.
        out: The HTML file.
        limit_mb: Room for the volumes in the page, MB; the precision follows from it. What has no room is left out.
        progress: Called with (done, total, file). Without it a bar, in a terminal and in Jupyter; None draws none.

    Returns:
        `out`.

    Raises:
        SettingsError: No file, a limit that no page can have, or something else than such a page is at `out`.
        VolumeError: A file is refused.
        ResourceError: The disk is full.

    Example:
        >>> write_view(["sub-01_T1w.nii.gz", "sub-01_T2w.nii.gz"], "view.html")
        PosixPath('view.html')
    """
    claim(out, holds("Unscanned · view"), "an earlier page of unscanned view, or nothing")
    if not files:
        raise SettingsError("no file to show", where="view", expected="one or more NIfTI files")
    volumes = []
    for index, path in enumerate(files):
        if progress:
            progress(index, len(files) + 1, Path(path).name)
        volumes.append(read_volume(path, allow_constant=True))
    if progress:
        progress(len(files), len(files) + 1, "page")
    names = _names([Path(path) for path in files])
    shown = [
        Shown(name, volume.array, volume.affine, _is_synthetic(volume, Path(path)), _window(volume.array))
        for name, volume, path in zip(names, volumes, files, strict=True)
    ]
    viewer = files_viewer(shown, limit_mb=limit_mb)
    page = (
        environment()
        .get_template("view.html")
        .render(
            names=names,
            synthetic=any(each.synthetic for each in shown),
            stamp=STAMP,
            still=data_uri(planes_figure([_still(each) for each in shown])),
            viewers=[viewer] if viewer.data else [],
            facts=viewer_facts([viewer]),
            niivue=niivue() if viewer.data else "",
            left_out=viewer.left_out,
            files=[(name, path, *_grid(volume)) for name, path, volume in zip(names, files, volumes, strict=True)],
            warnings=[
                f"{name}: {text}" for name, volume in zip(names, volumes, strict=True) for text in volume.warnings
            ],
            licences=licences(),
        )
    )
    write_text(out, page)
    return Path(out)


def _names(paths: Sequence[Path]) -> list[str]:
    """The file's names without their endings; with their folders where two are the same."""
    stems = [stem(path) for path in paths]
    return [
        f"{path.parent.name}/{stem}" if stems.count(stem) > 1 else stem for path, stem in zip(paths, stems, strict=True)
    ]


def _is_synthetic(volume: Volume, path: Path) -> bool:
    """Whether a generator made the volume: its header, its name or its sidecar says so."""
    if volume.synthetic or "desc-synthetic" in path.name:
        return True
    try:
        content = read_json(sidecar_path(path))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("Synthetic") is True


def _window(array: np.ndarray) -> tuple[float, float]:
    """The values that are shown as black and white: percentiles that a few extreme voxels cannot set."""
    low, high = (float(value) for value in np.percentile(array, (0.5, 99.5)))
    if low >= high:
        low, high = float(array.min()), float(array.max())
    return (min(low, 0.0) if low > -0.05 * (high - low) else low, high if high > low else low + 1.0)


def _still(shown: Shown) -> tuple[str, np.ndarray, tuple[float, float, float], tuple[float, float], bool]:
    spacing = np.linalg.norm(shown.affine[:3, :3], axis=0)[np.argsort(orientation(shown.affine)[:, 0])]
    i, j, k = spacing.tolist()
    return shown.name, to_ras(shown.array, shown.affine), (i, j, k), shown.window, shown.synthetic


def _grid(volume: Volume) -> tuple[Any, ...]:
    spacing = " × ".join(f"{value:.3g}" for value in volume.spacing_mm)
    return " × ".join(map(str, volume.shape)), spacing, volume.orientation
