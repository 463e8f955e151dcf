"""The pictures of the report: slices with difference maps, the sheet of patches, and strips to browse.

Slices are shown in radiological orientation: the patient's right is on the viewer's left, anterior and superior are up,
and in sagittal slices anterior is on the viewer's left. Every image that a generator made carries `STAMP`, burnt in.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from unscanned.errors import DatasetError
from unscanned.volumes.nifti import STAMP
from unscanned.volumes.patches import cut
from unscanned.volumes.planes import LETTERS, PLANES, slice_image, stamp

__all__ = [
    "Strip",
    "case_figure",
    "difference_limit",
    "display_white",
    "patch_sheet",
    "patch_starts",
    "planes_figure",
    "png",
    "slice_image",
    "strip",
]

Spacing = tuple[float, float, float]

_COLUMN_INCHES = 1.9


def case_figure(
    target: np.ndarray,
    source: np.ndarray | None,
    arms: Mapping[str, np.ndarray],
    head: np.ndarray,
    *,
    spacing_mm: Spacing,
    contrasts: tuple[str, str],
    std: float,
) -> bytes:
    """Draw source, arms and target in three planes through the head's centre, with difference maps.

    One grey scale holds for all images of the figure, and one for all differences. The number below a difference map is
    the mean squared error of z-scores over the head in that slice.

    Args:
        target: Acquired target, (i, j, k) in RAS+, unit scale.
        source: Acquired source; its column is left out when unset.
        arms: Synthetic volumes by arm.
        head: Head of the target.
        spacing_mm: Voxel size.
        contrasts: Names of source and target contrast.
        std: Standard deviation of the target contrast in unit scale, which makes z-scores of differences.

    Returns:
        A PNG.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    box, centre = _head_box(head)
    columns = [] if source is None else [(f"{contrasts[0]} (source)", source, False)]
    columns += [(arm, image, True) for arm, image in arms.items()]
    columns.append((f"{contrasts[1]} (acquired)", target, False))
    grey = Normalize(0, display_white(target, head))
    limit = difference_limit(np.abs(image - target)[head] / std for image in arms.values())
    difference = Normalize(-limit, limit)

    heights = [_COLUMN_INCHES * _aspect(plane, box, spacing_mm) for plane in PLANES for _ in range(2)]
    width, height = _COLUMN_INCHES * len(columns) + 0.9, sum(heights) + 0.22 * len(heights) + 0.35
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    top = height - 0.3
    for row, (plane, is_difference) in enumerate((plane, kind) for plane in PLANES for kind in (False, True)):
        for column, (name, image, synthetic) in enumerate(columns):
            place = (column * _COLUMN_INCHES / width, (top - heights[row]) / height, (_COLUMN_INCHES - 0.05) / width)
            axes = figure.add_axes((*place, heights[row] / height))
            axes.set(xticks=[], yticks=[])
            axes.axis("off")
            index = centre[PLANES[plane]]
            if row == 0:
                axes.set_title(_shorten(name), fontsize=9, fontweight="bold", pad=4)
            if not is_difference:
                _draw(axes, _crop(image, plane, index, box), plane, spacing_mm, cmap="gray", norm=grey)
                _letters(axes, plane)
            elif synthetic:
                wrong = (image - target) / std
                _draw(axes, _crop(wrong, plane, index, box), plane, spacing_mm, cmap="RdBu_r", norm=difference)
                error = slice_image(wrong, plane, index)[slice_image(head, plane, index)]
                _write(axes, 0.5, -0.02, f"MSE {np.mean(np.square(error)):.3f}", fontsize=8, ha="center", va="top")
            elif column == 0:
                where = f"{plane}\nslice {index + 1} of {target.shape[PLANES[plane]]}"
                text = f"{where}\n\ndifference:\nsynthetic − acquired"
                _write(axes, 0.06, 0.5, text, fontsize=8, va="center", color="#444")
            if synthetic:
                _stamp(axes, dark=not is_difference)
        top -= heights[row] + (0.32 if is_difference else 0.06)
    _colour_bars(figure, grey, difference)
    return png(figure)


