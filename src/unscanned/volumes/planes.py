"""Slices of volumes as pictures, in radiological orientation, and the picture of a volume that a notebook shows.

The patient's right is on the viewer's left, anterior and superior are up, and in sagittal slices anterior is on the
viewer's left.
"""

from __future__ import annotations

import functools
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from unscanned.volumes.intensity import head_mask
from unscanned.volumes.nifti import STAMP
from unscanned.volumes.orientation import ras_grid, to_ras

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LETTERS", "PLANES", "slice_image", "stamp", "three_planes"]

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
LETTERS = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}
"Letters at the left, right, top and bottom of a picture."

_PLACES = (0, 0.5, "lm"), (1, 0.5, "rm"), (0.5, 0, "ma"), (1, 0.9, "rb")
"Where the letters stand, above the stamp: shares of width and height, and which point of the letter lies there."

_HEIGHT, _LINE, _FONT = 288, 20, 13
"Of the tallest plane, of a line of text, and of its letters, pixels."
_WIDEST = 1024
"Pixels that a plane has at most, where the field of view is far from a cube."
_DARK, _BRIGHT = 0.5, 99.5
"Percentiles, of all voxels and inside the head."


def slice_image(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return one slice as an image with row 0 on top, in radiological orientation.

    Args:
        volume: (i, j, k) in RAS+.
        plane: "axial", "coronal" or "sagittal".
        index: Slice along the plane's axis.

    Returns:
        Rows run from superior (axial: anterior) to inferior (posterior), columns from the patient's right (sagittal:
        anterior) to left (posterior).
    """
    # In RAS+ both remaining axes point away from where a picture begins, whichever the plane.
    return volume[(slice(None),) * PLANES[plane] + (index,)].T[::-1, ::-1]


def three_planes(array: np.ndarray, affine: np.ndarray, *, caption: str, synthetic: bool = False) -> bytes:
    """Draw three planes through the centre of the head, with the true proportions of space, as a PNG.

    Black is 0 and white just below the brightest of the head; with negative voxels, black is below most of them.

    Args:
        array: (i, j, k), any intensity scale, axes in any order; voxels that are not finite are shown as 0.
        affine: (4, 4), voxel to world, mm, RAS+.
        caption: A line of text below the planes.
        synthetic: Whether every plane gets the stamp.
    """
    from PIL import Image, ImageDraw, ImageFont

    array = np.where(np.isfinite(array), array, 0)  # a ratio of two scans has such voxels in the air
    volume, head = to_ras(array, affine), to_ras(head_mask(array, affine), affine)
    field_mm = np.linalg.norm(ras_grid(array.shape, affine)[1][:3, :3], axis=0) * volume.shape
    scale = min(_HEIGHT / max(field_mm[1:]), _WIDEST / max(field_mm))
    black, white = _window(volume, head)
    font = ImageFont.load_default(_FONT)
    panels = []
    for plane, axis in PLANES.items():
        levels = np.clip((slice_image(volume, plane, _centre(head, axis)) - black) / (white - black), 0, 1)
        size = [max(1, round(scale * field_mm[other])) for other in range(3) if other != axis]
        panel = Image.fromarray((255 * levels).astype(np.uint8)).resize((size[0], size[1]), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(panel)
        for letter, (x, y, anchor) in zip(LETTERS[plane], _PLACES, strict=True):
            place = 3 + x * (panel.width - 6), 3 + y * (panel.height - 6)
            draw.text(place, letter, fill=200, font=font, anchor=anchor, stroke_width=1, stroke_fill=0)
        if synthetic:
            stamp(panel)
        panels.append(panel)
    height = max(panel.height for panel in panels)
    width = max(sum(panel.width for panel in panels), math.ceil(font.getlength(caption)) + 8)
    picture = Image.new("L", (width, height + _LINE))
    left = 0
    for panel in panels:
        picture.paste(panel, (left, (height - panel.height) // 2))
        left += panel.width
    ImageDraw.Draw(picture).text((4, height + _LINE / 2), caption, fill=255, font=font, anchor="lm")
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return content.getvalue()


def stamp(image: Image) -> None:
    """Write across the bottom of a grey image that it is synthetic."""
    from PIL import ImageDraw

    font, draw = _stamp_font(image.width), ImageDraw.Draw(image)
    draw.rectangle((0, image.height - font.size - 4, image.width, image.height), fill=0)
    draw.text((image.width / 2, image.height - 3), STAMP, fill=255, font=font, anchor="md")


@functools.cache
def _stamp_font(width: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(0.94 * width / (ImageFont.load_default(100).getlength(STAMP) / 100))


def _window(volume: np.ndarray, head: np.ndarray) -> tuple[float, float]:
    """The intensities that are black and white."""
    black = min(float(np.percentile(volume, _DARK)), 0.0)
    white = float(np.percentile(volume[head] if head.any() else volume, _BRIGHT))
    return black, white if white > black else black + 1


def _centre(head: np.ndarray, axis: int) -> int:
    """The slice through the centre of the head, or of the grid where there is none."""
    inside = np.flatnonzero(head.any(tuple(other for other in range(3) if other != axis)))
    return int(inside[0] + inside[-1]) // 2 if inside.size else head.shape[axis] // 2