def planes_figure(volumes: Sequence[tuple[str, np.ndarray, Spacing, tuple[float, float], bool]]) -> bytes:
    """Draw volumes in three planes through the centre of each.

    Args:
        volumes: Name, array (i, j, k) in RAS+, voxel size, the values that are black and white, and whether it is
            synthetic.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    whole = [tuple(slice(0, length) for length in array.shape) for _, array, _, _, _ in volumes]
    heights = [
        _COLUMN_INCHES * max(_aspect(plane, box, each[2]) for box, each in zip(whole, volumes, strict=True))
        for plane in PLANES
    ]
    width, height = _COLUMN_INCHES * len(volumes), sum(heights) + 0.4
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    for column, (name, array, spacing_mm, (low, high), synthetic) in enumerate(volumes):
        top = height - 0.3
        for plane, tall in zip(PLANES, heights, strict=True):
            place = (column * _COLUMN_INCHES / width, (top - tall) / height, (_COLUMN_INCHES - 0.05) / width)
            axes = figure.add_axes((*place, tall / height))
            axes.axis("off")
            image = slice_image(array, plane, array.shape[PLANES[plane]] // 2)
            _draw(axes, image, plane, spacing_mm, cmap="gray", vmin=low, vmax=high)
            _letters(axes, plane)
            if plane == "axial":
                axes.set_title(_shorten(name), fontsize=9, fontweight="bold", pad=4)
            if synthetic:
                _stamp(axes, dark=True)
            top -= tall + 0.03
    return png(figure)


def png(figure: Any) -> bytes:
    """Return a matplotlib figure as a PNG, the same bytes for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def display_white(target: np.ndarray, head: np.ndarray) -> float:
    """Return the intensity that is shown as white in all pictures of a case: just above the bright of the target."""
    return _round_up(float(np.percentile(target[head], 99.5)))


def difference_limit(errors: Iterable[np.ndarray]) -> float:
    """Return the difference whose colour is the strongest in all pictures of a case, in the unit of the errors.

    Args:
        errors: Absolute differences inside the head, an array for each arm.
    """
    return _round_up(max((float(np.percentile(error, 99.5)) for error in errors), default=1.0))


def patch_starts(
    head: np.ndarray, *, edge: int = 32, count: int = 32, least: float = 0.5
) -> list[tuple[int, int, int]]:
    """Return where patches of the sheet start: evenly spread over those that hold enough of the head.

    The patches are those of the training grid, which do not overlap; where a head has too few, a grid of half the
    stride is taken, and so on. The choice depends on the head alone.

    Args:
        head: Boolean mask, (i, j, k).
        edge: Edge of a patch in voxels; smaller along an axis that is shorter.
        count: Patches wanted.
        least: Share of a patch that must lie in the head.

    Returns:
        At most `count` voxel indices.

    Raises:
        DatasetError: The head is empty.
    """
    if not head.any():
        raise DatasetError("the head is empty, so there is no patch to show")
    starts: list[tuple[int, int, int]] = []
    for stride in (edge, edge // 2, edge // 4):
        i, j, k = (range(0, max(length - edge, 0) + 1, stride) for length in head.shape)
        starts = [start for start in itertools.product(i, j, k) if cut(head, start, edge).mean() >= least]
        if len(starts) >= count:
            break
    chosen = np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int)
    return [starts[index] for index in chosen]


def patch_sheet(source: np.ndarray, head: np.ndarray, *, spacing_mm: Spacing, edge: int = 32) -> bytes:
    """Draw the middle axial slice of 32 source patches inside the head.

    Args:
        source: Acquired source, (i, j, k) in RAS+, unit scale.
        head: Head, same shape.
        spacing_mm: Voxel size.
        edge: Edge of a patch in voxels.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure

    starts = patch_starts(head, edge=edge)
    rows = max(1, math.ceil(len(starts) / 8))
    figure = Figure(figsize=(8 * 1.05, rows * 1.05), dpi=110, facecolor="white")
    for number, start in enumerate(starts):
        axes = figure.add_subplot(rows, 8, number + 1)
        patch = cut(source, start, edge)
        axes.axis("off")
        image = slice_image(patch, "axial", patch.shape[2] // 2)
        _draw(axes, image, "axial", spacing_mm, cmap="gray", vmin=0, vmax=float(np.percentile(source[head], 99.5)))
    figure.subplots_adjust(0, 0, 1, 1, 0.04, 0.04)
    return png(figure)


@dataclass(frozen=True)
class Strip:
    """All axial slices of a volume side by side in one WebP image, from inferior to superior, row by row."""

    image: bytes
    slices: int
    columns: int
    rows: int
    tile_width: int
    tile_height: int


def strip(
    volume: np.ndarray,
    head: np.ndarray,
    *,
    spacing_mm: Spacing,
    white: float,
    width: int = 160,
    synthetic: bool = False,
) -> Strip:
    """Return all axial slices of a volume in one small image, for browsing.

    Args:
        volume: (i, j, k) in RAS+.
        head: Head; slices are cut to its extent.
        spacing_mm: Voxel size.
        white: Intensity that becomes white; 0 becomes black.
        width: Width of one slice in pixels.
        synthetic: Whether every slice gets the stamp.
    """
    from PIL import Image

    box, _ = _head_box(head)
    height = max(1, round(width * _aspect("axial", box, spacing_mm)))
    count = volume.shape[2]
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    mosaic = Image.new("L", (columns * width, rows * height))
    for index in range(count):
        image = np.clip(_crop(volume, "axial", index, box) / white, 0, 1)
        tile = Image.fromarray((image * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
        if synthetic:
            stamp(tile)
        mosaic.paste(tile, (index % columns * width, index // columns * height))
    content = io.BytesIO()
    mosaic.save(content, format="WEBP", quality=75)
    return Strip(content.getvalue(), count, columns, rows, width, height)


def _head_box(head: np.ndarray) -> tuple[tuple[slice, slice, slice], tuple[int, int, int]]:
    """The head's bounding box with a margin, for cutting pictures, and the voxel at its centre."""
    if not head.any():
        raise DatasetError("the head is empty, so there is nothing to show")
    box, centre = [], []
    for extent, length in zip(ndimage.find_objects(head, max_label=1)[0], head.shape, strict=True):
        first, last = extent.start, extent.stop - 1
        margin = max(1, (last - first) // 25)
        box.append(slice(max(first - margin, 0), min(last + 1 + margin, length)))
        centre.append((first + last) // 2)
    return (box[0], box[1], box[2]), (centre[0], centre[1], centre[2])


def _crop(volume: np.ndarray, plane: str, index: int, box: Sequence[slice]) -> np.ndarray:
    kept = [span if axis != PLANES[plane] else slice(None) for axis, span in enumerate(box)]
    return slice_image(volume[tuple(kept)], plane, index)


def _axes_of(plane: str) -> tuple[int, int]:
    across, up = (axis for axis in range(3) if axis != PLANES[plane])
    return across, up


def _aspect(plane: str, box: Sequence[slice], spacing_mm: Spacing) -> float:
    """Height over width of a slice cut to the box, in mm."""
    across, up = ((box[axis].stop - box[axis].start) * spacing_mm[axis] for axis in _axes_of(plane))
    return up / across


def _draw(axes: Any, image: np.ndarray, plane: str, spacing_mm: Spacing, **style: Any) -> None:
    across, up = _axes_of(plane)
    axes.imshow(image, aspect=spacing_mm[up] / spacing_mm[across], interpolation="bilinear", **style)


def _letters(axes: Any, plane: str) -> None:
    left, right, top, bottom = LETTERS[plane]
    for letter, x, y, ha, va in (
        (left, 0.02, 0.5, "left", "center"),
        (right, 0.98, 0.5, "right", "center"),
        (top, 0.5, 0.985, "center", "top"),
        (bottom, 0.98, 0.02, "right", "bottom"),
    ):
        _write(axes, x, y, letter, color="#8fd3ff", fontsize=7.5, ha=ha, va=va)


def _stamp(axes: Any, *, dark: bool) -> None:
    back = {"facecolor": "black" if dark else "#333", "alpha": 0.6, "pad": 1, "edgecolor": "none"}
    style = {"color": "#ffd166", "ha": "center", "va": "bottom", "fontsize": 5.6, "fontweight": "bold"}
    _write(axes, 0.5, 0.012, STAMP, bbox=back, **style)


def _write(axes: Any, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, transform=axes.transAxes, **style)


def _colour_bars(figure: Any, grey: Any, difference: Any) -> None:
    from matplotlib.cm import ScalarMappable

    left = 1 - 0.72 / figure.get_figwidth()
    for bottom, norm, cmap, label in (
        (0.56, grey, "gray", "intensity (unit scale)"),
        (0.1, difference, "RdBu_r", "synthetic − acquired (z-scores)"),
    ):
        axes = figure.add_axes((left, bottom, 0.13 / figure.get_figwidth(), 0.34))
        bar = figure.colorbar(ScalarMappable(norm, cmap), cax=axes)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_linewidth(0.4)


def _round_up(value: float) -> float:
    """The next number above with one significant digit, or with 5 as the second."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value)) / 2
    return math.ceil(value / unit - 1e-9) * unit


def _shorten(name: str) -> str:
    name = " ".join(name.split()).replace("$", r"\$")
    return name if len(name) <= 24 else name[:23] + "…"
